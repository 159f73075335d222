"""What the payer's page shows of a payment: its state, its steps, and what its payer may do.

Pure. The moment of reading counts: a payment past its end takes no money any more, whether or not
the watcher has said so yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from api.chain.model import Transfer
from api.contract import ExceptionOutcome, PaymentException, PaymentStatus, is_final
from api.merchants.model import Merchant
from api.payments.model import Payment, due_minor
from api.security import Purpose

Tone = Literal["wait", "good", "kept", "bad"]
StepState = Literal["done", "now", "next"]

PAID: Final = frozenset(
    {
        PaymentStatus.COMPLETED,
        PaymentStatus.ESCROW_HELD,
        PaymentStatus.AWAITING_RELEASE,
        PaymentStatus.DISPUTED,
        PaymentStatus.RESOLVED,
    }
)
_TONES: Final[dict[str, Tone]] = {
    "created": "wait",
    "pending": "wait",
    "confirming": "wait",
    "completed": "good",
    "expired": "bad",
    "failed": "bad",
    "escrow_held": "kept",
    "awaiting_release": "kept",
    "disputed": "kept",
    "resolved": "good",
}
_STEPS: Final = ("waiting", "seen", "final", "paid")
_ESCROW_STEPS: Final = ("waiting", "seen", "held", "delivered", "released")
# How many steps are behind a payment of this status; the next one is where it stands.
_BEHIND: Final[dict[str, int]] = {
    "created": 0,
    "pending": 0,
    "confirming": 2,
    "completed": 5,
    "escrow_held": 3,
    "awaiting_release": 4,
}
# Money on its way is a matter of seconds, escrow one of days.
_SOON_S: Final = 3
_LATER_S: Final = 60


@dataclass(frozen=True, slots=True)
class Order:
    """A payment as its payer sees it, whom it pays, what came for it, and when that was read."""

    payment: Payment
    merchant: Merchant
    read_at: datetime
    transfers: Sequence[Transfer] = ()

    @property
    def status(self) -> str:
        """The payment's status, with its end taken at its word."""
        payment = self.payment
        is_open = payment.status in {PaymentStatus.CREATED, PaymentStatus.PENDING}
        return "expired" if is_open and self.read_at >= payment.expires_at else payment.status

    @property
    def is_payable(self) -> bool:
        """Whether money sent now would pay it."""
        return self.status in {PaymentStatus.CREATED, PaymentStatus.PENDING}

    @property
    def is_paid(self) -> bool:
        """Whether the money is there, with the shop or in escrow."""
        return self.payment.status in PAID

    @property
    def is_partly_paid(self) -> bool:
        """Whether some of the money came and the rest is awaited."""
        return self.is_payable and self.payment.received_minor > 0

    @property
    def tone(self) -> Tone:
        """How the state is to be taken."""
        return _TONES[self.status]

    @property
    def refresh_s(self) -> int | None:
        """After how long to look again, or None where nobody waits before the page."""
        # Expired money may still be accepted, but not while somebody looks on.
        if is_final("payment", self.payment.status):
            return None
        if self.payment.status in {PaymentStatus.EXPIRED, PaymentStatus.FAILED}:
            return None
        return _LATER_S if self.payment.settled_minor else _SOON_S

    @property
    def steps(self) -> list[tuple[str, StepState]]:
        """The way of the payment and where it stands; empty where it left the way."""
        behind = _BEHIND.get(self.status)
        if behind is None:
            return []
        names = _ESCROW_STEPS if self.payment.is_escrow else _STEPS
        return [
            (name, "done" if place < behind else "now" if place == behind else "next")
            for place, name in enumerate(names)
        ]

    @property
    def note(self) -> str | None:
        """The key of what to say about an exception, or None where there is nothing to do."""
        exception, outcome = self.payment.exception, self.payment.exception_outcome
        if exception is None or outcome == ExceptionOutcome.ACCEPTED:
            return None
        if outcome is not None:
            return f"note.{outcome}"
        asks_for_more = {PaymentException.UNDERPAID, PaymentException.WRONG_ASSET}
        over = "" if self.is_payable or exception not in asks_for_more else ".over"
        return f"note.{exception}{over}"

    @property
    def excess_minor(self) -> int:
        """Tokens that came beyond what was due."""
        return max(-due_minor(self.payment), 0)

    @property
    def actions(self) -> tuple[Purpose, ...]:
        """What the payer may decide about money in escrow."""
        is_held = self.payment.status in {
            PaymentStatus.ESCROW_HELD,
            PaymentStatus.AWAITING_RELEASE,
        }
        return ("release", "dispute") if is_held else ()

    @property
    def paid_at(self) -> datetime:
        """When the money that paid it was on the chain, as far as that is known."""
        times = [one.block_time for one in self.transfers if one.block_time is not None]
        return max(times, default=self.payment.completed_at or self.payment.status_at)
