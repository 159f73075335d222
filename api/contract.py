"""The words other rooms may rely on: assets, statuses and their transitions, events, tables, roles.

Pure data and naming, no input or output. PostgreSQL holds the same transitions in the table
`status_transitions`; a test fails where the two differ.
"""

from enum import StrEnum
from typing import Final

USDC_MINT: Final = "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v"
USDT_MINT: Final = "Es9vMFrzaCERmJfrF4H2FYD4KCoNkY11McCe8BenwNYB"
SOLANA: Final = "solana"
VND: Final = "VND"


class Asset(StrEnum):
    """A token that payers pay in."""

    USDC = "USDC"
    USDT = "USDT"


# Digits after the point of everything the ledger holds; amounts are integers of the last digit.
DECIMALS: Final[dict[str, int]] = {Asset.USDC: 6, Asset.USDT: 6, VND: 0, "USD": 2}


class PaymentStatus(StrEnum):
    """Where a payment stands; `pending` once its payer has seen it or money is on its way."""

    CREATED = "created"
    PENDING = "pending"
    CONFIRMING = "confirming"
    COMPLETED = "completed"
    EXPIRED = "expired"
    FAILED = "failed"
    ESCROW_HELD = "escrow_held"
    AWAITING_RELEASE = "awaiting_release"
    DISPUTED = "disputed"
    RESOLVED = "resolved"


class PaymentException(StrEnum):
    """What is out of the ordinary about a payment, beside its status."""

    UNDERPAID = "underpaid"
    OVERPAID = "overpaid"
    LATE = "late"
    WRONG_ASSET = "wrong_asset"


class ExceptionOutcome(StrEnum):
    """How an exception ended: its money was accepted as payment, or all of it went back."""

    ACCEPTED = "accepted"
    REFUNDED = "refunded"


class DisputeOutcome(StrEnum):
    """Whom an admin gave the escrowed money."""

    MERCHANT = "merchant"
    PAYER = "payer"
    SPLIT = "split"


class RefundSource(StrEnum):
    """Where a refund's money is: with the merchant, with the payer's excess, or in suspense."""

    PAYMENT = "payment"
    EXCESS = "excess"
    SUSPENSE = "suspense"


class RefundStatus(StrEnum):
    """Where a refund stands; its money is reserved from `requested` on."""

    REQUESTED = "requested"
    COMPLETED = "completed"
    FAILED = "failed"


class PayoutStatus(StrEnum):
    """Where a payout stands; its money is reserved from `requested` on."""

    REQUESTED = "requested"
    APPROVED = "approved"
    SENT = "sent"
    SETTLED = "settled"
    FAILED = "failed"
    CANCELLED = "cancelled"


class HoldStatus(StrEnum):
    """Where a hold stands; its amount is taken from what is available while it is `pending`."""

    PENDING = "pending"
    POSTED = "posted"
    VOIDED = "voided"
    EXPIRED = "expired"


# subject: {from: where to}. Every step there is; a status without a key is final.
TRANSITIONS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    "payment": {
        "created": ("pending", "expired", "failed"),
        "pending": ("confirming", "expired", "failed"),
        # Money that came late, or too little of it, is accepted after all.
        "expired": ("confirming",),
        "confirming": ("completed", "escrow_held", "failed", "pending"),
        # Money booked before it was final vanished; should it come after all, it is taken.
        "completed": ("failed",),
        "failed": ("confirming",),
        "escrow_held": ("awaiting_release", "disputed"),
        "awaiting_release": ("completed", "disputed"),
        "disputed": ("resolved",),
    },
    "refund": {
        "requested": ("completed", "failed"),
    },
    "payout": {
        "requested": ("approved", "cancelled", "failed"),
        "approved": ("sent", "cancelled", "failed"),
        "sent": ("settled", "failed"),
    },
    "hold": {
        "pending": ("posted", "voided", "expired"),
    },
}

PUBLICATION: Final = "payment_gateway_publication"
CAPTURED_TABLES: Final = (
    "merchants",
    "payments",
    "ledger_entries",
    "ledger_postings",
    "refunds",
    "payouts",
    "capture_heartbeat",
    "capture_backfill",
)

OWNER_ROLE: Final = "giovang_owner"
API_ROLE: Final = "giovang_api"
OPERATOR_ROLE: Final = "giovang_operator"
WATCHER_ROLE: Final = "giovang_watcher"
CAPTURE_ROLE: Final = "giovang_capture"

# The setting by which row-level security knows the merchant of a unit of work.
TENANT_SETTING: Final = "giovang.merchant_id"


def live_channel(payment_id: str) -> str:
    """Return the Redis channel on which a payment's steps are pushed to those who watch it."""
    return f"giovang:live:{payment_id}"


def payment_event(status: PaymentStatus) -> str:
    """Return the name of the event that says a payment reached `status`."""
    return f"payment.{status.value}"


def may_move(subject: str, before: str, after: str) -> bool:
    """Say whether a `subject` may go from `before` to `after` in one step."""
    return after in TRANSITIONS[subject].get(before, ())


def is_final(subject: str, status: str) -> bool:
    """Say whether nothing follows `status`."""
    return status not in TRANSITIONS[subject]
