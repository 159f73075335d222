"""How often a caller may call: one token bucket per caller, in Redis, shared by all processes.

A bucket holds as many tokens as the limit per minute and fills evenly. Tokens are taken by a Lua
script, so atomically, by Redis's clock; requests that want one at the same moment ask in one round
trip. Where Redis is away, each process keeps buckets of its own: the limit is then per process, and
requests are served on.
"""

import asyncio
import hashlib
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv6Address, ip_address
from typing import Final

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from api.cache import Cache, CacheAway
from api.errors import TooManyRequests

WINDOW_S: Final = 60
_MOST_LOCAL_BUCKETS: Final = 10_000
_MOST_AT_ONCE: Final = 100
_US: Final = 1_000_000

# A token bucket kept as one number (the generic cell rate algorithm): the moment, in microseconds,
# at which it will be full again. Full means that moment has passed; empty that it is a whole
# bucket's filling time ahead. ARGV, of each key: microseconds a token takes to come, tokens of a
# full bucket. Two numbers of each key come back.
_TAKE: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local found = {}
for i, key in ipairs(KEYS) do
    local interval, capacity = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
    local full_at = tonumber(redis.call('GET', key) or now)
    if full_at < now then full_at = now end
    local after = full_at + interval
    local wait = after - capacity * interval - now
    if wait > 0 then
        found[2 * i - 1], found[2 * i] = -wait, full_at - now
    else
        redis.call('SET', key, string.format('%.0f', after), 'PX', math.ceil((after - now) / 1000))
        found[2 * i - 1], found[2 * i] = math.floor(-wait / interval), after - now
    end
end
return found
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


@dataclass(frozen=True, slots=True)
class _Wish:
    """A token that a request waits for."""

    bucket: str
    interval_us: int
    capacity: int
    answer: asyncio.Future[tuple[int, int]]

    # Who asked may have gone away meanwhile, by which its answer is cancelled.
    def grant(self, answer: tuple[int, int]) -> None:
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, failure: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(failure)


class RateLimiter:
    """Token buckets by name, in Redis or, while it is away, in this process."""

    def __init__(self, cache: Cache, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._cache = cache
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._wishes: deque[_Wish] = deque()
        self._asking: asyncio.Task[None] | None = None

    async def take(self, bucket: str, *, per_minute: int, policy: str = "default") -> Taken:
        """Take a token of the bucket; never raises.

        It waits no longer than Redis may take, for those who asked before and then for this.
        """
        interval_us = WINDOW_S * _US // per_minute
        try:
            left, full_in_us = await self._wish(bucket, interval_us, per_minute)
        except CacheAway:
            left, full_in_us = self._take_here(bucket, interval_us, per_minute)
        return Taken(
            policy=policy,
            limit=per_minute,
            remaining=max(left, 0),
            full_in_s=math.ceil(full_in_us / _US),
            retry_after_s=max(1, math.ceil(-left / _US)) if left < 0 else 0,
        )

    def _wish(
        self, bucket: str, interval_us: int, capacity: int
    ) -> asyncio.Future[tuple[int, int]]:
        answer: asyncio.Future[tuple[int, int]] = asyncio.get_running_loop().create_future()
        self._wishes.append(_Wish(bucket, interval_us, capacity, answer))
        if self._asking is None:
            # It begins when the event loop comes round, and so knows of all who ask until then.
            self._asking = asyncio.create_task(self._ask())
        return answer

    async def _ask(self) -> None:
        """Answer everybody who waits, and whoever comes meanwhile."""
        asked: list[_Wish] = []
        try:
            while self._wishes:
                asked = [
                    self._wishes.popleft() for _ in range(min(len(self._wishes), _MOST_AT_ONCE))
                ]
                try:
                    found = await self._cache.ask(partial(_run, asked))
                except Exception as failure:  # noqa: BLE001 - each who asked has it raised there
                    for wish in asked:
                        wish.fail(failure)
                else:
                    for wish, answer in zip(asked, found, strict=True):
                        wish.grant(answer)
        finally:
            # The loop may be closing: nobody is left waiting for what will not come.
            for wish in (*asked, *self._wishes):
                wish.answer.cancel()
            self._wishes.clear()
            self._asking = None

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


async def _run(asked: Sequence[_Wish], redis: Redis) -> list[tuple[int, int]]:
    keys = [f"giovang:rate-limit:{wish.bucket}" for wish in asked]
    numbers = [number for wish in asked for number in (wish.interval_us, wish.capacity)]
    try:
        found = await redis.evalsha(_TAKE_SHA, len(keys), *keys, *numbers)
    except NoScriptError:
        # Redis was started anew; EVAL gives it the script back.
        found = await redis.eval(_TAKE, len(keys), *keys, *numbers)
    return [
        (int(left), int(full_in_us))
        for left, full_in_us in zip(found[::2], found[1::2], strict=True)
    ]
