"""Merchants, as rows and as request and response bodies."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal
from zoneinfo import available_timezones

from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from api.web import Country, Strict, Text
from api.wording import id_pattern

MerchantId = Annotated[str, StringConstraints(pattern=id_pattern("mer"))]


def _known_timezone(name: str) -> str:
    if name not in available_timezones():
        raise ValueError("not a time zone of the IANA database")
    return name


Name = Annotated[Text, StringConstraints(min_length=1, max_length=200)]
Timezone = Annotated[str, AfterValidator(_known_timezone)]
ToleranceBps = Annotated[
    int,
    Field(
        ge=0,
        le=1000,
        description="how much less than the price still completes a payment; 1 % is 100",
    ),
]
EscrowDays = Annotated[
    int, Field(ge=1, le=60, description="after how many days escrow is released by itself")
]


class MerchantBody(Strict):
    """What an admin says about a merchant."""

    name: Name = Field(examples=["Cà phê Sông Hàn"])
    trade: Annotated[Text, StringConstraints(min_length=1, max_length=100)] = Field(
        examples=["cafe"]
    )
    timezone: Timezone = "Asia/Ho_Chi_Minh"
    country: Country = "VN"
    fee_bps: int = Field(default=100, ge=0, le=10_000, description="1 % is 100")
    # What an owner may set too stays as it is where the admin says nothing.
    tolerance_bps: ToleranceBps | None = None
    escrow_days: EscrowDays | None = None


class MerchantChange(Strict):
    """What owners may change about their merchant; what is left out stays."""

    name: Name | None = None
    timezone: Timezone | None = None
    tolerance_bps: ToleranceBps | None = None
    escrow_days: EscrowDays | None = None


class MerchantView(BaseModel):
    """A merchant as the API shows it."""

    object: Literal["merchant"] = "merchant"
    id: str = Field(examples=["mer_01jz8w5k6h7m9n0p2q3r4s5t6v"])
    name: str
    trade: str
    timezone: str
    country: str
    fee_bps: int
    tolerance_bps: int
    escrow_days: int
    created_at: datetime
    updated_at: datetime


class MerchantList(BaseModel):
    """A page of merchants, newest first."""

    object: Literal["list"] = "list"
    data: list[MerchantView]
    has_more: bool


@dataclass(frozen=True, slots=True)
class Merchant:
    """A merchant's row."""

    id: str
    name: str
    trade: str
    timezone: str
    country: str
    fee_bps: int
    tolerance_bps: int
    escrow_days: int
    created_at: datetime
    updated_at: datetime
