"""Ledger entries and holds of the past: what a step of history moves or promises, and how much.

Pure. Amounts are integers of the asset's last digit; a debit is positive, a credit negative, and
the legs of an entry sum to zero in each asset. The kinds, accounts and keys are those that the
product itself books by, so that the past and live traffic add up in the same accounts.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from infra.demo.history import PaymentStep, PayoutStep, RefundStep, Step
from infra.demo.ids import made_id
from infra.demo.story import Payment

CRYPTO_POOL = "crypto_pool"
LIQUIDITY = "liquidity"
FEE_REVENUE = "fee_revenue"
MERCHANT_AVAILABLE = "merchant_available"
PAYER_EXCESS = "payer_excess"
SUSPENSE = "suspense"
VND = "VND"

_APPROVED_WITHIN = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Leg:
    """One posting: account by owner (None: the platform), kind and asset."""

    merchant_id: str | None
    kind: str
    asset: str
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A balanced set of legs that a step of history books."""

    id: str
    merchant_id: str
    kind: str
    created_at: datetime
    legs: tuple[Leg, ...]
    payment_id: str | None = None
    refund_id: str | None = None
    payout_id: str | None = None
    posts_hold: str | None = None

    @property
    def idempotency_key(self) -> str:
        """The key under which the product would book the same entry."""
        return f"{self.kind}:{self.refund_id or self.payout_id or self.payment_id}"


@dataclass(frozen=True, slots=True)
class Hold:
    """What a shop's available dong promise from a request on, until an entry posts the hold."""

    id: str
    merchant_id: str
    amount_minor: int
    idempotency_key: str
    created_at: datetime
    expires_at: datetime | None = None
    refund_id: str | None = None
    payout_id: str | None = None


def holds_of(seed: int, step: Step) -> list[Hold]:
    """Return what a step promises: the amount of a refund or payout that it requests."""
    if isinstance(step, PaymentStep) or step.status != "requested":
        return []
    if isinstance(step, RefundStep):
        refund = step.refund
        return [
            Hold(
                id=_hold_id(seed, refund.id, refund.requested_at),
                merchant_id=refund.payment.merchant_id,
                amount_minor=refund.amount_vnd,
                idempotency_key=f"refund:{refund.id}",
                created_at=step.at,
                refund_id=refund.id,
            )
        ]
    return [
        Hold(
            id=_hold_id(seed, step.id, step.requested_at),
            merchant_id=step.merchant_id,
            amount_minor=step.amount_vnd,
            idempotency_key=f"payout:{step.id}:1",
            created_at=step.at,
            expires_at=step.at + _APPROVED_WITHIN,
            payout_id=step.id,
        )
    ]


def _hold_id(seed: int, subject_id: str, requested_at: datetime) -> str:
    return made_id("hld", requested_at, seed, subject_id)


def entries_of(seed: int, step: Step) -> list[Entry]:
    """Return what a step books; most steps book nothing."""
    if isinstance(step, PaymentStep):
        return _of_payment(seed, step)
    if isinstance(step, RefundStep):
        return _of_refund(seed, step)
    return _of_payout(seed, step)


def _of_payment(seed: int, step: PaymentStep) -> list[Entry]:
    payment, state = step.payment, step.state
    token = payment.asset
    if state.status == "pending" and state.received_minor:
        # Too little to complete: it waits in suspense for the rest, or for a person.
        legs = (
            Leg(None, CRYPTO_POOL, token, state.received_minor),
            Leg(None, SUSPENSE, token, -state.received_minor),
        )
        return [_payment_entry(seed, "transfer_suspended", step, legs)]
    if state.status != "completed":
        return []
    booked = [_payment_entry(seed, "payment_completed", step, _completion_legs(payment))]
    excess = state.received_minor - payment.asset_amount_minor
    if excess:
        legs = (
            Leg(None, CRYPTO_POOL, token, excess),
            Leg(payment.merchant_id, PAYER_EXCESS, token, -excess),
        )
        booked.append(_payment_entry(seed, "payment_overpaid", step, legs))
    return booked


def _completion_legs(payment: Payment) -> tuple[Leg, ...]:
    """Tokens come in, the desk gives dong for them, and the merchant gets dong less the fee."""
    legs = [
        Leg(None, CRYPTO_POOL, payment.asset, payment.asset_amount_minor),
        Leg(None, LIQUIDITY, payment.asset, -payment.asset_amount_minor),
        Leg(None, LIQUIDITY, VND, payment.amount_vnd),
        Leg(payment.merchant_id, MERCHANT_AVAILABLE, VND, -(payment.amount_vnd - payment.fee_vnd)),
    ]
    if payment.fee_vnd:
        legs.append(Leg(None, FEE_REVENUE, VND, -payment.fee_vnd))
    return tuple(legs)


def _payment_entry(seed: int, kind: str, step: PaymentStep, legs: tuple[Leg, ...]) -> Entry:
    payment = step.payment
    return Entry(
        id=made_id("ent", step.at, seed, payment.id, kind),
        merchant_id=payment.merchant_id,
        kind=kind,
        created_at=step.at,
        legs=legs,
        payment_id=payment.id,
    )


def _of_refund(seed: int, step: RefundStep) -> list[Entry]:
    """The shop's dong go back to the desk, and the payer's tokens leave the pool."""
    if step.status != "completed":
        return []
    refund, payment = step.refund, step.refund.payment
    tokens = refund.token_amount_minor
    return [
        Entry(
            id=made_id("ent", step.at, seed, refund.id, "refund_completed"),
            merchant_id=payment.merchant_id,
            kind="refund_completed",
            created_at=step.at,
            legs=(
                Leg(payment.merchant_id, MERCHANT_AVAILABLE, VND, refund.amount_vnd),
                Leg(None, LIQUIDITY, VND, -refund.amount_vnd),
                Leg(None, LIQUIDITY, payment.asset, tokens),
                Leg(None, CRYPTO_POOL, payment.asset, -tokens),
            ),
            payment_id=payment.id,
            refund_id=refund.id,
            posts_hold=_hold_id(seed, refund.id, refund.requested_at),
        )
    ]


def _of_payout(seed: int, step: PayoutStep) -> list[Entry]:
    if step.status != "settled":
        return []
    return [
        Entry(
            id=made_id("ent", step.at, seed, step.id, "payout_completed"),
            merchant_id=step.merchant_id,
            kind="payout_completed",
            created_at=step.at,
            legs=(
                Leg(step.merchant_id, MERCHANT_AVAILABLE, VND, step.amount_vnd),
                Leg(None, LIQUIDITY, VND, -step.amount_vnd),
            ),
            payout_id=step.id,
            posts_hold=_hold_id(seed, step.id, step.requested_at),
        )
    ]
