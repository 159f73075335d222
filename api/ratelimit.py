"""How often a caller may call: one token bucket per caller, in Redis, shared by all processes.

A bucket holds as many tokens as the limit per minute and fills evenly. Taking a token is one Lua
script, so one round trip and atomic, by Redis's clock. Where Redis is away, each process keeps
buckets of its own: the limit is then per process, and requests are served on.
"""

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from api.cache import Cache, CacheAway
from api.errors import TooManyRequests

WINDOW_S: Final = 60
_MOST_LOCAL_BUCKETS: Final = 10_000
_US: Final = 1_000_000

# A token bucket kept as one number (the generic cell rate algorithm): the moment, in microseconds,
# at which it will be full again. Full means that moment has passed; empty that it is a whole
# bucket's filling time ahead. ARGV: microseconds a token takes to come, tokens of a full bucket.
_TAKE: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local interval, capacity = tonumber(ARGV[1]), tonumber(ARGV[2])
local full_at = tonumber(redis.call('GET', KEYS[1]) or now)
if full_at < now then full_at = now end
local after = full_at + interval
local wait = after - capacity * interval - now
if wait > 0 then return {-wait, full_at - now} end
redis.call('SET', KEYS[1], string.format('%.0f', after), 'PX', math.ceil((after - now) / 1000))
return {math.floor(-wait / interval), after - now}
"""
# The name by which Redis knows a script it has seen; no secret hangs on it.
_TAKE_SHA: Final = hashlib.sha1(_TAKE.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a wish for a token.

    `remaining` is in tokens; `retry_after_s` is 0 where a token was given; `full_in_s` is when the
    bucket is full again.
    """

    policy: str
    limit: int
    remaining: int
    full_in_s: int
    retry_after_s: int

    def raise_if_refused(self) -> None:
        """Raise TooManyRequests where no token was left."""
        if self.retry_after_s:
            raise TooManyRequests(
                f"the limit is {self.limit} a minute; wait {self.retry_after_s} s",
                retry_after_s=self.retry_after_s,
            )


def rate_headers(taken: Sequence[Taken]) -> list[tuple[bytes, bytes]]:
    """Return the headers RateLimit-Policy and RateLimit (IETF draft ratelimit-headers-10)."""
    if not taken:
        return []
    policies = ", ".join(f'"{t.policy}";q={t.limit};w={WINDOW_S}' for t in taken)
    states = ", ".join(f'"{t.policy}";r={t.remaining};t={t.full_in_s}' for t in taken)
    return [(b"ratelimit-policy", policies.encode()), (b"ratelimit", states.encode())]


def address_bucket(address: str) -> str:
    """Return the bucket of a client's address; of IPv6 the /64, which one client has whole."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return "address:unknown"
    if not isinstance(parsed, IPv6Address):
        return f"address:{parsed}"
    if parsed.ipv4_mapped is not None:
        return f"address:{parsed.ipv4_mapped}"
    return f"address:{int(parsed) >> 64:x}"


class RateLimiter:
    """Token buckets by name, in Redis or, while it is away, in this process."""

    def __init__(self, cache: Cache, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cache = cache
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    async def take(self, bucket: str, *, per_minute: int, policy: str = "default") -> Taken:
        """Take a token of the bucket; never raises and never waits longer than Redis may."""
        interval_us = WINDOW_S * _US // per_minute
        try:
            left, full_in_us = await self._cache.ask(
                lambda redis: self._run(redis, bucket, interval_us, per_minute)
            )
        except CacheAway:
            left, full_in_us = self._take_here(bucket, interval_us, per_minute)
        return Taken(
            policy=policy,
            limit=per_minute,
            remaining=max(left, 0),
            full_in_s=math.ceil(full_in_us / _US),
            retry_after_s=max(1, math.ceil(-left / _US)) if left < 0 else 0,
        )

    async def _run(
        self, redis: Redis, bucket: str, interval_us: int, capacity: int
    ) -> tuple[int, int]:
        arguments = (1, f"giovang:rate-limit:{bucket}", interval_us, capacity)
        try:
            left, full_in_us = await redis.evalsha(_TAKE_SHA, *arguments)
        except NoScriptError:
            # Redis was started anew; EVAL gives it the script back.
            left, full_in_us = await redis.eval(_TAKE, *arguments)
        return int(left), int(full_in_us)

    def _take_here(self, bucket: str, interval_us: int, capacity: int) -> tuple[int, int]:
        """Do as the script does, by this process's clock; the oldest buckets are forgotten."""
        now = self._clock() * _US
        full_at = max(self._full_at.pop(bucket, now), now)
        after = full_at + interval_us
        wait = after - capacity * interval_us - now
        refused = wait > 0
        self._full_at[bucket] = full_at if refused else after
        if len(self._full_at) > _MOST_LOCAL_BUCKETS:
            self._full_at.popitem(last=False)
        if refused:
            return -math.ceil(wait), int(full_at - now)
        return int(-wait // interval_us), int(after - now)
