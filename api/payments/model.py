"""Payments, disputes and refunds as rows and as request bodies; how they look is in `views`."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Protocol

from pydantic import ConfigDict, Field, JsonValue, StringConstraints, WithJsonSchema

from api.chain.solana_pay import LONGEST_URL, memo_of, pay_url, request_url
from api.chain.transfers import TokenTransfer
from api.contract import DECIMALS, Asset, DisputeOutcome
from api.rates.model import decimal_string
from api.security import Mode
from api.web import PLAIN, Country, DongAmount, Strict, Text
from api.wording import DONG, id_pattern, worded

PaymentId = Annotated[str, StringConstraints(pattern=id_pattern("pay"))]
RefundId = Annotated[str, StringConstraints(pattern=id_pattern("rfd"))]
SomeDong = Annotated[
    str, StringConstraints(pattern=worded(r"^(0|[1-9][0-9]{0,12})$", f"whole dong {DONG}"))
]
AnyAmount = Annotated[
    str,
    StringConstraints(
        pattern=worded(
            r"^(0|[1-9][0-9]{0,12})(\.[0-9]{1,6})?$",
            'an amount in digits, such as "50000" dong or "9.560230" of a token',
        )
    ),
]
Reason = Annotated[Text, StringConstraints(min_length=1, max_length=1000)]
Description = Annotated[Text, StringConstraints(max_length=500)]
OrderId = Annotated[Text, StringConstraints(max_length=100)]
SolanaAddress = Annotated[
    str,
    StringConstraints(
        pattern=worded(r"^[1-9A-HJ-NP-Za-km-z]{32,44}$", "an address on Solana, in base58")
    ),
]
SolanaSignature = Annotated[
    str,
    StringConstraints(
        pattern=worded(
            r"^[1-9A-HJ-NP-Za-km-z]{64,90}$", "the signature of a chain transaction, in base58"
        )
    ),
]
AssetName = Literal["USDC", "USDT"]

MOST_METADATA: Final = 50
_Name = Annotated[Text, StringConstraints(min_length=1, max_length=40)]
_Value = Annotated[Text, StringConstraints(max_length=500)]


def _object_schema(value_type: str | list[str]) -> WithJsonSchema:
    """Describe metadata: pydantic itself would say nothing of values under names it refuses."""
    return WithJsonSchema(
        {
            "type": "object",
            "maxProperties": MOST_METADATA,
            "propertyNames": {"minLength": 1, "maxLength": 40, "pattern": PLAIN},
            "additionalProperties": {"type": value_type, "maxLength": 500, "pattern": PLAIN},
        }
    )


Metadata = Annotated[dict[_Name, _Value], Field(max_length=MOST_METADATA), _object_schema("string")]
MetadataChange = Annotated[
    dict[_Name, _Value | None],
    Field(max_length=MOST_METADATA),
    _object_schema(["string", "null"]),
]

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
    "escrow": False,
}


class CreatePayment(Strict):
    """What a payment request says."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_PAYMENT]})

    amount: DongAmount = Field(description="Whole dong, as a string of digits")
    currency: Literal["VND"] = "VND"
    asset: AssetName = Field(description="The token the payer pays in")
    description: Description | None = None
    order_id: OrderId | None = None
    payer_country: Country | None = None
    metadata: Metadata = Field(default_factory=dict)
    expires_in_s: int = Field(default=DEFAULT_EXPIRY_S, ge=5, le=86_400)
    escrow: bool = Field(
        default=False, description="Hold the money until the payer, or time, releases it"
    )


class ChangePayment(Strict):
    """What of a payment may change later: your own words. What is absent stays, null removes."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"order_id": "1043", "metadata": {"table": None}}]}
    )

    description: Description | None = None
    order_id: OrderId | None = None
    metadata: MetadataChange | None = None


class OpenDispute(Strict):
    """Why the money should not be released."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"reason": "the parcel arrived empty"}]}
    )

    reason: Reason


class ResolveDispute(Strict):
    """Who gets the escrowed money; `merchant_amount` is for a split, the rest is the payer's."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "outcome": "split",
                    "merchant_amount": "1000000",
                    "reason": "one of two lamps broke on the way",
                }
            ]
        }
    )

    outcome: Literal["merchant", "payer", "split"]
    merchant_amount: DongAmount | None = None
    reason: Reason


class AcceptMoney(Strict):
    """Which of the tokens that wait to accept; needed only where two kinds wait."""

    model_config = ConfigDict(json_schema_extra={"examples": [{}, {"asset": "USDT"}]})

    asset: AssetName | None = None


class CreateRefund(Strict):
    """How much goes back, from where, to whom, and why; without `amount` all that is left."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"amount": "50000", "reason": "one coffee too many"},
                {"source": "excess"},
                {"source": "suspense", "asset": "USDT"},
            ]
        }
    )

    amount: AnyAmount | None = Field(
        default=None, description="In dong of the payment, in tokens of excess and suspense"
    )
    source: Literal["payment", "excess", "suspense"] = "payment"
    asset: AssetName | None = Field(
        default=None, description="Which token, where excess or suspense hold two kinds"
    )
    destination: SolanaAddress | None = Field(
        default=None, description="A wallet; without it, the one the payer paid from"
    )
    reason: Annotated[Text, StringConstraints(max_length=500)] | None = None


