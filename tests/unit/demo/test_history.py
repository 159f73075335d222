"""The invented year: the same for the same seed, plausible in rhythm, and legal in every step."""

from collections import Counter, defaultdict
from datetime import UTC, date, datetime, timedelta

import pytest

from infra.demo.history import Batch, PaymentStep, PayoutStep, Period, RefundStep, batches
from infra.demo.holidays import Season, season
from infra.demo.merchants import PROFILES, profile
from infra.demo.rhythm import LOCAL

UNTIL = datetime(2026, 11, 20, 6, 30, tzinfo=UTC)
LEGAL_PATHS = {
    ("created", "pending", "confirming", "completed"),
    ("created", "pending", "expired"),
    ("created", "pending", "failed"),
    ("created", "expired"),
}


def period(*, seed: int = 7, days: int = 90, payments_per_day: float = 123) -> Period:
    return Period(seed, UNTIL, days, payments_per_day)


@pytest.fixture(scope="module")
def year() -> list[Batch]:
    return list(batches(period(days=365)))


@pytest.fixture(scope="module")
def quarter() -> list[Batch]:
    return list(batches(period()))


def payment_steps(history: list[Batch]) -> list[PaymentStep]:
    return [step for batch in history for step in batch.steps if isinstance(step, PaymentStep)]


def test_same_seed_and_end_give_the_same_history() -> None:
    assert list(batches(period(days=20))) == list(batches(period(days=20)))


def test_another_seed_gives_other_payments_and_other_merchants() -> None:
    one, two = (list(batches(period(seed=seed, days=5))) for seed in (1, 2))
    ids = [{step.payment.id for step in payment_steps(history)} for history in (one, two)]
    assert ids[0].isdisjoint(ids[1])
    assert {b.merchant_id for b in one}.isdisjoint({b.merchant_id for b in two})


def test_cutting_into_smaller_batches_changes_no_step() -> None:
    large = [s for b in batches(period(days=14)) if b.slug == "coffee" for s in b.steps]
    small = [
        s for b in batches(period(days=14), max_payments=9) if b.slug == "coffee" for s in b.steps
    ]
    assert small == large


def test_a_batch_creates_no_more_payments_than_allowed() -> None:
    for batch in batches(period(days=14), max_payments=9):
        created = sum(
            isinstance(step, PaymentStep) and step.state.status == "created" for step in batch.steps
        )
        assert created <= 9


def test_a_default_year_has_about_45_000_payments(year: list[Batch]) -> None:
    created = sum(step.state.status == "created" for step in payment_steps(year))
    assert 42_000 < created < 48_000


def test_every_payment_walks_a_legal_path_in_order_and_ends_before_until(
    quarter: list[Batch],
) -> None:
    walked: dict[str, list[PaymentStep]] = defaultdict(list)
    for step in payment_steps(quarter):
        walked[step.payment.id].append(step)
    paths = Counter(tuple(s.state.status for s in steps) for steps in walked.values())
    assert set(paths) == LEGAL_PATHS
    for steps in walked.values():
        moments = [step.at for step in steps]
        assert moments == sorted(set(moments))
        assert moments[-1] <= UNTIL
        assert steps[0].at == steps[0].payment.created_at


def test_steps_of_a_shop_never_run_backwards(quarter: list[Batch]) -> None:
    for shop in PROFILES:
        moments = [step.at for batch in quarter if batch.slug == shop.slug for step in batch.steps]
        assert moments == sorted(moments)


def test_amounts_are_whole_positive_and_round(quarter: list[Batch]) -> None:
    for batch in quarter:
        shop = profile(batch.slug)
        low, high = shop.ticket_limits_vnd
        for step in batch.steps:
            if isinstance(step, PaymentStep):
                payment = step.payment
                assert type(payment.amount_vnd) is int
                assert low <= payment.amount_vnd <= high
                assert payment.amount_vnd % shop.ticket_step_vnd == 0
                assert type(payment.asset_amount_minor) is int
                assert payment.asset_amount_minor > 0
                assert 0 <= payment.fee_vnd < payment.amount_vnd
            elif isinstance(step, RefundStep):
                assert 0 < step.refund.amount_vnd <= step.refund.payment.amount_vnd
            else:
                assert step.amount_vnd > 0


def test_a_shop_never_spends_more_than_it_has(year: list[Batch]) -> None:
    available: Counter[str] = Counter()
    for batch in year:
        for step in batch.steps:
            if isinstance(step, PaymentStep) and step.state.status == "completed":
                available[batch.slug] += step.payment.amount_vnd - step.payment.fee_vnd
            elif isinstance(step, RefundStep) and step.status == "requested":
                available[batch.slug] -= step.refund.amount_vnd
            elif isinstance(step, PayoutStep) and step.status == "requested":
                available[batch.slug] -= step.amount_vnd
            assert available[batch.slug] >= 0
    assert all(available[shop.slug] > 0 for shop in PROFILES)


def test_ids_and_references_are_unique(quarter: list[Batch]) -> None:
    created = [s.payment for s in payment_steps(quarter) if s.state.status == "created"]
    assert len({p.id for p in created}) == len(created)
    assert len({p.reference for p in created}) == len(created)


