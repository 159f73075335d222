"""Payments and refunds as rows, as request bodies, and as the API shows them."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints

from api.chain.solana_pay import pay_url
from api.contract import Asset
from api.database import ID_BODY
from api.rates.model import decimal_string, rate_string
from api.web import Strict, Text

PaymentId = Annotated[str, StringConstraints(pattern=f"^pay_{ID_BODY}$")]
# Thirteen digits fit numeric(15, 2) in the warehouse.
DongAmount = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,12}$")]

DEFAULT_EXPIRY_S: Final = 15 * 60
EXAMPLE_PAYMENT: Final[dict[str, JsonValue]] = {
    "amount": "250000",
    "currency": "VND",
    "asset": "USDC",
    "description": "Two iced coffees",
    "order_id": "1042",
    "payer_country": "VN",
    "metadata": {"table": "7"},
    "expires_in_s": 900,
}


class CreatePayment(Strict):
    """What a payment request says."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_PAYMENT]})

    amount: DongAmount = Field(description="Whole dong, as a string of digits")
    currency: Literal["VND"] = "VND"
    asset: Literal["USDC", "USDT"] = Field(description="The token the payer pays in")
    description: Annotated[Text, StringConstraints(max_length=500)] | None = None
    order_id: Annotated[Text, StringConstraints(max_length=100)] | None = None
    payer_country: Annotated[str, StringConstraints(pattern=r"^[A-Z]{2}$")] | None = None
    metadata: dict[
        Annotated[Text, StringConstraints(min_length=1, max_length=40)],
        Annotated[Text, StringConstraints(max_length=500)],
    ] = Field(default_factory=dict, max_length=50)
    expires_in_s: int = Field(default=DEFAULT_EXPIRY_S, ge=5, le=86_400)


class CreateRefund(Strict):
    """How much of a payment goes back, and why."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"amount": "50000", "reason": "one coffee too many"}]}
    )

    amount: DongAmount
    reason: Annotated[Text, StringConstraints(max_length=500)] | None = None


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment's row."""

    id: str
    merchant_id: str
    mode: str
    status: str
    exception: str | None
    amount_minor: int
    currency: str
    asset: str
    asset_amount_minor: int
    received_minor: int
    rate: Decimal
    rate_source: str
    chain: str
    recipient: str
    mint: str
    reference: str
    payer_address: str | None
    payer_country: str | None
    description: str | None
    order_id: str | None
    metadata: dict[str, Any]
    fee_minor: int
    created_at: datetime
    expires_at: datetime
    status_at: datetime
    completed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Refund:
    """A refund's row; the amount is in the payment's currency."""

    id: str
    merchant_id: str
    payment_id: str
    status: str
    amount_minor: int
    asset: str
    reason: str | None
    created_at: datetime
    status_at: datetime


class RateView(BaseModel):
    """The rate a payment is locked at, until its end."""

    value: str = Field(examples=["26150"])
    source: str = Field(examples=["file"])
    expires_at: datetime


class PaymentView(BaseModel):
    """A payment as the API shows it; amounts are decimal strings."""

    object: Literal["payment"] = "payment"
    id: str = Field(examples=["pay_01jz8w5k6h7m9n0p2q3r4s5t6v"])
    merchant_id: str
    mode: str
    status: str = Field(examples=["created"])
    exception: str | None
    amount: str = Field(examples=["250000"])
    currency: str
    asset: str
    asset_amount: str = Field(examples=["9.560230"])
    received: str = Field(examples=["0.000000"])
    rate: RateView
    chain: str
    recipient: str
    mint: str
    reference: str
    pay_url: str
    checkout_url: str
    payer_address: str | None
    payer_country: str | None
    description: str | None
    order_id: str | None
    metadata: dict[str, str]
    fee: str = Field(examples=["0"])
    created_at: datetime
    expires_at: datetime
    status_at: datetime
    completed_at: datetime | None


class PaymentList(BaseModel):
    """A page of payments, newest first; `has_more` in the direction asked for."""

    object: Literal["list"] = "list"
    data: list[PaymentView]
    has_more: bool


class RefundView(BaseModel):
    """A refund as the API shows it."""

    object: Literal["refund"] = "refund"
    id: str
    payment_id: str
    status: str = Field(examples=["requested"])
    amount: str = Field(examples=["50000"])
    currency: str
    reason: str | None
    created_at: datetime
    status_at: datetime


def link_of(payment: Payment, merchant_name: str) -> str:
    """Return the Solana Pay link of a payment."""
    return pay_url(
        recipient=payment.recipient,
        amount=decimal_string(payment.asset_amount_minor, payment.asset),
        mint=payment.mint,
        reference=payment.reference,
        label=merchant_name,
        message=payment.description,
    )


def present(payment: Payment, *, merchant_name: str, public_url: str) -> PaymentView:
    """Return a payment as the API shows it."""
    return PaymentView(
        id=payment.id,
        merchant_id=payment.merchant_id,
        mode=payment.mode,
        status=payment.status,
        exception=payment.exception,
        amount=decimal_string(payment.amount_minor, payment.currency),
        currency=payment.currency,
        asset=payment.asset,
        asset_amount=decimal_string(payment.asset_amount_minor, payment.asset),
        received=decimal_string(payment.received_minor, payment.asset),
        rate=RateView(
            value=rate_string(payment.rate),
            source=payment.rate_source,
            expires_at=payment.expires_at,
        ),
        chain=payment.chain,
        recipient=payment.recipient,
        mint=payment.mint,
        reference=payment.reference,
        pay_url=link_of(payment, merchant_name),
        checkout_url=f"{public_url}/order/{payment.id}",
        payer_address=payment.payer_address,
        payer_country=payment.payer_country,
        description=payment.description,
        order_id=payment.order_id,
        metadata=payment.metadata,
        fee=decimal_string(payment.fee_minor, payment.currency),
        created_at=payment.created_at,
        expires_at=payment.expires_at,
        status_at=payment.status_at,
        completed_at=payment.completed_at,
    )


def present_refund(refund: Refund) -> RefundView:
    """Return a refund as the API shows it."""
    return RefundView(
        id=refund.id,
        payment_id=refund.payment_id,
        status=refund.status,
        amount=decimal_string(refund.amount_minor, refund.asset),
        currency=refund.asset,
        reason=refund.reason,
        created_at=refund.created_at,
        status_at=refund.status_at,
    )


def asset_of(payment: Payment) -> Asset:
    """Return the token a payment is paid in."""
    return Asset(payment.asset)
