"""What the ledger is made of: accounts, legs and entries, in integer minor units.

A debit is positive, a credit negative. What the house holds stands positive (`crypto_pool`), what
it owes negative (`merchant_available`). An entry that does not balance cannot be built, and could
not be committed.
"""

from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum


class AccountKind(StrEnum):
    """What an account is for; migration 050 says who owns which, and where each must stop."""

    MERCHANT_AVAILABLE = "merchant_available"
    PAYOUTS_RESERVED = "payouts_reserved"
    REFUNDS_PAYABLE = "refunds_payable"
    PAYER_EXCESS = "payer_excess"
    CRYPTO_POOL = "crypto_pool"
    LIQUIDITY = "liquidity"
    FEE_REVENUE = "fee_revenue"
    SUSPENSE = "suspense"


class EntryKind(StrEnum):
    """Why an entry was booked."""

    PAYMENT_COMPLETED = "payment_completed"
    PAYMENT_RECEIVED = "payment_received"
    PAYMENT_OVERPAID = "payment_overpaid"
    TRANSFER_SUSPENDED = "transfer_suspended"
    REFUND_REQUESTED = "refund_requested"
    PAYOUT_REQUESTED = "payout_requested"


@dataclass(frozen=True, slots=True)
class Leg:
    """One posting to be: an account by its meaning, and the amount that moves it."""

    kind: AccountKind
    asset: str
    amount_minor: int
    merchant_id: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A balanced set of legs, booked once however often it is posted under its key."""

    kind: EntryKind
    key: str
    legs: tuple[Leg, ...]
    merchant_id: str | None = None
    payment_id: str | None = None
    payout_id: str | None = None
    refund_id: str | None = None
    reverses_id: str | None = None
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


@dataclass(frozen=True, slots=True)
class Balance:
    """A merchant's money in one asset, as positive amounts owed to it or on its behalf."""

    asset: str
    available_minor: int
    payouts_reserved_minor: int
    refunds_payable_minor: int
    payer_excess_minor: int
