"""Quote arithmetic in integers, and rates that are refused rather than guessed."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.contract import Asset
from api.errors import RateUnavailable
from api.rates.model import Rate, decimal_string, pair, rate_string, token_amount_minor
from api.rates.service import FileRates

RATES = st.decimals(min_value=Decimal("0.01"), max_value=Decimal(10**9), places=8)


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
