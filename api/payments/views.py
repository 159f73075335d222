"""Payments, refunds, disputes, transfers and events as the API shows them.

Amounts are decimal strings. A payment's parts (`expand[]`) are there only where they were asked
for. An event carries its subject as the API showed it at that moment, and so does a webhook.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Final, Literal

import orjson
from pydantic import BaseModel, Field

from api.chain.model import Transfer
from api.chain.watch_store import RecordedStray
from api.payments.model import Dispute, Payment, Refund, due_minor, link_of, request_link_of
from api.payouts.model import PayoutView
from api.rates.model import decimal_string, rate_string
from api.settings import ChainSettings

ListExpansion = Literal["refunds", "dispute", "transfers", "strays"]
Expansion = Literal["events", ListExpansion]
EXPANSIONS: Final[tuple[Expansion, ...]] = (
    "events",
    "refunds",
    "dispute",
    "transfers",
    "strays",
)
# JSON text holds no control character as it is, so nothing else in it can be taken for these.
CREATED_MARK: Final = orjson.Fragment('"\x01"')
EXPIRES_MARK: Final = orjson.Fragment('"\x02"')


class RateView(BaseModel):
    """The rate a payment is locked at, until its end."""

    value: str = Field(examples=["26150"])
    mid: str | None = Field(examples=["26150"], description="What the market showed")
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
    exception_outcome: str | None
    amount: str = Field(examples=["250000"])
    currency: str
    asset: str
    asset_amount: str = Field(examples=["9.560230"])
    received: str = Field(examples=["0.000000"])
    amount_due: str = Field(
        examples=["9.560230"], description="Tokens still due; negative where too many came"
    )
    settled: str = Field(
        examples=["0"], description="Dong credited to you, fee included, or held in escrow for you"
    )
    rate: RateView
    chain: str
    recipient: str
    mint: str
    reference: str
    pay_url: str = Field(description="Solana Pay transfer request of what is still due")
    pay_request_url: str | None = Field(
        examples=["solana:https://pay.example.com/order/pay_01jz8w5k6h7m9n0p2q3r4s5t6v/pay"],
        description="Solana Pay transaction request; null where this server has no https address",
    )
    checkout_url: str
    payer_address: str | None
    payer_country: str | None
    description: str | None
    order_id: str | None
    metadata: dict[str, str]
    fee: str = Field(examples=["0"])
    is_escrow: bool
    escrow_release_due_at: datetime | None
    escrow_released_at: datetime | None
    escrow_released_by: str | None = Field(examples=["payer"])
    created_at: datetime
    expires_at: datetime
    status_at: datetime
    completed_at: datetime | None


class RefundView(BaseModel):
    """A refund as the API shows it."""

    object: Literal["refund"] = "refund"
    id: str = Field(examples=["rfd_01jz8w5k6h7m9n0p2q3r4s5t6v"])
    merchant_id: str
    payment_id: str
    status: str = Field(examples=["requested"])
    source: str = Field(examples=["payment"])
    amount: str = Field(examples=["50000"])
    currency: str = Field(examples=["VND"])
    token: str = Field(examples=["USDC"])
    token_amount: str = Field(examples=["1.912046"], description="What is sent")
    destination: str | None
    signature: str | None
    reason: str | None
    failure_reason: str | None
    requested_by: str
    created_at: datetime
    status_at: datetime


class DisputeView(BaseModel):
    """A dispute as the API shows it."""

    object: Literal["dispute"] = "dispute"
    id: str = Field(examples=["dsp_01jz8w5k6h7m9n0p2q3r4s5t6v"])
    merchant_id: str
    payment_id: str
    opened_by: str = Field(examples=["payer"])
    reason: str
    opened_at: datetime
    outcome: str | None
    merchant_amount: str | None = Field(examples=["1000000"])
    resolution_reason: str | None
    resolved_at: datetime | None


class TransferView(BaseModel):
    """Tokens that one chain transaction brought us."""

    object: Literal["transfer"] = "transfer"
    id: str = Field(description="Signature and token account")
    signature: str
    token_account: str
    payment_id: str | None
    payer_address: str | None
    asset: str | None = Field(examples=["USDC"])
    amount: str = Field(examples=["9.560230"])
    commitment: str = Field(examples=["finalized"])
    slot: int
    block_time: datetime | None
    recorded_at: datetime


class StrayView(BaseModel):
    """A chain transaction that carries a payment's reference and brought nothing we take."""

    object: Literal["stray"] = "stray"
    signature: str
    kind: str = Field(
        examples=["wrong_token"],
        description="wrong_token, wrong_recipient, nothing, failed or unreadable",
    )
    mint: str | None = Field(description="Of the tokens, where any were sent")
    recipient: str | None = Field(description="Who has them now")
    amount_units: str | None = Field(
        examples=["1000000"], description="In the mint's smallest unit, whatever that is"
    )
    slot: int
    block_time: datetime | None
    recorded_at: datetime


