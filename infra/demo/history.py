"""A year of history as an ordered row of batches, invented from a seed.

Each batch belongs to one shop and one stretch of days; its steps are in order of time, and no step
lies after `until`. The same period gives the same batches on every machine, so a loader that was
killed can run again and skip what is there. A payment still in flight at `until` is left out whole,
since nobody would ever finish it.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from random import Random

from infra.demo.ids import chances, made_id
from infra.demo.merchants import PROFILES, Profile
from infra.demo.rhythm import LOCAL, day_count, expected_payments, moment
from infra.demo.story import Payment, Refund, State, invent, refund

_STRETCH_DAYS = 7
_PAYOUT_WEEKDAY = 0
_PAYOUT_AT = time(9, 30)
_PAYOUT_SHARE = 0.8
_PAYOUT_STEP_VND = 10_000
# How long after the request a payout reaches each further status, in minutes.
_PAYOUT_STATES = {"requested": 0, "approved": 12, "sent": 45, "settled": 190}


@dataclass(frozen=True, slots=True)
class Period:
    """What history covers: `days` local days that end at `until`, for all shops together."""

    seed: int
    until: datetime
    days: int
    payments_per_day: float

    def __post_init__(self) -> None:
        """Refuse a period that cannot be invented the same way twice."""
        if self.until.tzinfo is None or self.until.second or self.until.microsecond:
            raise ValueError("until must be a full minute with a time zone")
        if self.days < 1 or self.payments_per_day <= 0:
            raise ValueError("a period needs at least one day and some payments")

    def local_days(self) -> list[date]:
        """Return the local days, oldest first; the last one is the day of `until`."""
        last = self.until.astimezone(LOCAL).date()
        return [last - timedelta(days=back) for back in range(self.days - 1, -1, -1)]


@dataclass(frozen=True, slots=True)
class PaymentStep:
    """A payment reached a state; the first state is its creation."""

    at: datetime
    payment: Payment
    state: State


@dataclass(frozen=True, slots=True)
class RefundStep:
    """A refund reached `status`."""

    at: datetime
    refund: Refund
    status: str


@dataclass(frozen=True, slots=True)
class PayoutStep:
    """A shop's payout of part of its available balance reached `status`."""

    at: datetime
    id: str
    merchant_id: str
    amount_vnd: int
    destination: str
    requested_at: datetime
    status: str


Step = PaymentStep | RefundStep | PayoutStep


@dataclass(frozen=True, slots=True)
class Batch:
    """Steps of one shop that enter the ledger in one database transaction."""

    slug: str
    merchant_id: str
    first_day: date
    part: int
    steps: tuple[Step, ...]


def batches(period: Period, *, max_payments: int = 500) -> Iterator[Batch]:
    """Yield the whole period: stretches of days in order, the shops one after the other.

    At most `max_payments` payments are created in one batch.
    """
    days = period.local_days()
    shops = [_Shop(period, profile) for profile in PROFILES]
    for first in range(0, len(days), _STRETCH_DAYS):
        stretch = days[first : first + _STRETCH_DAYS]
        for shop in shops:
            steps = [step for day in stretch for step in shop.day(day)]
            for part, piece in enumerate(_pieces(steps, max_payments)):
                yield Batch(shop.profile.slug, shop.merchant_id, stretch[0], part, tuple(piece))


