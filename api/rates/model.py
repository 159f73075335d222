"""Rates and quote arithmetic, in decimals and integers only."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from api.contract import DECIMALS, Asset

# The column is numeric(20, 8); beyond these a rate is a mistake in its source.
RATE_PLACES = 8
SMALLEST_RATE = Decimal("0.01")
LARGEST_RATE = Decimal(1_000_000_000)


@dataclass(frozen=True, slots=True)
class Rate:
    """How many units of a currency one token is worth, who said so, and when."""

    pair: str
    value: Decimal
    source: str
    observed_at: datetime

    def __post_init__(self) -> None:
        """Refuse a rate that no market shows or the ledger could not hold exactly."""
        if not self.value.is_finite() or not SMALLEST_RATE <= self.value <= LARGEST_RATE:
            raise ValueError(f"{self.pair}: not a plausible rate")
        if self.value != round(self.value, RATE_PLACES):
            raise ValueError(f"{self.pair}: more than {RATE_PLACES} decimal places")
        if self.observed_at.tzinfo is None:
            raise ValueError(f"{self.pair}: the moment of observation needs a time zone")


def pair(asset: Asset, currency: str) -> str:
    """Return the name of a pair, as in `USDC/VND`."""
    return f"{asset.value}/{currency}"


def token_amount_minor(amount_minor: int, currency: str, asset: Asset, rate: Decimal) -> int:
    """Return what `amount_minor` of the currency costs in the token's smallest units.

    Rounded up, so that what is paid is never worth less than what is owed.
    """
    numerator, denominator = rate.as_integer_ratio()
    token_unit, currency_unit = int(10 ** DECIMALS[asset]), int(10 ** DECIMALS[currency])
    return -(-amount_minor * token_unit * denominator // (numerator * currency_unit))


def decimal_string(amount_minor: int, asset: str) -> str:
    """Return integer minor units as the decimal string that people and programs read."""
    places = DECIMALS[asset]
    sign, digits = ("-" if amount_minor < 0 else ""), str(abs(amount_minor)).rjust(places + 1, "0")
    return sign + (digits if places == 0 else f"{digits[:-places]}.{digits[-places:]}")


def rate_string(rate: Decimal) -> str:
    """Return a rate without trailing zeros and without an exponent."""
    text = f"{rate:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
