"""Quote arithmetic in integers, and rates that are refused rather than guessed."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import RedisError

from api.contract import Asset
from api.errors import RateUnavailable
from api.rates.model import (
    Rate,
    convert,
    decimal_string,
    less_spread,
    minor_units,
    pair,
    rate_string,
    token_amount_minor,
    worth_minor,
)
from api.rates.service import FallbackRates, FileRates, Rates, StaticRates

RATES = st.decimals(min_value=Decimal("0.01"), max_value=Decimal(10**9), places=8)
SPREADS = st.integers(0, 2_000)


def test_the_quote_of_the_readme() -> None:
    minor = token_amount_minor(250_000, "VND", Asset.USDC, Decimal(26150))
    assert decimal_string(minor, "USDC") == "9.560230"


def test_an_exact_quote_is_not_rounded_up() -> None:
    assert token_amount_minor(2_300_000, "VND", Asset.USDT, Decimal(23000)) == 100_000_000


@given(amount=st.integers(1, 10**13 - 1), rate=RATES)
def test_a_quote_covers_the_price_by_less_than_one_unit(amount: int, rate: Decimal) -> None:
    minor = token_amount_minor(amount, "VND", Asset.USDC, rate)
    # In exact integers: minor * rate / 10^6 >= amount > (minor - 1) * rate / 10^6.
    numerator, denominator = rate.as_integer_ratio()
    owed = amount * 10**6 * denominator
    assert (minor - 1) * numerator < owed <= minor * numerator


@given(minor=st.integers(-(10**18), 10**18), asset=st.sampled_from(["USDC", "VND", "USD"]))
def test_decimal_strings_lose_nothing(minor: int, asset: str) -> None:
    text = decimal_string(minor, asset)
    places = {"USDC": 6, "VND": 0, "USD": 2}[asset]
    assert Decimal(text) * 10**places == minor
    assert len(text.partition(".")[2]) == places


@given(minor=st.integers(0, 10**18), asset=st.sampled_from(["USDC", "VND", "USD"]))
def test_decimal_strings_are_read_back(minor: int, asset: str) -> None:
    assert minor_units(decimal_string(minor, asset), asset) == minor
    assert (
        minor_units(decimal_string(minor, asset) + ("00" if asset != "VND" else ".0"), asset)
        == minor
    )
    assert minor_units("1.0000001", asset) is None


@given(mid=RATES, bps=SPREADS)
def test_a_quote_is_the_mid_less_the_spread_rounded_down(mid: Decimal, bps: int) -> None:
    quoted = less_spread(mid, bps)
    exact = mid.as_integer_ratio()[0] * (10_000 - bps), mid.as_integer_ratio()[1] * 10_000
    numerator, denominator = quoted.as_integer_ratio()
    assert numerator * exact[1] <= exact[0] * denominator
    # Less than one unit of the last place below it.
    step = (numerator * 10**8 + denominator, denominator * 10**8)
    assert step[0] * exact[1] > exact[0] * step[1]
    assert quoted == mid if bps == 0 else quoted <= mid


@given(amount=st.integers(1, 10**13 - 1), mid=RATES, bps=SPREADS, more=st.integers(0, 10**9))
def test_every_dong_of_a_conversion_has_its_place(
    amount: int, mid: Decimal, bps: int, more: int
) -> None:
    quoted = less_spread(mid, bps)
    if quoted == 0:
        return
    tokens = token_amount_minor(amount, "VND", Asset.USDC, quoted) + more
    parts = convert(tokens, amount, currency="VND", asset=Asset.USDC, mid=mid, quoted=quoted)
    assert parts.settled_minor == amount
    assert min(parts.spread_minor, parts.rounding_minor) >= 0
    assert parts.value_minor == worth_minor(tokens, "VND", Asset.USDC, mid)
    if bps == 0:
        assert parts.spread_minor == 0


@given(tokens=st.integers(1, 10**12), mid=RATES, bps=SPREADS)
def test_what_tokens_are_worth_can_always_be_settled(tokens: int, mid: Decimal, bps: int) -> None:
    quoted = less_spread(mid, bps)
    if quoted == 0:
        return
    worth = worth_minor(tokens, "VND", Asset.USDT, quoted)
    # And asking for exactly that costs no more than those tokens.
    assert worth == 0 or token_amount_minor(worth, "VND", Asset.USDT, quoted) <= tokens
    parts = convert(tokens, worth, currency="VND", asset=Asset.USDT, mid=mid, quoted=quoted)
    assert min(parts.spread_minor, parts.rounding_minor) >= 0


def test_the_example_of_the_mission_leaves_no_rest() -> None:
    rate = Decimal(23_000)
    parts = convert(100_000_000, 2_300_000, currency="VND", asset=Asset.USDT, mid=rate, quoted=rate)
    assert (parts.settled_minor, parts.spread_minor, parts.rounding_minor) == (2_300_000, 0, 0)


def test_a_spread_of_half_a_percent_is_the_houses() -> None:
    mid = Decimal(26_150)
    quoted = less_spread(mid, 50)
    assert quoted == Decimal("26019.25")
    tokens = token_amount_minor(250_000, "VND", Asset.USDC, quoted)
    parts = convert(tokens, 250_000, currency="VND", asset=Asset.USDC, mid=mid, quoted=quoted)
    assert (parts.spread_minor, parts.rounding_minor) == (1_256, 0)


def test_tokens_are_never_taken_for_more_than_they_are_worth() -> None:
    rate = Decimal(23_000)
    with pytest.raises(ValueError, match="worth less"):
        convert(99_999_999, 2_300_000, currency="VND", asset=Asset.USDT, mid=rate, quoted=rate)


def test_rates_are_shown_plainly() -> None:
    assert rate_string(Decimal("26150.00000000")) == "26150"
    assert rate_string(Decimal("26150.50000000")) == "26150.5"
    assert rate_string(Decimal("1E+3")) == "1000"


@pytest.mark.parametrize("value", ["0", "-1", "NaN", "Infinity", "1e12", "1.123456789"])
def test_an_implausible_rate_cannot_be_built(value: str) -> None:
    with pytest.raises(ValueError, match="USDC/VND"):
        Rate("USDC/VND", Decimal(value), "test", datetime.now(UTC))


async def test_the_file_in_the_house_has_both_pairs() -> None:
    import api.rates  # noqa: PLC0415

    file = FileRates(Path(api.rates.__file__).parent / "local.json")
    for asset in Asset:
        rate = await file.rate(pair(asset, "VND"))
        assert rate.source == "file"
        assert rate.value > 20_000


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"USDC/VND": 26150}',
        '{"USDC/VND": "many"}',
        '{"USDC/VND": "-1"}',
        '{"USDC/VND": "26150", "as_of": "yesterday"}',
        '{"USDC/VND": "26150", "as_of": "2026-01-31T09:00:00"}',
    ],
)
async def test_a_file_that_is_not_right_gives_no_rate(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rates.json"
    path.write_text(content)
    with pytest.raises(RateUnavailable, match="USDC/VND"):
        await FileRates(path).rate("USDC/VND")


async def test_a_missing_file_gives_no_rate(tmp_path: Path) -> None:
    with pytest.raises(RateUnavailable):
        await FileRates(tmp_path / "nothing.json").rate("USDC/VND")


async def test_a_dated_file_keeps_its_date(tmp_path: Path) -> None:
    as_of = datetime.now(UTC) - timedelta(hours=1)
    path = tmp_path / "rates.json"
    path.write_text(json.dumps({"USDC/VND": "26150.5", "as_of": as_of.isoformat()}))
    rate = await FileRates(path).rate("USDC/VND")
    assert (rate.value, rate.observed_at) == (Decimal("26150.5"), as_of)


# Providers, and what is kept of them.


class Counted:
    """A provider of one rate that counts how often it is asked, and may be old or silent."""

    def __init__(self, value: str | None, *, age: timedelta = timedelta()) -> None:
        self.value = value
        self.age = age
        self.asked = 0

    async def rate(self, pair: str) -> Rate:
        self.asked += 1
        if self.value is None:
            raise RateUnavailable(f"there is no rate for {pair}")
        return Rate(pair, Decimal(self.value), "counted", datetime.now(UTC) - self.age)


class Shelf:
    """What the cache keeps, in a dictionary: stands in for Redis."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.read = 0
        self.is_away = False

    async def get(self, key: str) -> str | None:
        self.read += 1
        if self.is_away:
            raise RedisError("away")
        return self.kept.get(key)

    async def set(self, key: str, value: str, *, ex: int) -> None:
        assert ex == 60
        if self.is_away:
            raise RedisError("away")
        self.kept[key] = value


