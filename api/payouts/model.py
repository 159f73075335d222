"""Payouts as rows, as request bodies, and as the API shows them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from api.rates.model import decimal_string
from api.security import Mode
from api.web import DongAmount, Strict, Text
from api.wording import id_pattern

PayoutId = Annotated[str, StringConstraints(pattern=id_pattern("pyo"))]
Destination = Annotated[Text, StringConstraints(min_length=1, max_length=200)]
BankReference = Annotated[Text, StringConstraints(min_length=1, max_length=200)]
Reason = Annotated[Text, StringConstraints(min_length=1, max_length=1000)]
Revision = Annotated[int, Field(ge=1, le=2**31 - 1, examples=[1])]

EXPIRED: Final = "expired"


class CreatePayout(Strict):
    """How much to pay out, and where to."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"amount": "1500000", "asset": "VND", "destination": "VCB 0071000123456"}]
        }
    )

    amount: DongAmount
    asset: Literal["VND"] = "VND"
    destination: Destination


class AmendPayout(Strict):
    """What to change about a payout nobody approved yet; what is left out stays."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"amount": "1200000", "revision": 1}]}
    )

    amount: DongAmount | None = None
    destination: Destination | None = None
    revision: Revision | None = Field(
        default=None, description="Amend this revision only, and none that came after it"
    )


class ApprovePayout(Strict):
    """Which revision is approved: the one that was read."""

    revision: Revision


class SendPayout(Strict):
    """By which transfer the bank knows it."""

    bank_reference: BankReference = Field(examples=["FT26326000123456"])


class FailPayout(Strict):
    """Why no money will arrive."""

    reason: Reason = Field(examples=["the bank knows no such account"])


@dataclass(frozen=True, slots=True)
class Payout:
    """A payout's row."""

    id: str
    merchant_id: str
    mode: Mode
    status: str
    amount_minor: int
    asset: str
    destination: str
    revision: int
    requested_by: str
    approved_by: str | None
    approved_revision: int | None
    approved_at: datetime | None
    bank_reference: str | None
    reason: str | None
    created_at: datetime
    status_at: datetime


class PayoutView(BaseModel):
    """A payout as the API shows it."""

    object: Literal["payout"] = "payout"
    id: str = Field(examples=["pyo_01jz8w5k6h7m9n0p2q3r4s5t6v"])
    merchant_id: str
    mode: str = Field(examples=["live"])
    status: str = Field(examples=["requested"])
    amount: str = Field(examples=["1500000"])
    asset: str = Field(examples=["VND"])
    destination: str = Field(examples=["VCB 0071000123456"])
    revision: int = Field(examples=[1], description="Each amendment is a revision of its own")
    requested_by: str = Field(description="Who asked for this revision: a key or a person")
    approved_by: str | None
    approved_at: datetime | None
    bank_reference: str | None
    reason: str | None = Field(description="Why it failed, or `expired` where nobody approved it")
    created_at: datetime
    status_at: datetime


class PayoutList(BaseModel):
    """A page of payouts."""

    object: Literal["list"] = "list"
    data: list[PayoutView]
    has_more: bool


def present(payout: Payout) -> PayoutView:
    """Return a payout as the API shows it."""
    return PayoutView(
        id=payout.id,
        merchant_id=payout.merchant_id,
        mode=payout.mode,
        status=payout.status,
        amount=decimal_string(payout.amount_minor, payout.asset),
        asset=payout.asset,
        destination=payout.destination,
        revision=payout.revision,
        requested_by=payout.requested_by,
        approved_by=payout.approved_by,
        approved_at=payout.approved_at,
        bank_reference=payout.bank_reference,
        reason=payout.reason,
        created_at=payout.created_at,
        status_at=payout.status_at,
    )


def present_list(payouts: list[Payout], *, has_more: bool) -> PayoutList:
    """Return a page of payouts as the API shows it."""
    return PayoutList(data=[present(payout) for payout in payouts], has_more=has_more)
