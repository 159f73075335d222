"""Ledger entries of the invented past: balanced, complete, and under the product's own keys."""

from collections import Counter, defaultdict
from datetime import UTC, datetime

import pytest

from infra.demo.entries import Entry, Hold, entries_of, holds_of
from infra.demo.history import PaymentStep, PayoutStep, Period, RefundStep, Step, batches

PERIOD = Period(3, datetime(2026, 6, 30, 10, tzinfo=UTC), days=60, payments_per_day=150)


@pytest.fixture(scope="module")
def booked() -> list[tuple[Step, Entry]]:
    return [
        (step, entry)
        for batch in batches(PERIOD)
        for step in batch.steps
        for entry in entries_of(PERIOD.seed, step)
    ]


@pytest.fixture(scope="module")
def held() -> list[tuple[Step, Hold]]:
    return [
        (step, hold)
        for batch in batches(PERIOD)
        for step in batch.steps
        for hold in holds_of(PERIOD.seed, step)
    ]


def test_every_entry_sums_to_zero_in_each_asset(booked: list[tuple[Step, Entry]]) -> None:
    for _, entry in booked:
        sums: dict[str, int] = defaultdict(int)
        for leg in entry.legs:
            assert leg.amount_minor != 0
            sums[leg.asset] += leg.amount_minor
        assert set(sums.values()) == {0}


def test_all_kinds_occur_and_ids_and_keys_are_unique(booked: list[tuple[Step, Entry]]) -> None:
    assert {entry.kind for _, entry in booked} == {
        "payment_completed",
        "payment_overpaid",
        "transfer_suspended",
        "refund_completed",
        "payout_completed",
    }
    assert len({entry.id for _, entry in booked}) == len(booked)
    assert len({entry.idempotency_key for _, entry in booked}) == len(booked)


def test_tokens_booked_are_tokens_received_and_sent_back(
    booked: list[tuple[Step, Entry]],
) -> None:
    expected: Counter[str] = Counter()
    pooled: Counter[str] = Counter()
    for step, entry in booked:
        moved = sum(leg.amount_minor for leg in entry.legs if leg.kind == "crypto_pool")
        if isinstance(step, PaymentStep):
            expected[step.payment.id] = step.state.received_minor
            pooled[step.payment.id] += moved
        elif isinstance(step, RefundStep):
            refund = step.refund
            assert 0 < refund.token_amount_minor <= refund.payment.asset_amount_minor
            assert moved == -refund.token_amount_minor
    assert pooled == expected


def test_each_promise_is_held_once_and_moved_in_full(
    booked: list[tuple[Step, Entry]], held: list[tuple[Step, Hold]]
) -> None:
    kinds = Counter(type(step) for step, _ in held)
    assert kinds[RefundStep] > 20
    assert kinds[PayoutStep] > 20
    assert PaymentStep not in kinds
    assert len({hold.idempotency_key for _, hold in held}) == len(held)
    promised = {hold.id: hold.amount_minor for _, hold in held}
    moved = {
        entry.posts_hold: entry.legs[0].amount_minor for _, entry in booked if entry.posts_hold
    }
    assert {entry.legs[0].kind for _, entry in booked if entry.posts_hold} == {"merchant_available"}
    assert len(promised) == len(held)
    assert moved == promised
