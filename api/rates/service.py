"""The current rate of a pair: from a provider, kept in Redis for a while, refused when stale.

Every API process sees the same rate while Redis keeps it. Where Redis does not answer, the provider
is asked each time. A rate older than the limit is never used: RateUnavailable says so, and no
payment is created at a price nobody stands behind.
"""

import json
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.contract import Asset
from api.errors import RateUnavailable
from api.rates.model import Rate, pair
from infra.telemetry import get_logger

_log = get_logger(__name__)
_CLOCK_TOLERANCE_S = 5


class RateProvider(Protocol):
    """Where rates come from."""

    async def rate(self, pair: str) -> Rate:
        """Return the newest rate of the pair; raises RateUnavailable where there is none."""


class FileRates:
    """Rates from a JSON file, for local use and for a desk that sets its own.

    `{"USDC/VND": "26150", "as_of": "2026-01-31T09:00:00+07:00"}`: values are strings. Without
    `as_of` the file is taken at its word each time it is read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def rate(self, pair: str) -> Rate:
        """Return the file's rate of the pair."""
        try:
            # A few hundred bytes from a local disk, read once per expiry of the cache.
            content = json.loads(self._path.read_bytes())
            value = content[pair]
            as_of = content.get("as_of")
            observed_at = datetime.now(UTC) if as_of is None else datetime.fromisoformat(as_of)
            return Rate(pair, _decimal(value), "file", observed_at)
        except (OSError, ValueError, KeyError, TypeError, InvalidOperation) as problem:
            _log.error("rates file is not usable", pair=pair, problem=type(problem).__name__)
            raise RateUnavailable(f"there is no rate for {pair}") from problem


def _decimal(value: object) -> Decimal:
    if not isinstance(value, str):
        raise TypeError("a rate is a string of digits, never a JSON number")
    return Decimal(value)


class Rates:
    """What quotes are made from."""

    def __init__(self, provider: RateProvider, cache: "Redis", *, max_age_s: int) -> None:
        self._provider = provider
        self._cache = cache
        self._max_age_s = max_age_s

    async def current(self, asset: Asset, currency: str) -> Rate:
        """Return a rate at most `max_age_s` old; raises RateUnavailable where there is none."""
        name = pair(asset, currency)
        rate = await self._cached(name)
        if rate is None or self._age_s(rate) > self._max_age_s:
            rate = await self._provider.rate(name)
            age_s = self._age_s(rate)
            if not -_CLOCK_TOLERANCE_S <= age_s <= self._max_age_s:
                raise RateUnavailable(f"the newest rate for {name} is out of date")
            await self._keep(rate)
        return rate

    def _age_s(self, rate: Rate) -> float:
        return (datetime.now(UTC) - rate.observed_at).total_seconds()

    async def _cached(self, name: str) -> Rate | None:
        try:
            kept = await self._cache.get(f"giovang:rate:{name}")
        except RedisError as problem:
            _log.warning("rate cache not reachable", problem=type(problem).__name__)
            return None
        if kept is None:
            return None
        value, source, observed_at = json.loads(kept)
        return Rate(name, Decimal(value), source, datetime.fromisoformat(observed_at))

    async def _keep(self, rate: Rate) -> None:
        kept = json.dumps([str(rate.value), rate.source, rate.observed_at.isoformat()])
        try:
            await self._cache.set(f"giovang:rate:{rate.pair}", kept, ex=self._max_age_s)
        except RedisError as problem:
            _log.warning("rate cache not reachable", problem=type(problem).__name__)
