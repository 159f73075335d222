"""What the ledger is made of: accounts, legs, entries and holds, in integer minor units.

A debit is positive, a credit negative. What the house holds stands positive (`crypto_pool`), what
it owes negative (`merchant_available`). An entry that does not balance cannot be built, and could
not be committed.
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from api.security import Mode


class AccountKind(StrEnum):
    """What an account is for; migration 120 says who owns which, and where each must stop."""

    MERCHANT_AVAILABLE = "merchant_available"
    ESCROW_LIABILITY_POOL = "escrow_liability_pool"
    PAYER_EXCESS = "payer_excess"
    CRYPTO_POOL = "crypto_pool"
    LIQUIDITY = "liquidity"
    FEE_REVENUE = "fee_revenue"
    SPREAD_REVENUE = "spread_revenue"
    ROUNDING = "rounding"
    SUSPENSE = "suspense"
    CHAIN_LOSS = "chain_loss"


class EntryKind(StrEnum):
    """Why an entry was booked."""

    PAYMENT_COMPLETED = "payment_completed"
    PAYMENT_OVERPAID = "payment_overpaid"
    TRANSFER_SUSPENDED = "transfer_suspended"
    TRANSFER_ASSIGNED = "transfer_assigned"
    TRANSFER_RETURNED = "transfer_returned"
    ESCROW_HELD = "escrow_held"
    ESCROW_RELEASED = "escrow_released"
    ESCROW_RESOLVED = "escrow_resolved"
    REFUND_COMPLETED = "refund_completed"
    PAYOUT_COMPLETED = "payout_completed"
    LOSS_COVERED = "loss_covered"
    LOSS_RECOVERED = "loss_recovered"


@dataclass(frozen=True, slots=True)
class Leg:
    """One posting to be: an account by its meaning, and the amount that moves it."""

    kind: AccountKind
    asset: str
    amount_minor: int
    merchant_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A balanced set of legs in the books of one mode, booked once however often it is posted."""

    kind: EntryKind
    key: str
    mode: Mode
    legs: tuple[Leg, ...]
    merchant_id: str | None = None
    payment_id: str | None = None
    payout_id: str | None = None
    refund_id: str | None = None
    description: str = ""

    def __post_init__(self) -> None:
        """Refuse what PostgreSQL would refuse, while the culprit is still on the stack."""
        sums: defaultdict[str, int] = defaultdict(int)
        for leg in self.legs:
            if leg.amount_minor == 0:
                raise ValueError(f"{self.kind}: a leg of nothing on {leg.kind}")
            sums[leg.asset] += leg.amount_minor
        if not self.legs or any(sums.values()):
            raise ValueError(f"{self.kind}: does not balance: {dict(sums)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """An amount of an account that is promised to one payment, refund or payout.

    `merchant_id` None is the platform's suspense; sharded platform accounts cannot be held.
    """

    key: str
    mode: Mode
    kind: AccountKind
    asset: str
    amount_minor: int
    merchant_id: str | None
    payment_id: str | None = None
    refund_id: str | None = None
    payout_id: str | None = None
    expires_at: datetime | None = None

    def __post_init__(self) -> None:
        """Refuse an empty hold and one without its one subject."""
        subjects = [self.payment_id, self.refund_id, self.payout_id]
        if self.amount_minor <= 0 or sum(subject is not None for subject in subjects) != 1:
            raise ValueError(f"{self.key}: a hold is of a positive amount, for one subject")


@dataclass(frozen=True, slots=True)
class Balance:
    """A merchant's money in one asset, as positive amounts owed to it or on its behalf.

    Of `posted_minor`, `pending_minor` is held for refunds and payouts and `available_minor` is
    free. `escrow_minor` waits for release; `payer_excess_minor` is for payers who paid too much.
    """

    asset: str
    posted_minor: int
    pending_minor: int
    available_minor: int
    escrow_minor: int
    payer_excess_minor: int


@dataclass(frozen=True, slots=True)
class StatementLine:
    """One posting on an account, as its owner sees it: what came in is positive."""

    entry_id: str
    seq: int
    kind: str
    amount_minor: int
    balance_minor: int
    payment_id: str | None
    refund_id: str | None
    payout_id: str | None
    description: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class BookedEntry:
    """An entry that stands, without its legs."""

    id: str
    merchant_id: str | None
    kind: str
    payment_id: str | None
    refund_id: str | None
    payout_id: str | None
    reverses_id: str | None
    description: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class TrialLine:
    """All accounts of one kind and asset together; a debit is positive."""

    asset: str
    kind: str
    posted_minor: int
    held_minor: int