class EventData(BaseModel):
    """What an event is about, as it was at that moment."""

    object: PaymentView | RefundView | PayoutView


class EventView(BaseModel):
    """One step of a payment, refund or payout; a webhook carries the same."""

    object: Literal["event"] = "event"
    id: str = Field(examples=["evt_01jz8w5k6h7m9n0p2q3r4s5t6v"])
    seq: int = Field(examples=[42], description="Without gaps, for each merchant and mode")
    type: str = Field(examples=["payment.completed"])
    mode: str
    created_at: datetime
    data: EventData


class ExpandedPayment(PaymentView):
    """A payment with the parts that were asked for; a part not asked for is absent."""

    events: list[EventView] | None = Field(default=None, description="With expand[]=events")
    refunds: list[RefundView] | None = Field(default=None, description="With expand[]=refunds")
    dispute: DisputeView | None = Field(default=None, description="With expand[]=dispute")
    transfers: list[TransferView] | None = Field(
        default=None, description="With expand[]=transfers"
    )
    strays: list[StrayView] | None = Field(default=None, description="With expand[]=strays")


class PaymentList(BaseModel):
    """A page of payments, newest first; `has_more` in the direction asked for."""

    object: Literal["list"] = "list"
    data: list[ExpandedPayment]
    has_more: bool


class RefundList(BaseModel):
    """A page of refunds, newest first; `has_more` in the direction asked for."""

    object: Literal["list"] = "list"
    data: list[RefundView]
    has_more: bool


class DisputeList(BaseModel):
    """A page of open disputes, oldest first; `has_more` in the direction asked for."""

    object: Literal["list"] = "list"
    data: list[DisputeView]
    has_more: bool


class EventList(BaseModel):
    """A page of events in the order asked for; `has_more` in the direction asked for."""

    object: Literal["list"] = "list"
    data: list[EventView]
    has_more: bool


class TransferList(BaseModel):
    """A page of transfers, newest first; `has_more` in the direction asked for."""

    object: Literal["list"] = "list"
    data: list[TransferView]
    has_more: bool