class CompleteRefund(Strict):
    """The chain transaction by which the tokens went back."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"signature": "5" * 88}]})

    signature: SolanaSignature


class FailRefund(Strict):
    """Why the tokens will not go back."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"reason": "the payer's account is closed"}]}
    )

    reason: Reason


class AssignTransfer(Strict):
    """Whose money it is, and how that is known."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "payment_id": "pay_01jz8w5k6h7m9n0p2q3r4s5t6v",
                    "reason": "sent from an exchange; amount and time match",
                }
            ]
        }
    )

    payment_id: PaymentId
    reason: Reason


class ReturnTransfer(Strict):
    """The chain transaction by which nobody's money went back to its sender."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"signature": "5" * 88, "reason": "sent by mistake"}]}
    )

    signature: SolanaSignature
    reason: Reason


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment's row.

    `settled_minor` is what the merchant was credited, fee included, or what escrow holds for it.
    """

    id: str
    merchant_id: str
    mode: Mode
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
    # What rows of events written by release 0.1 lack has a default.
    rate_mid: Decimal | None = None
    settled_minor: int = 0
    exception_outcome: str | None = None
    is_escrow: bool = False
    escrow_release_due_at: datetime | None = None
    escrow_released_at: datetime | None = None
    escrow_released_by: str | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What a merchant agreed to, as it stands when a payment settles."""

    merchant_name: str
    fee_bps: int
    tolerance_bps: int
    escrow_days: int


@dataclass(frozen=True, slots=True)
class Dispute:
    """A dispute's row."""

    id: str
    merchant_id: str
    payment_id: str
    opened_by: str
    reason: str
    opened_at: datetime
    outcome: str | None
    merchant_minor: int | None
    resolved_by: str | None
    resolution_reason: str | None
    resolved_at: datetime | None


@dataclass(frozen=True, slots=True)
class Refund:
    """A refund's row; the amount is in `asset`, what is sent is `token_amount_minor` of `token`."""

    id: str
    merchant_id: str
    payment_id: str
    status: str
    amount_minor: int
    asset: str
    reason: str | None
    source: str
    token: str
    token_amount_minor: int
    destination: str | None
    signature: str | None
    requested_by: str
    failure_reason: str | None
    created_at: datetime
    status_at: datetime


@dataclass(frozen=True, slots=True)
class Waiting:
    """Tokens the ledger keeps aside for a payment, less those already going back."""

    source: str
    token: str
    amount_minor: int


def transfer_of(payment: Payment) -> TokenTransfer:
    """Return what a wallet has to transfer: what is still due, or the whole where nothing is."""
    due = due_minor(payment)
    return TokenTransfer(
        recipient=payment.recipient,
        mint=payment.mint,
        amount_minor=due if due > 0 else payment.asset_amount_minor,
        decimals=DECIMALS[payment.asset],
        references=(payment.reference,),
        memo=memo_of(payment.reference),
    )


def link_of(payment: Payment, merchant_name: str, *, longest: int = LONGEST_URL) -> str:
    """Return the Solana Pay transfer request of a payment, its texts only as far as they fit."""
    transfer = transfer_of(payment)
    return pay_url(
        recipient=transfer.recipient,
        amount=decimal_string(transfer.amount_minor, payment.asset),
        mint=transfer.mint,
        references=transfer.references,
        memo=transfer.memo,
        label=merchant_name,
        message=payment.description,
        longest=longest,
    )


def request_link_of(payment: Payment, public_url: str) -> str | None:
    """Return the Solana Pay transaction request of a payment.

    None where we are not reached by https: wallets refuse such a link.
    """
    if not public_url.startswith("https://"):
        return None
    return request_url(f"{public_url}/order/{payment.id}/pay")


class Counted(Protocol):
    """What the tokens still due are counted from."""

    @property
    def asset_amount_minor(self) -> int: ...  # noqa: D102 - as in Payment
    @property
    def received_minor(self) -> int: ...  # noqa: D102 - as in Payment
    @property
    def settled_minor(self) -> int: ...  # noqa: D102 - as in Payment


def due_minor(payment: Counted) -> int:
    """Return the tokens still due: negative where too many came, and never more once settled."""
    due = payment.asset_amount_minor - payment.received_minor
    return min(due, 0) if payment.settled_minor else due


def asset_of(payment: Payment) -> Asset:
    """Return the token a payment is paid in."""
    return Asset(payment.asset)


def merchant_part(settled_minor: int, body: ResolveDispute) -> int | None:
    """Return the merchant's part of what escrow holds, or None where the body makes no sense."""
    named = None if body.merchant_amount is None else int(body.merchant_amount)
    outcome = DisputeOutcome(body.outcome)
    if outcome is DisputeOutcome.SPLIT:
        return named if named is not None and named < settled_minor else None
    if named is not None:
        return None
    return settled_minor if outcome is DisputeOutcome.MERCHANT else 0
