"""What the engine finds of payments, and which events are payments at all."""

import tracemalloc
from dataclasses import replace
from datetime import timedelta
from typing import Any

import orjson
import pytest

from ingest.contract import ChangeEvent, Operation, subject_for
from streams.risk.engine import Alert, Engine
from streams.risk.payments import ARRIVALS, Payment, payment_of
from streams.rows import PoisonEventError
from tests.fixtures import ledger_stream as ledger
from tests.fixtures.risk import arrival, judged, payment, rules

MINUTE = timedelta(minutes=1)


def found(payments: list[Payment], rule_id: str) -> list[Alert]:
    return [alert for alert in judged(rules(), payments) if alert.rule_id == rule_id]


def every(minutes: float, count: int, **changes: Any) -> list[Payment]:
    """Payments one after the other."""
    return [
        payment(number, ledger.START + (number - 1) * minutes * MINUTE, **changes)
        for number in range(1, count + 1)
    ]


def test_an_alert_says_all_that_is_needed() -> None:
    (alert,) = found(every(1, 4), "wallet-velocity")
    assert orjson.loads(alert.to_bytes()) == {
        "schema": 1,
        "id": f"0000000000000004-00000001:wallet-velocity:{rules().version}",
        "merchant_id": "mer_1",
        "payment_id": "pay_4",
        "event_id": "0000000000000004-00000001",
        "rule_id": "wallet-velocity",
        "rule_version": 1,
        "rule_set": rules().version,
        "severity": "medium",
        "score": 50,
        "reasons": {
            "en": "4 payments by one wallet in 10 minutes; the limit is 3.",
            "vi": "Một ví thanh toán 4 lần trong 10 phút; giới hạn là 3 lần.",
            "figures": {"count": 4, "limit": 3, "window_minutes": 10},
        },
        "occurred_at": "2026-03-01T02:03:00.000000Z",
    }


def test_a_fast_wallet_is_found_once_a_window() -> None:
    alerts = found(every(1, 40), "wallet-velocity")
    assert [alert.payment_id for alert in alerts] == ["pay_4", "pay_14", "pay_24", "pay_34"]
    assert [alert.reasons["figures"]["count"] for alert in alerts] == [4, 10, 10, 10]


def test_a_slow_wallet_is_not_found() -> None:
    assert found(every(10 / 3, 40), "wallet-velocity") == []


@pytest.mark.parametrize("apart", ["merchant_id", "wallet"])
def test_wallets_and_merchants_are_looked_at_apart(apart: str) -> None:
    mixed = [
        payment(one.sequence, one.at, **{apart: f"{getattr(one, apart)}{number % 2}"})
        for number, one in enumerate(every(1, 7))
    ]
    assert [alert.payment_id for alert in found(mixed, "wallet-velocity")] == ["pay_7"]


def test_what_is_not_known_of_a_payer_is_not_looked_at() -> None:
    assert judged(rules(), every(0.1, 50, wallet=None, country=None)) == []


def test_a_country_is_looked_at_over_its_own_window() -> None:
    payments = [replace(one, wallet=f"w{one.sequence}") for one in every(4, 20)]
    alerts = found(payments, "country-velocity")
    assert [alert.payment_id for alert in alerts] == ["pay_7", "pay_15"]


def test_an_unusual_amount_is_told_beside_the_usual() -> None:
    amounts = [50_000, 60_000, 70_000, 80_000, 90_000] * 4 + [2_000_000, 70_000, 2_000_000]
    payments = [replace(payment(n), amount_vnd=amount) for n, amount in enumerate(amounts, 1)]
    alerts = found(payments, "unusual-amount")
    assert [alert.payment_id for alert in alerts] == ["pay_21", "pay_23"]
    assert alerts[0].reasons["figures"] == {
        "amount_vnd": 2_000_000,
        "usual_vnd": 70_000,
        "times": 28,
        "payments": 20,
    }


@pytest.mark.parametrize(
    ("usual", "amount", "is_found"),
    [
        # Alike payments: the least spread, a fifth of the median, times 20 is 4 medians above it.
        ([300_000] * 20, 1_500_000, False),
        ([300_000] * 20, 1_500_001, True),
        # The same amount where payments differ much.
        ([100_000, 300_000, 900_000] * 6, 1_500_001, False),
        # Too few to know what is usual, or too small to matter.
        ([300_000] * 9, 1_500_001, False),
        ([10_000] * 20, 999_999, False),
    ],
)
def test_what_is_unusual_depends_on_the_merchants_own_history(
    usual: list[int], amount: int, is_found: bool
) -> None:
    payments = [replace(payment(n), amount_vnd=one) for n, one in enumerate([*usual, amount], 1)]
    assert bool(found(payments, "unusual-amount")) == is_found