def expected_total(period: Period) -> int:
    """Return the mean number of payments of a period, for progress and estimates."""
    days = period.local_days()
    middle = days[len(days) // 2]
    return round(
        sum(
            expected_payments(profile, day, middle=middle, payments_per_day=period.payments_per_day)
            for profile in PROFILES
            for day in days
        )
    )


@dataclass(slots=True)
class _Shop:
    """One shop walking through its days, with what lies ahead and what it may pay out."""

    period: Period
    profile: Profile
    merchant_id: str = field(init=False)
    _middle: date = field(init=False)
    _ahead: list[tuple[datetime, int, Step]] = field(init=False, default_factory=list)
    _pushed: int = field(init=False, default=0)
    _available_vnd: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.merchant_id = self.profile.merchant_id(self.period.seed)
        days = self.period.local_days()
        self._middle = days[len(days) // 2]

    def day(self, day: date) -> Iterator[Step]:
        """Invent a local day and yield every step due before its end, in order of time."""
        for payment, returned in self._invent(day):
            self._push(*(PaymentStep(state.at, payment, state) for state in payment.states))
            if returned is not None and returned.completed_at <= self.period.until:
                self._push(
                    RefundStep(returned.requested_at, returned, "requested"),
                    RefundStep(returned.completed_at, returned, "completed"),
                )
        end = datetime.combine(day + timedelta(days=1), time(), tzinfo=LOCAL)
        payout_at = datetime.combine(day, _PAYOUT_AT, tzinfo=LOCAL).astimezone(UTC)
        wants_payout = day.weekday() == _PAYOUT_WEEKDAY
        while self._ahead and self._ahead[0][0] < end:
            if wants_payout and self._ahead[0][0] >= payout_at:
                wants_payout = False
                self._ask_payout(payout_at)
                continue
            step = heapq.heappop(self._ahead)[2]
            if self._allowed(step):
                yield step

    def _invent(self, day: date) -> Iterator[tuple[Payment, Refund | None]]:
        """Invent the payments of a local day that are over by the end of the period."""
        seed, slug = self.period.seed, self.profile.slug
        mean = expected_payments(
            self.profile, day, middle=self._middle, payments_per_day=self.period.payments_per_day
        )
        for number in range(day_count(self.profile, mean, chances(seed, slug, str(day)))):
            source = chances(seed, slug, str(day), number)
            at = moment(self.profile, day, source).astimezone(UTC)
            payment = invent(seed, self.profile, at, source, slug, str(day), number)
            if payment.states[-1].at <= self.period.until:
                yield payment, refund(seed, self.profile, payment, source)

    def _push(self, *steps: Step) -> None:
        for step in steps:
            self._pushed += 1
            heapq.heappush(self._ahead, (step.at, self._pushed, step))

    def _allowed(self, step: Step) -> bool:
        """Keep the shop's money; a refund that it could not pay is dropped before it is asked."""
        if isinstance(step, PaymentStep):
            if step.state.status == "completed":
                self._available_vnd += step.payment.amount_vnd - step.payment.fee_vnd
        elif isinstance(step, RefundStep) and step.status == "requested":
            if step.refund.amount_vnd > self._available_vnd:
                self._forget(step.refund)
                return False
            self._available_vnd -= step.refund.amount_vnd
        return True

    def _forget(self, refund_asked: Refund) -> None:
        self._ahead = [
            entry
            for entry in self._ahead
            if not (isinstance(entry[2], RefundStep) and entry[2].refund is refund_asked)
        ]
        heapq.heapify(self._ahead)

    def _ask_payout(self, at: datetime) -> None:
        """Ask for most of the available balance, in round money, unless it ends too late."""
        amount = int(self._available_vnd * _PAYOUT_SHARE) // _PAYOUT_STEP_VND * _PAYOUT_STEP_VND
        moments = {s: at + timedelta(minutes=m) for s, m in _PAYOUT_STATES.items()}
        if amount <= 0 or moments["settled"] > self.period.until:
            return
        self._available_vnd -= amount
        seed = self.period.seed
        source: Random = chances(seed, "payout", self.merchant_id, str(at))
        destination = f"VCB {source.randrange(10**9, 10**10)}"
        payout = made_id("pyo", at, seed, self.merchant_id)
        for status, moment_at in moments.items():
            self._push(
                PayoutStep(moment_at, payout, self.merchant_id, amount, destination, at, status)
            )


def _pieces(steps: list[Step], max_payments: int) -> Iterator[list[Step]]:
    """Cut steps where another created payment would be one too many."""
    piece: list[Step] = []
    created = 0
    for step in steps:
        if isinstance(step, PaymentStep) and step.state.status == "created":
            if created == max_payments:
                yield piece
                piece, created = [], 0
            created += 1
        piece.append(step)
    if piece:
        yield piece
