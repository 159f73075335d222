"""The contract's words agree with themselves and with the migrations that enforce them."""

import re
from enum import StrEnum
from pathlib import Path

import pytest

from api.contract import (
    CAPTURED_TABLES,
    DECIMALS,
    PUBLICATION,
    TRANSITIONS,
    Asset,
    HoldStatus,
    PaymentStatus,
    PayoutStatus,
    RefundStatus,
    is_final,
    may_move,
    payment_event,
)
from api.ledger.model import AccountKind, EntryKind

SQL = Path(__file__).resolve().parents[3] / "api" / "migrations" / "sql"
STATUSES: dict[str, tuple[str, type[StrEnum]]] = {
    "payment": ("created", PaymentStatus),
    "refund": ("requested", RefundStatus),
    "payout": ("requested", PayoutStatus),
    "hold": ("pending", HoldStatus),
}


def sql(pattern: str) -> str:
    (found,) = SQL.glob(pattern)
    return found.read_text()


def test_migrations_seed_the_transitions_of_the_contract() -> None:
    text = sql("040_*.sql") + sql("060_*.sql") + sql("155_*.sql")
    text += sql("120_*.sql").partition("INSERT INTO")[2]
    step = r"\('(payment|refund|payout|hold)',\s*'(\w+)',\s*'(\w+)'(?:,\s*(?:true|false))?\)"
    seeded = set(re.findall(step, text))
    stated = {
        (subject, before, after)
        for subject, steps in TRANSITIONS.items()
        for before, afters in steps.items()
        for after in afters
    }
    assert seeded == stated


@pytest.mark.parametrize("subject", TRANSITIONS)
def test_every_status_is_reachable_and_named(subject: str) -> None:
    first, statuses = STATUSES[subject]
    named = {status.value for status in statuses}
    reached, open_ends = {first}, [first]
    while open_ends:
        for after in TRANSITIONS[subject].get(open_ends.pop(), ()):
            if after not in reached:
                reached.add(after)
                open_ends.append(after)
    assert reached == named


def test_final_statuses_lead_nowhere() -> None:
    finals = {status for status in PaymentStatus if is_final("payment", status)}
    assert finals == {"resolved"}
    assert may_move("payment", "completed", "failed")
    assert may_move("payment", "failed", "confirming")
    assert may_move("payment", "expired", "confirming")
    assert not may_move("payment", "expired", "pending")
    assert not may_move("payment", "completed", "pending")
    assert not may_move("payment", "created", "completed")
    assert may_move("payment", "confirming", "completed")


def test_publication_and_tables_are_those_of_the_migration() -> None:
    first = re.search(
        rf"CREATE PUBLICATION {PUBLICATION} FOR TABLE\s+([\w\s,]+);", sql("080_*.sql")
    )
    later = re.search(rf"ALTER PUBLICATION {PUBLICATION} ADD TABLE (\w+);", sql("170_*.sql"))
    assert first is not None
    assert later is not None
    listed = {name.strip() for name in first[1].split(",")} | {later[1]}
    assert listed == set(CAPTURED_TABLES)


def test_ledger_kinds_are_allowed_by_the_migration() -> None:
    text = sql("120_*.sql")
    for kind in (*AccountKind, *EntryKind):
        assert f"'{kind.value}'" in text, kind


def test_words() -> None:
    assert payment_event(PaymentStatus.COMPLETED) == "payment.completed"
    assert {DECIMALS[asset] for asset in Asset} == {6}
    assert DECIMALS["VND"] == 0