def rates_from(provider: Any, shelf: Shelf, **spreads: Any) -> Rates:
    return Rates(provider, cast("Any", shelf), max_age_s=60, **spreads)


async def test_a_static_rate_is_always_of_now() -> None:
    provider = StaticRates({"USDC/VND": "26150.5"})
    rate = await provider.rate("USDC/VND")
    assert (rate.value, rate.source) == (Decimal("26150.5"), "static")
    with pytest.raises(RateUnavailable, match="USDT/VND"):
        await provider.rate("USDT/VND")
    for value in ("many", "-1"):
        with pytest.raises(ValueError, match=r"decimal|plausible"):
            StaticRates({"USDC/VND": value})


async def test_the_first_source_with_a_current_rate_is_believed() -> None:
    silent, old, good, spare = (
        Counted(None),
        Counted("1", age=timedelta(minutes=2)),
        Counted("26150"),
        Counted("2"),
    )
    ranked = FallbackRates([silent, old, good, spare], max_age_s=60)
    assert (await ranked.rate("USDC/VND")).value == 26_150
    assert [one.asked for one in (silent, old, good, spare)] == [1, 1, 1, 0]


@pytest.mark.parametrize("age", [timedelta(minutes=2), timedelta(seconds=-30)])
async def test_a_rate_of_another_time_makes_no_quote(age: timedelta) -> None:
    stale = Counted("26150", age=age)
    with pytest.raises(RateUnavailable, match="out of date"):
        await FallbackRates([stale], max_age_s=60).rate("USDC/VND")
    with pytest.raises(RateUnavailable, match="out of date"):
        await rates_from(stale, Shelf()).quote(Asset.USDC, "VND")