def test_only_the_first_payment_of_a_wallet_is_a_first() -> None:
    small, large = payment(1), replace(payment(2), amount_vnd=60_000_000)
    assert [one.payment_id for one in found([large], "large-first-payment")] == ["pay_2"]
    assert found([small, large], "large-first-payment") == []
    assert found([replace(small, wallet="another"), large], "large-first-payment") != []


@pytest.mark.parametrize(
    ("amounts", "at"),
    [
        ([39_000_000, 39_000_000], "pay_2"),
        ([39_000_000, 100_000, 33_000_000], "pay_3"),
        ([40_000_000, 40_000_000], None),  # not below the threshold: each is seen as it is
        ([31_999_999] * 5, None),  # not just below it
        ([39_000_000], None),
    ],
)
def test_structuring_is_payments_just_below_that_together_reach_it(
    amounts: list[int], at: str | None
) -> None:
    payments = [replace(payment(n), amount_vnd=one) for n, one in enumerate(amounts, 1)]
    alerts = found(payments, "structuring")
    assert [alert.payment_id for alert in alerts] == ([at] if at else [])


def test_structuring_over_a_long_time_is_not_found() -> None:
    assert found(every(61, 10, amount_vnd=39_000_000), "structuring") == []


def test_a_payment_that_is_known_already_is_not_judged_again() -> None:
    engine, records = Engine(rules()), dict[bytes, bytes]()
    payments = every(1, 4)
    for one in payments:
        records |= engine.judge(one, records.get).records
    for one in payments:
        verdict = engine.judge(one, records.get)
        assert (verdict.alerts, verdict.records) == ((), {})


def test_a_record_takes_little_more_memory_than_its_text() -> None:
    """There is one for every wallet, for good."""
    engine, records = Engine(rules()), dict[bytes, bytes]()
    tracemalloc.start()
    for number in range(1, 201):
        one = payment(number, wallet=f"wallet{number}", country=None)
        records |= engine.judge(one, records.get).records
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / len(records) < 1000


def told(event: ChangeEvent, sequence: int = 7) -> Payment | None:
    assert event.subject in ARRIVALS
    return payment_of(event.subject, event.to_bytes(), sequence)


def test_a_completed_payment_is_read_whole() -> None:
    at = ledger.START + timedelta(microseconds=123456)
    event = arrival(5, at, settled_minor="20000")
    assert told(event) == Payment(
        sequence=7,
        event_id=event.id,
        payment_id=f"pay_{5:026d}",
        merchant_id=f"mer_{0:026d}",
        wallet="payer5",
        country="VN",
        amount_vnd=20_000,
        at_us=1_772_330_400_123_456,
    )
    assert payment(1, at).at == at.replace(microsecond=0)
    unsettled = told(arrival(5, at))
    assert unsettled is not None
    assert unsettled.amount_vnd == 25_005


@pytest.mark.parametrize("before", ["escrow_held", "awaiting_release", "disputed"])
def test_a_release_from_escrow_brings_no_money(before: str) -> None:
    assert told(arrival(5, ledger.START, before=before)) is None


def test_nothing_but_an_arrival_is_looked_at() -> None:
    """Creations, other updates, deletions and rows told again are on other subjects."""
    others = ("created", "pending", "confirming", "expired", "failed")
    subjects = {subject_for("payments", "insert", None, status) for status in others}
    subjects |= {subject_for("payments", "update", "completed", "completed")}
    subjects |= {subject_for("payments", Operation.DELETE), subject_for("payments", "snapshot")}
    subjects |= {subject_for("payouts", "insert", None, "requested")}
    assert not subjects & ARRIVALS
    assert subject_for("payments", "update", "confirming", "completed") in ARRIVALS
    assert subject_for("payments", "update", "confirming", "escrow_held") in ARRIVALS


@pytest.mark.parametrize(
    "changes",
    [
        {"currency": "USD"},
        {"amount_minor": "12.5"},
        {"merchant_id": "mer/1"},
        {"id": "pay_\0"},
        {"payer_address": 7},
        {"payer_country": "vn"},
        {"status_at": "2026-03-01T02:00:00"},
        {"status_at": "yesterday"},
    ],
)
def test_what_cannot_be_judged_is_poison(changes: dict[str, Any]) -> None:
    with pytest.raises(PoisonEventError):
        told(arrival(5, ledger.START, **changes))


def test_an_event_on_anothers_subject_or_without_a_column_is_poison() -> None:
    event = arrival(5, ledger.START)
    with pytest.raises(PoisonEventError, match="published on"):
        payment_of("ledger.payment.escrow_held", event.to_bytes(), 7)
    assert event.after is not None
    bare = {name: value for name, value in event.after.items() if name != "payer_country"}
    with pytest.raises(PoisonEventError, match="missing 'payer_country'"):
        told(replace(event, after=bare))
    for payload in (None, b"", b"{}"):
        with pytest.raises(PoisonEventError):
            payment_of(event.subject, payload, 7)
