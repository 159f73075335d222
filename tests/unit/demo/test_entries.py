"""Ledger entries of the invented past: balanced, complete, and under the product's own keys."""

from collections import Counter, defaultdict
from datetime import UTC, datetime

import pytest

from infra.demo.entries import Entry, entries_of
from infra.demo.history import PaymentStep, Period, Step, batches

PERIOD = Period(3, datetime(2026, 6, 30, 10, tzinfo=UTC), days=60, payments_per_day=150)


@pytest.fixture(scope="module")
def booked() -> list[tuple[Step, Entry]]:
    return [
        (step, entry)
        for batch in batches(PERIOD)
        for step in batch.steps
        for entry in entries_of(PERIOD.seed, step)
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
        "refund_requested",
        "refund_completed",
        "payout_requested",
        "payout_completed",
    }
    assert len({entry.id for _, entry in booked}) == len(booked)
    assert len({entry.idempotency_key for _, entry in booked}) == len(booked)


def test_tokens_booked_are_tokens_received(booked: list[tuple[Step, Entry]]) -> None:
    received: Counter[str] = Counter()
    pooled: Counter[str] = Counter()
    for step, entry in booked:
        if isinstance(step, PaymentStep):
            received[step.payment.id] = step.state.received_minor
            pooled[step.payment.id] += sum(
                leg.amount_minor for leg in entry.legs if leg.kind == "crypto_pool"
            )
    assert pooled == received


def test_reserved_money_is_released_in_full(booked: list[tuple[Step, Entry]]) -> None:
    for kind in ("refunds_payable", "payouts_reserved"):
        amounts = [
            leg.amount_minor for _, entry in booked for leg in entry.legs if leg.kind == kind
        ]
        assert amounts
        assert sum(amounts) == 0
