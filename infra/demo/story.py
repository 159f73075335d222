"""The life of one invented payment, from the customer's click to its last state and its refund.

Pure: profile, moment and random source in, frozen records out. Only legal paths through the payment
states come out, with moments that never run backwards.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from functools import lru_cache
from random import Random

from infra.demo.ids import address, made_id, wallet
from infra.demo.ids import chances as chances_of
from infra.demo.merchants import Profile
from infra.demo.rhythm import pick, rate_vnd, ticket_vnd

MINTS = {
    "USDC": "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v",
    "USDT": "Es9vMFrzaCERmJfrF4H2FYD4KCoNkY11McCe8BenwNYB",
}
MINOR_PER_TOKEN = 1_000_000

EXPIRES_AFTER = timedelta(minutes=15)
_PAYS_AFTER_MEDIAN_S = 24.0
_PAYS_AFTER_SIGMA = 0.7
_PAYS_AFTER_MAX_S = 780.0
_UNKNOWN_COUNTRY_SHARE = 0.03
_FULL_REFUND_SHARE = 0.75
_REFUND_AFTER_H = (1.0, 96.0)
_REFUND_REASONS = ("khách đổi ý", "hết hàng", "giao nhầm", "trả lại hàng")


@dataclass(frozen=True, slots=True)
class Payer:
    """A customer with a wallet; the same person comes back."""

    address: str
    country: str | None


@dataclass(frozen=True, slots=True)
class State:
    """A payment reached `status` at `at`, with `received_minor` token units booked so far."""

    status: str
    at: datetime
    exception: str | None = None
    received_minor: int = 0


@dataclass(frozen=True, slots=True)
class Payment:
    """What a merchant asked for, who pays, and every state that followed, oldest first."""

    id: str
    merchant_id: str
    amount_vnd: int
    asset: str
    asset_amount_minor: int
    rate: Decimal
    recipient: str
    reference: str
    payer_address: str
    payer_country: str | None
    description: str
    order_id: str
    fee_vnd: int
    created_at: datetime
    expires_at: datetime
    states: tuple[State, ...]

    @property
    def mint(self) -> str:
        """Token mint of the asset."""
        return MINTS[self.asset]


@dataclass(frozen=True, slots=True)
class Refund:
    """Money a merchant gives back, in VND, of a completed payment."""

    id: str
    payment: Payment
    amount_vnd: int
    reason: str
    requested_at: datetime
    completed_at: datetime

    @property
    def token_amount_minor(self) -> int:
        """What the payer is sent: the same part of the tokens as of the dong, rounded down."""
        return self.payment.asset_amount_minor * self.amount_vnd // self.payment.amount_vnd


@lru_cache(maxsize=50_000)
def payer(
    seed: int, profile_slug: str, number: int, countries: tuple[tuple[str, float], ...]
) -> Payer:
    """Return customer `number` of a shop."""
    source = chances_of(seed, profile_slug, "payer", number)
    unknown = source.random() < _UNKNOWN_COUNTRY_SHARE
    country = countries[pick(tuple(weight for _, weight in countries), source)][0]
    key = wallet(seed, profile_slug, number).pubkey()
    return Payer(address=str(key), country=None if unknown else country)


def invent(seed: int, profile: Profile, at: datetime, source: Random, *path: str | int) -> Payment:
    """Invent the payment that `path` names, asked for at `at` (UTC), with its whole life."""
    # A square makes a few customers regulars and most of them rare.
    number = int(profile.customers * source.random() ** 2)
    customer = payer(seed, profile.slug, number, tuple(profile.countries.items()))
    amount = ticket_vnd(profile, source)
    asset = "USDC" if source.random() < profile.usdc_share else "USDT"
    rate = rate_vnd(seed, asset, at.date())
    due = int((amount * MINOR_PER_TOKEN / rate).to_integral_value(ROUND_CEILING))
    return Payment(
        id=made_id("pay", at, seed, *path),
        merchant_id=profile.merchant_id(seed),
        amount_vnd=amount,
        asset=asset,
        asset_amount_minor=due,
        rate=rate,
        recipient=address(seed, "collection"),
        reference=address(seed, "reference", *path),
        payer_address=customer.address,
        payer_country=customer.country,
        description=source.choice(profile.descriptions),
        order_id=f"{profile.slug}-{'-'.join(map(str, path[1:]))}",
        fee_vnd=amount * profile.fee_bps // 10_000,
        created_at=at,
        expires_at=at + EXPIRES_AFTER,
        states=_states(profile, at, due, source),
    )


def refund(seed: int, profile: Profile, payment: Payment, source: Random) -> Refund | None:
    """Decide whether a completed payment is given back later, in whole or in part."""
    if payment.states[-1].status != "completed" or source.random() >= profile.refund_share:
        return None
    step = profile.ticket_step_vnd
    part = max(step, round(payment.amount_vnd * source.uniform(0.2, 0.8) / step) * step)
    whole = source.random() < _FULL_REFUND_SHARE
    after = timedelta(milliseconds=int(source.uniform(*_REFUND_AFTER_H) * 3_600_000))
    requested_at = payment.states[-1].at + after
    return Refund(
        id=made_id("rfd", requested_at, seed, payment.id),
        payment=payment,
        amount_vnd=payment.amount_vnd if whole else min(part, payment.amount_vnd),
        reason=source.choice(_REFUND_REASONS),
        requested_at=requested_at,
        completed_at=requested_at + _milliseconds(source, 2_000, 90_000),
    )


def _states(profile: Profile, at: datetime, due: int, source: Random) -> tuple[State, ...]:
    """Draw how the payment ends and the states on the way."""
    paid_at = at + _pay_delay(source)
    seen_at = paid_at + _milliseconds(source, 400, 2_000)
    final_at = seen_at + _milliseconds(source, 11_000, 19_000)
    expired_at = at + EXPIRES_AFTER + _milliseconds(source, 500, 20_000)
    created = State("created", at)

    chance = source.random()
    if chance < profile.expired_share:
        return (created, State("expired", expired_at))
    chance -= profile.expired_share
    if chance < profile.failed_share:
        return (created, State("pending", paid_at), State("failed", seen_at))
    chance -= profile.failed_share
    if chance < profile.underpaid_share:
        part = int(due * source.uniform(0.3, 0.95))
        return (
            created,
            State("pending", paid_at, "underpaid", part),
            State("expired", expired_at, "underpaid", part),
        )
    chance -= profile.underpaid_share
    received, exception = due, None
    if chance < profile.overpaid_share:
        received, exception = due + int(due * source.uniform(0.02, 0.3)) + 1, "overpaid"
    return (
        created,
        State("pending", paid_at),
        State("confirming", seen_at),
        State("completed", final_at, exception, received),
    )


def _pay_delay(source: Random) -> timedelta:
    seconds = _PAYS_AFTER_MEDIAN_S * source.lognormvariate(0, _PAYS_AFTER_SIGMA)
    return timedelta(milliseconds=int(min(seconds, _PAYS_AFTER_MAX_S) * 1000))


def _milliseconds(source: Random, low: int, high: int) -> timedelta:
    return timedelta(milliseconds=source.randrange(low, high))