async def test_a_burst_of_quotes_asks_the_cache_once() -> None:
    provider, shelf = Counted("26150"), Shelf()
    rates = rates_from(provider, shelf)
    quotes = await asyncio.gather(*(rates.quote(Asset.USDC, "VND") for _ in range(50)))
    assert {quote.value for quote in quotes} == {Decimal(26_150)}
    assert (provider.asked, shelf.read) == (1, 1)
    # Another process finds what this one kept.
    again = rates_from(provider, shelf)
    assert (await again.quote(Asset.USDC, "VND")).mid == 26_150
    assert (provider.asked, shelf.read) == (1, 2)


async def test_without_the_cache_the_sources_are_asked() -> None:
    provider, shelf = Counted("26150"), Shelf()
    shelf.is_away = True
    quote = await rates_from(provider, shelf).quote(Asset.USDC, "VND")
    assert (quote.mid, provider.asked) == (Decimal(26_150), 1)


async def test_a_pair_may_have_a_spread_of_its_own() -> None:
    spreads = {"spread_bps": 50, "spread_bps_of_pair": {"USDT/VND": 100}}
    rates = rates_from(Counted("26150"), Shelf(), **spreads)
    of_usdc, of_usdt = [await rates.quote(asset, "VND") for asset in (Asset.USDC, Asset.USDT)]
    assert (of_usdc.value, of_usdc.spread_bps) == (Decimal("26019.25"), 50)
    assert (of_usdt.value, of_usdt.spread_bps) == (Decimal("25888.5"), 100)
    assert of_usdc.mid == of_usdt.mid == 26_150
    assert of_usdc.expires_at - of_usdc.observed_at == timedelta(seconds=60)
