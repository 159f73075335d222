"""Redis as something that may be away: every use has a deadline and a way to do without it.

Redis holds nothing that cannot be lost. A command that fails raises CacheAway, and for a second
after it every other raises CacheAway at once, so that a Redis that hangs does not slow each request
down. That it is away is said in the log once a minute.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from infra.telemetry import get_logger

T = TypeVar("T")

_TIMEOUT_S: Final = 0.3
_REST_S: Final = 1.0
_SAY_EVERY_S: Final = 60.0
_log = get_logger(__name__)


class CacheAway(Exception):  # noqa: N818 - named by what it tells, as the room's refusals are
    """Redis does not answer; do without it."""


def connect(url: str) -> Redis:
    """Return a client whose commands end within a fraction of a second and are never repeated.

    Repeating is left to who knows whether it is worth it: a cache is faster to do without.
    """
    return Redis.from_url(
        url,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
    )


class Cache:
    """Commands to Redis that fail fast while it is away."""

    def __init__(self, redis: Redis, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._redis = redis
        self._clock = clock
        self._away_until = float("-inf")
        self._said_at = float("-inf")

    async def ask(self, command: Callable[[Redis], Awaitable[T]]) -> T:
        """Return what `command` gets from Redis; raises CacheAway where it gets nothing."""
        if self._clock() < self._away_until:
            raise CacheAway
        try:
            return await command(self._redis)
        except (RedisError, OSError) as failure:
            now = self._clock()
            self._away_until = now + _REST_S
            if now - self._said_at >= _SAY_EVERY_S:
                self._said_at = now
                _log.warning("redis is away, doing without", problem=type(failure).__name__)
            raise CacheAway from failure
