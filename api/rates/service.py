"""The current quote of a pair: from providers in order, kept for a while, refused when stale.

Every API process sees the same rate while Redis keeps it, and asks Redis at most once a second, so
that creating a payment does not wait for it. Where Redis does not answer, the providers are asked.
A rate older than the limit is never used: RateUnavailable says so, and no payment is created at a
price nobody stands behind.
"""

import asyncio
import hashlib
import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Final, Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.contract import Asset
from api.errors import RateUnavailable
from api.rates.model import Quote, Rate, less_spread, pair
from api.settings import ApiSettings
from infra.telemetry import get_logger

_log = get_logger(__name__)
_CLOCK_TOLERANCE_S = 5
_PROVIDER_DEADLINE_S = 5.0
_KEPT_IN_PROCESS_S: Final = 1.0


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


class StaticRates:
    """Rates from the settings, which hold until the process ends; malformed ones fail at start."""

    def __init__(self, rates: Mapping[str, str]) -> None:
        try:
            self._rates = {
                name: Rate(name, Decimal(value), "static", datetime.now(UTC)).value
                for name, value in rates.items()
            }
        except InvalidOperation as problem:
            raise ValueError("a static rate is a plain decimal") from problem

    async def rate(self, pair: str) -> Rate:
        """Return the pair's rate as of now."""
        if pair not in self._rates:
            raise RateUnavailable(f"there is no rate for {pair}")
        return Rate(pair, self._rates[pair], "static", datetime.now(UTC))


class FallbackRates:
    """Several providers in the order of their rank: the first with a current rate is believed."""

    def __init__(self, providers: Sequence[RateProvider], *, max_age_s: int) -> None:
        if not providers:
            raise ValueError("rates need at least one source")
        self._providers = tuple(providers)
        self._max_age_s = max_age_s

    async def rate(self, pair: str) -> Rate:
        """Return the first current rate; raises RateUnavailable of the last provider asked."""
        refusal = RateUnavailable(f"there is no rate for {pair}")
        for provider in self._providers:
            try:
                async with asyncio.timeout(_PROVIDER_DEADLINE_S):
                    rate = await provider.rate(pair)
                if is_current(rate, max_age_s=self._max_age_s):
                    return rate
                refusal = RateUnavailable(f"the newest rate for {pair} is out of date")
            except RateUnavailable as problem:
                refusal = problem
            except TimeoutError:
                refusal = RateUnavailable(f"the source of {pair} does not answer")
            _log.warning("rate source passed over", pair=pair, problem=refusal.detail)
        raise refusal


def is_current(rate: Rate, *, max_age_s: float) -> bool:
    """Say whether a rate is neither too old nor from the future."""
    age_s = (datetime.now(UTC) - rate.observed_at).total_seconds()
    return -_CLOCK_TOLERANCE_S <= age_s <= max_age_s


class Rates:
    """What quotes are made from."""

    def __init__(
        self,
        provider: RateProvider,
        cache: "Redis",
        *,
        max_age_s: int,
        sources: str = "",
        spread_bps: int = 0,
        spread_bps_of_pair: Mapping[str, int] | None = None,
    ) -> None:
        self._provider = provider
        self._cache = cache
        self._max_age_s = max_age_s
        # Processes told of other sources keep their rates apart.
        self._shelf = f"giovang:rate:{hashlib.sha256(sources.encode()).hexdigest()[:12]}"
        self._spread_bps = spread_bps
        self._spread_bps_of_pair = dict(spread_bps_of_pair or {})
        # pair: the rate, and when the process last asked for it. Pairs are few and fixed.
        self._at_hand: dict[str, tuple[Rate, float]] = {}
        self._asking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def quote(self, asset: Asset, currency: str) -> Quote:
        """Return a quote on a rate at most `max_age_s` old; raises RateUnavailable."""
        name = pair(asset, currency)
        rate = self._held(name)
        if rate is None:
            async with self._asking[name]:
                rate = self._held(name) or await self._ask(name)
        spread_bps = self._spread_bps_of_pair.get(name, self._spread_bps)
        return Quote(
            pair=name,
            mid=rate.value,
            value=less_spread(rate.value, spread_bps),
            spread_bps=spread_bps,
            source=rate.source,
            observed_at=rate.observed_at,
            expires_at=rate.observed_at + timedelta(seconds=self._max_age_s),
        )

    def _held(self, name: str) -> Rate | None:
        rate, asked_at = self._at_hand.get(name, (None, 0.0))
        if rate is None or time.monotonic() - asked_at > _KEPT_IN_PROCESS_S:
            return None
        return rate if is_current(rate, max_age_s=self._max_age_s) else None

    async def _ask(self, name: str) -> Rate:
        rate = await self._cached(name)
        if rate is None or not is_current(rate, max_age_s=self._max_age_s):
            rate = await self._provider.rate(name)
            if not is_current(rate, max_age_s=self._max_age_s):
                raise RateUnavailable(f"the newest rate for {name} is out of date")
            await self._keep(rate)
        self._at_hand[name] = (rate, time.monotonic())
        return rate

    async def _cached(self, name: str) -> Rate | None:
        try:
            kept = await self._cache.get(f"{self._shelf}:{name}")
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
            await self._cache.set(f"{self._shelf}:{rate.pair}", kept, ex=self._max_age_s)
        except RedisError as problem:
            _log.warning("rate cache not reachable", problem=type(problem).__name__)


def rates_of(settings: ApiSettings, cache: "Redis") -> Rates:
    """Return the rates that the settings describe; raises ValueError where they make no sense."""
    providers: dict[str, RateProvider] = {
        "file": FileRates(settings.rates_file),
        "static": StaticRates(settings.rates_static),
    }
    ranked = [providers[name] for name in settings.rates_sources]
    return Rates(
        FallbackRates(ranked, max_age_s=settings.rates_max_age_s),
        cache,
        max_age_s=settings.rates_max_age_s,
        sources=repr((settings.rates_sources, settings.rates_file, settings.rates_static)),
        spread_bps=settings.rates_spread_bps,
        spread_bps_of_pair=settings.rates_spread_bps_of_pair,
    )
