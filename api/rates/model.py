"""Rates, quotes and conversions, in decimals and integers only.

A rate is what the market shows, the mid. A quote is what we promise: the mid less the spread,
rounded down, so that the house never promises more than the market. Token amounts are rounded up
and what tokens are worth is rounded down; what lies between is booked, never lost.
"""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal

from pydantic import BaseModel, Field

from api.contract import DECIMALS, Asset

# The column is numeric(20, 8); beyond these a rate is a mistake in its source.
RATE_PLACES = 8
SMALLEST_RATE = Decimal("0.01")
LARGEST_RATE = Decimal(1_000_000_000)
WHOLE_BPS: Final = 10_000


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


@dataclass(frozen=True, slots=True)
class Quote:
    """A promise: one token counts as `value` units of the currency; the market says `mid`."""

    pair: str
    mid: Decimal
    value: Decimal
    spread_bps: int
    source: str
    observed_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Conversion:
    """What tokens become when they are taken at a quote; all in minor units, all at least 0.

    The desk values the tokens at mid. Of that value `settled_minor` is the merchant's, fee
    included, `spread_minor` is what the spread keeps, `rounding_minor` what rounding left over.
    """

    settled_minor: int
    spread_minor: int
    rounding_minor: int

    @property
    def value_minor(self) -> int:
        """What the tokens are worth at mid: the three parts together."""
        return self.settled_minor + self.spread_minor + self.rounding_minor


class QuoteView(BaseModel):
    """A quote as the API shows it."""

    object: Literal["rate"] = "rate"
    pair: str = Field(examples=["USDC/VND"])
    mid: str = Field(examples=["26150"], description="What the market shows for one token")
    value: str = Field(examples=["26019.25"], description="What a payment counts one token as")
    spread_bps: int = Field(examples=[50], description="1 % is 100")
    source: str = Field(examples=["file"])
    observed_at: datetime
    expires_at: datetime


class QuoteList(BaseModel):
    """The current quote of each pair."""

    object: Literal["list"] = "list"
    data: list[QuoteView]
    has_more: bool = False


def pair(asset: Asset, currency: str) -> str:
    """Return the name of a pair, as in `USDC/VND`."""
    return f"{asset.value}/{currency}"


def less_spread(mid: Decimal, spread_bps: int) -> Decimal:
    """Return a mid rate less its spread, rounded down to the places a rate has."""
    units = int(mid.scaleb(RATE_PLACES)) * (WHOLE_BPS - spread_bps) // WHOLE_BPS
    return Decimal(units).scaleb(-RATE_PLACES)


def token_amount_minor(amount_minor: int, currency: str, asset: Asset, rate: Decimal) -> int:
    """Return what `amount_minor` of the currency costs in the token's smallest units.

    Rounded up, so that what is paid is never worth less than what is owed.
    """
    numerator, denominator = rate.as_integer_ratio()
    token_unit, currency_unit = int(10 ** DECIMALS[asset]), int(10 ** DECIMALS[currency])
    return -(-amount_minor * token_unit * denominator // (numerator * currency_unit))


def worth_minor(token_minor: int, currency: str, asset: Asset, rate: Decimal) -> int:
    """Return what tokens are worth in the currency's minor units, rounded down."""
    numerator, denominator = rate.as_integer_ratio()
    token_unit, currency_unit = int(10 ** DECIMALS[asset]), int(10 ** DECIMALS[currency])
    return token_minor * numerator * currency_unit // (denominator * token_unit)


def convert(
    token_minor: int,
    settled_minor: int,
    *,
    currency: str,
    asset: Asset,
    mid: Decimal,
    quoted: Decimal,
) -> Conversion:
    """Split the worth of tokens taken for `settled_minor` at a quote.

    Raises ValueError where the tokens do not cover that amount, or the quote is above its mid.
    """
    if not 0 < quoted <= mid or worth_minor(token_minor, currency, asset, quoted) < settled_minor:
        raise ValueError("the tokens are worth less than they would be taken for")
    at_mid, at_quote = mid.as_integer_ratio(), quoted.as_integer_ratio()
    unspread_minor = settled_minor * at_mid[0] * at_quote[1] // (at_mid[1] * at_quote[0])
    worth = worth_minor(token_minor, currency, asset, mid)
    return Conversion(settled_minor, unspread_minor - settled_minor, worth - unspread_minor)


def decimal_string(amount_minor: int, asset: str) -> str:
    """Return integer minor units as the decimal string that people and programs read."""
    places = DECIMALS[asset]
    sign, digits = ("-" if amount_minor < 0 else ""), str(abs(amount_minor)).rjust(places + 1, "0")
    return sign + (digits if places == 0 else f"{digits[:-places]}.{digits[-places:]}")


def minor_units(text: str, asset: str) -> int | None:
    """Return a plain decimal string as integer minor units, or None where it is finer than those.

    The text has digits and at most one point; anything else raises ValueError.
    """
    whole, _, part = text.partition(".")
    places = DECIMALS[asset]
    if part.rstrip("0")[places:]:
        return None
    return int(whole) * int(10**places) + int(part[:places].ljust(places, "0") or "0")


def rate_string(rate: Decimal) -> str:
    """Return a rate without trailing zeros and without an exponent."""
    text = f"{rate:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def present(quote: Quote) -> QuoteView:
    """Return a quote as the API shows it."""
    return QuoteView(
        pair=quote.pair,
        mid=rate_string(quote.mid),
        value=rate_string(quote.value),
        spread_bps=quote.spread_bps,
        source=quote.source,
        observed_at=quote.observed_at,
        expires_at=quote.expires_at,
    )