def test_ids_sort_by_creation_and_have_the_shape_of_uuid7(quarter: list[Batch]) -> None:
    created = [s.payment for s in payment_steps(quarter) if s.state.status == "created"]
    by_time = sorted(created, key=lambda p: p.created_at)
    milliseconds = [int(p.created_at.timestamp() * 1000) for p in by_time]
    assert [_uuid_milliseconds(p.id) for p in by_time] == milliseconds
    for payment in created[:200]:
        value = _uuid_value(payment.id)
        assert value >> 76 & 0xF == 7
        assert value >> 62 & 0b11 == 0b10


def test_golden_hours_are_the_busiest_hours_of_each_shop(year: list[Batch]) -> None:
    for shop in PROFILES:
        hours = Counter(
            step.payment.created_at.astimezone(LOCAL).hour
            for batch in year
            if batch.slug == shop.slug
            for step in batch.steps
            if isinstance(step, PaymentStep) and step.state.status == "created"
        )
        busiest = {hour for hour, _ in hours.most_common(len(shop.peaks))}
        assert busiest == set(shop.peaks), shop.slug
        assert all(shop.opens_hour <= hour < shop.closes_hour for hour in hours)


def test_tet_empties_the_electronics_shop_and_fills_the_homestay(year: list[Batch]) -> None:
    for slug, busier in (("electronics", False), ("homestay", True)):
        days = _payments_by_day(year, slug)
        tet = [days[date(2026, 2, 17) + timedelta(days=n)] for n in range(4)]
        usual = [days[date(2026, 4, 1) + timedelta(days=n)] for n in range(20)]
        ratio = (sum(tet) / len(tet)) / (sum(usual) / len(usual))
        assert ratio > 1.15 if busier else ratio < 0.4


def test_weekends_are_busier_for_coffee_and_empty_for_the_school(year: list[Batch]) -> None:
    def share(slug: str, weekday: int) -> float:
        days = _payments_by_day(year, slug)
        return sum(n for day, n in days.items() if day.weekday() == weekday) / days.total()

    assert share("coffee", 5) > share("coffee", 1)
    assert share("school", 6) < share("school", 5)


def test_several_countries_exceptions_refunds_and_payouts_occur(quarter: list[Batch]) -> None:
    steps = payment_steps(quarter)
    assert len({step.payment.payer_country for step in steps}) >= 8
    assert None in {step.payment.payer_country for step in steps}
    assert {step.state.exception for step in steps} == {None, "underpaid", "overpaid"}
    kinds = Counter(type(step).__name__ for batch in quarter for step in batch.steps)
    assert kinds["RefundStep"] > 20
    assert kinds["PayoutStep"] > 40


def test_customers_come_back(quarter: list[Batch]) -> None:
    payers = Counter(
        step.payment.payer_address
        for step in payment_steps(quarter)
        if step.state.status == "created"
    )
    returning = sum(1 for visits in payers.values() if visits > 1)
    assert 0.1 < returning / len(payers) < 0.9


def test_received_tokens_agree_with_the_exception(quarter: list[Batch]) -> None:
    for step in payment_steps(quarter):
        due, got = step.payment.asset_amount_minor, step.state.received_minor
        if step.state.exception == "underpaid":
            assert 0 < got < due
        elif step.state.exception == "overpaid":
            assert got > due
        elif step.state.status == "completed":
            assert got == due


def test_a_period_must_end_on_a_full_minute_with_a_zone() -> None:
    with pytest.raises(ValueError, match="full minute"):
        Period(1, datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC), 3, 10)
    with pytest.raises(ValueError, match="full minute"):
        Period(1, datetime(2026, 1, 1), 3, 10)  # noqa: DTZ001 - the missing zone is the point
    with pytest.raises(ValueError, match="at least one day"):
        Period(1, UNTIL, 0, 10)


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        (date(2026, 2, 17), Season.TET),
        (date(2026, 2, 16), Season.TET),
        (date(2026, 2, 15), Season.BEFORE_TET),
        (date(2026, 2, 22), Season.AFTER_TET),
        (date(2026, 3, 15), Season.ORDINARY),
        (date(2026, 4, 26), Season.HOLIDAY),
        (date(2025, 9, 2), Season.HOLIDAY),
        (date(2025, 4, 7), Season.HOLIDAY),
    ],
)
def test_seasons_follow_the_vietnamese_calendar(day: date, expected: Season) -> None:
    assert season(day) is expected


def _payments_by_day(history: list[Batch], slug: str) -> Counter[date]:
    return Counter(
        step.payment.created_at.astimezone(LOCAL).date()
        for batch in history
        if batch.slug == slug
        for step in batch.steps
        if isinstance(step, PaymentStep) and step.state.status == "created"
    )


def _uuid_value(identifier: str) -> int:
    alphabet = "0123456789abcdefghjkmnpqrstvwxyz"
    value = 0
    for letter in identifier.split("_")[1]:
        value = value * 32 + alphabet.index(letter)
    return value


def _uuid_milliseconds(identifier: str) -> int:
    return _uuid_value(identifier) >> 80