def present(payment: Payment, *, merchant_name: str, public_url: str) -> PaymentView:
    """Return a payment as the API shows it."""
    return PaymentView(
        id=payment.id,
        merchant_id=payment.merchant_id,
        mode=payment.mode,
        status=payment.status,
        exception=payment.exception,
        exception_outcome=payment.exception_outcome,
        amount=decimal_string(payment.amount_minor, payment.currency),
        currency=payment.currency,
        asset=payment.asset,
        asset_amount=decimal_string(payment.asset_amount_minor, payment.asset),
        received=decimal_string(payment.received_minor, payment.asset),
        amount_due=decimal_string(due_minor(payment), payment.asset),
        settled=decimal_string(payment.settled_minor, payment.currency),
        rate=RateView(
            value=rate_string(payment.rate),
            mid=None if payment.rate_mid is None else rate_string(payment.rate_mid),
            source=payment.rate_source,
            expires_at=payment.expires_at,
        ),
        chain=payment.chain,
        recipient=payment.recipient,
        mint=payment.mint,
        reference=payment.reference,
        pay_url=link_of(payment, merchant_name),
        pay_request_url=request_link_of(payment, public_url),
        checkout_url=f"{public_url}/order/{payment.id}",
        payer_address=payment.payer_address,
        payer_country=payment.payer_country,
        description=payment.description,
        order_id=payment.order_id,
        metadata=payment.metadata,
        fee=decimal_string(payment.fee_minor, payment.currency),
        is_escrow=payment.is_escrow,
        escrow_release_due_at=payment.escrow_release_due_at,
        escrow_released_at=payment.escrow_released_at,
        escrow_released_by=payment.escrow_released_by,
        created_at=payment.created_at,
        expires_at=payment.expires_at,
        status_at=payment.status_at,
        completed_at=payment.completed_at,
    )


def json_with_marks(view: PaymentView) -> str:
    """Return the JSON of a payment that PostgreSQL has yet to write, with marks for its moments."""
    content = view.model_dump()
    content["created_at"] = content["status_at"] = CREATED_MARK
    content["expires_at"] = content["rate"]["expires_at"] = EXPIRES_MARK
    return orjson.dumps(content).decode()


def present_refund(refund: Refund) -> RefundView:
    """Return a refund as the API shows it."""
    return RefundView(
        id=refund.id,
        merchant_id=refund.merchant_id,
        payment_id=refund.payment_id,
        status=refund.status,
        source=refund.source,
        amount=decimal_string(refund.amount_minor, refund.asset),
        currency=refund.asset,
        token=refund.token,
        token_amount=decimal_string(refund.token_amount_minor, refund.token),
        destination=refund.destination,
        signature=refund.signature,
        reason=refund.reason,
        failure_reason=refund.failure_reason,
        requested_by=refund.requested_by,
        created_at=refund.created_at,
        status_at=refund.status_at,
    )


def present_dispute(dispute: Dispute) -> DisputeView:
    """Return a dispute as the API shows it; who resolved it is in the audit."""
    merchant_minor = dispute.merchant_minor
    return DisputeView(
        id=dispute.id,
        merchant_id=dispute.merchant_id,
        payment_id=dispute.payment_id,
        opened_by=dispute.opened_by,
        reason=dispute.reason,
        opened_at=dispute.opened_at,
        outcome=dispute.outcome,
        merchant_amount=None if merchant_minor is None else decimal_string(merchant_minor, "VND"),
        resolution_reason=dispute.resolution_reason,
        resolved_at=dispute.resolved_at,
    )


def present_transfer(transfer: Transfer, settings: ChainSettings) -> TransferView:
    """Return a transfer as the API shows it."""
    asset = settings.asset(transfer.mint)
    return TransferView(
        id=f"{transfer.signature}:{transfer.token_account}",
        signature=transfer.signature,
        token_account=transfer.token_account,
        payment_id=transfer.payment_id,
        payer_address=transfer.payer_address,
        asset=asset,
        amount=decimal_string(transfer.amount_minor, asset),
        commitment=transfer.commitment,
        slot=transfer.slot,
        block_time=transfer.block_time,
        recorded_at=transfer.recorded_at,
    )


def present_stray(stray: RecordedStray) -> StrayView:
    """Return a stray as the API shows it."""
    return StrayView(
        signature=stray.signature,
        kind=stray.kind,
        mint=stray.mint,
        recipient=stray.recipient,
        amount_units=stray.amount_minor,
        slot=stray.slot,
        block_time=stray.block_time,
        recorded_at=stray.recorded_at,
    )


def without(expanded: Collection[str]) -> set[str]:
    """Return the parts of a payment to leave out of its JSON: all but those asked for."""
    return {part for part in EXPANSIONS if part not in expanded}
