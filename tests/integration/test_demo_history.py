"""The demo's history in a real ledger: legal, balanced, gap-free, the same however it got in."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from infra.demo.history import PaymentStep, PayoutStep, Period, RefundStep, batches
from infra.demo.loader import HistoryRefusedError, Ledger, Outcome
from infra.demo.merchants import PROFILES
from infra.stack.process import base_environment
from tests.fixtures.services import CHECKOUT, DatabaseServer, run_module

PERIOD = Period(11, datetime(2026, 3, 20, 9, 30, tzinfo=UTC), days=8, payments_per_day=45)
# Small batches, so that a few days are many database transactions and a kill lands between two.
MAX_PAYMENTS = 12
LOAD_TIMEOUT_S = 120.0

# What a loader process does, slowly enough to be killed on the way.
LOAD_SCRIPT = """
import sys
from tests.integration.test_demo_history import load
load(sys.argv[1], pace_rows_per_s=int(sys.argv[2]))
"""

# Everything history wrote, without what PostgreSQL itself numbers or stamps: account and event ids.
ROWS: dict[str, LiteralString] = {
    "payments": "SELECT * FROM payments ORDER BY id",
    "refunds": "SELECT * FROM refunds ORDER BY id",
    "payouts": "SELECT * FROM payouts ORDER BY id",
    "entries": "SELECT * FROM ledger_entries ORDER BY id",
    "postings": """
        SELECT p.entry_id, p.seq, p.merchant_id, a.kind, p.asset, p.amount_minor, p.created_at
        FROM ledger_postings AS p JOIN ledger_accounts AS a ON a.id = p.account_id
        ORDER BY p.entry_id, p.seq""",
    "balances": """
        SELECT path, posted_minor, held_minor FROM ledger_accounts ORDER BY path""",
    "holds": """
        SELECT h.id, a.path, h.amount_minor, h.status, h.idempotency_key, h.refund_id, h.payout_id,
               h.entry_id, h.expires_at, h.created_at, h.status_at
        FROM ledger_holds AS h JOIN ledger_accounts AS a ON a.id = h.account_id ORDER BY h.id""",
    "events": """
        SELECT merchant_id, mode, seq, payment_id, refund_id, payout_id, type, data, created_at
        FROM merchant_events ORDER BY merchant_id, mode, seq""",
}

MakeLedger = Callable[[str], str]


@pytest.fixture(scope="module")
def make_ledger(ledger_cluster: DatabaseServer) -> Iterator[MakeLedger]:
    """Return a function that makes a migrated ledger with the demo merchants, by database name."""
    made: list[str] = []

    def make(name: str) -> str:
        with psycopg.connect(ledger_cluster.superuser_url(), autocommit=True) as server:
            server.execute(f'CREATE DATABASE "{name}" OWNER giovang_owner')
        made.append(name)
        run_module(
            "api.migrations",
            GIOVANG_API_MIGRATION_URL=ledger_cluster.url("giovang_owner", name),
        )
        url = ledger_cluster.superuser_url(name)
        with psycopg.connect(url, autocommit=True) as database:
            for profile in PROFILES:
                database.execute(
                    "INSERT INTO merchants (id, name, trade, timezone, country, fee_bps)"
                    " VALUES (%s, %s, %s, 'Asia/Ho_Chi_Minh', 'VN', %s)",
                    (
                        profile.merchant_id(PERIOD.seed),
                        profile.name,
                        profile.trade,
                        profile.fee_bps,
                    ),
                )
        return url

    yield make
    with psycopg.connect(ledger_cluster.superuser_url(), autocommit=True) as server:
        for name in made:
            server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture(scope="module")
def loaded(make_ledger: MakeLedger) -> str:
    """A ledger into which the history went in one go."""
    url = make_ledger("history_whole")
    outcome = load(url)
    assert outcome.batches > 20
    return url


def load(url: str, *, period: Period = PERIOD, pace_rows_per_s: int = 0) -> Outcome:
    with Ledger(url) as ledger:
        return ledger.load(
            ledger.prepare(period),
            pace_rows_per_s=pace_rows_per_s,
            report=lambda _: None,
            max_payments=MAX_PAYMENTS,
        )


def query(url: str, statement: LiteralString, *values: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as database:
        return database.execute(statement, values or None).fetchall()


def count(url: str, statement: LiteralString) -> int:
    return int(query(url, statement)[0][0])


def all_rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    return {name: query(url, statement) for name, statement in ROWS.items()}


def test_every_state_that_was_invented_is_an_event(loaded: str) -> None:
    invented = [
        (step.payment.id, f"payment.{step.state.status}", step.at)
        for batch in batches(PERIOD)
        for step in batch.steps
        if isinstance(step, PaymentStep)
    ]
    invented += [
        (step.refund.id, f"refund.{step.status}", step.at)
        for batch in batches(PERIOD)
        for step in batch.steps
        if isinstance(step, RefundStep)
    ]
    invented += [
        (step.id, f"payout.{step.status}", step.at)
        for batch in batches(PERIOD)
        for step in batch.steps
        if isinstance(step, PayoutStep)
    ]
    stored = query(
        loaded,
        "SELECT coalesce(refund_id, payout_id, payment_id), type, created_at FROM merchant_events",
    )
    assert len(invented) > 900
    assert {kind for _, kind, _ in invented} >= {"refund.completed", "payout.settled"}
    assert sorted(stored) == sorted(invented)


def test_each_entry_sums_to_zero_in_each_asset(loaded: str) -> None:
    assert count(loaded, "SELECT count(*) FROM ledger_entries") > 250
    off_balance = query(
        loaded,
        "SELECT entry_id, asset, sum(amount_minor) FROM ledger_postings"
        " GROUP BY entry_id, asset HAVING sum(amount_minor) <> 0",
    )
    assert off_balance == []


def test_what_was_promised_is_held_until_it_is_moved(loaded: str) -> None:
    promises = query(
        loaded,
        """SELECT coalesce(r.status, p.status), h.status, count(*),
                  count(*) FILTER (WHERE h.amount_minor <> coalesce(r.amount_minor, p.amount_minor))
           FROM ledger_holds AS h LEFT JOIN refunds AS r ON r.id = h.refund_id
           LEFT JOIN payouts AS p ON p.id = h.payout_id
           GROUP BY 1, 2 ORDER BY 1""",
    )
    assert [(status, held, wrong) for status, held, _, wrong in promises] == [
        ("completed", "posted", 0),
        ("settled", "posted", 0),
    ]
    whole = "SELECT (SELECT count(*) FROM refunds) + (SELECT count(*) FROM payouts)"
    assert sum(number for _, _, number, _ in promises) == count(loaded, whole)
    assert count(loaded, "SELECT count(*) FROM payouts WHERE approved_by = requested_by") == 0
    assert count(loaded, "SELECT count(*) FROM ledger_accounts WHERE held_minor <> 0") == 0
    assert count(loaded, "SELECT count(*) FROM ledger_accounts WHERE mode <> 'test'") == 0


def test_balances_are_the_sums_of_their_postings(loaded: str) -> None:
    different = query(
        loaded,
        "SELECT a.kind, a.asset, a.posted_minor, coalesce(sum(p.amount_minor), 0)"
        " FROM ledger_accounts AS a LEFT JOIN ledger_postings AS p ON p.account_id = a.id"
        " GROUP BY a.id HAVING a.posted_minor <> coalesce(sum(p.amount_minor), 0)",
    )
    assert different == []


def test_each_merchants_events_are_numbered_without_a_gap_in_order_of_time(loaded: str) -> None:
    per_merchant = query(
        loaded,
        "SELECT e.merchant_id, count(*), min(seq), max(seq), c.last_seq"
        " FROM merchant_events AS e JOIN merchant_event_counters AS c USING (merchant_id, mode)"
        " GROUP BY e.merchant_id, c.last_seq",
    )
    assert len(per_merchant) == len(PROFILES)
    assert all(
        lowest == 1 and events == highest == last
        for _, events, lowest, highest, last in per_merchant
    )
    backwards = count(
        loaded,
        "SELECT count(*) FROM (SELECT created_at < lag(created_at) OVER (PARTITION BY merchant_id"
        " ORDER BY seq) AS earlier FROM merchant_events) AS ordered WHERE earlier",
    )
    assert backwards == 0


def test_completed_payments_and_only_they_are_booked_in_full(loaded: str) -> None:
    completed = set(
        query(
            loaded, "SELECT id, settled_minor, fee_minor FROM payments WHERE status = 'completed'"
        )
    )
    booked = set(
        query(
            loaded,
            "SELECT e.payment_id, sum(p.amount_minor) FILTER (WHERE a.kind = 'liquidity')::bigint,"
            " coalesce(-sum(p.amount_minor) FILTER (WHERE a.kind = 'fee_revenue'), 0)::bigint"
            " FROM ledger_entries AS e JOIN ledger_postings AS p ON p.entry_id = e.id"
            " JOIN ledger_accounts AS a ON a.id = p.account_id"
            " WHERE e.kind = 'payment_completed' AND p.asset = 'VND' GROUP BY e.payment_id",
        )
    )
    assert len(completed) > 250
    assert booked == completed


def test_moments_are_those_of_the_past_and_agree_with_each_other(loaded: str) -> None:
    wrong = query(
        loaded,
        "SELECT id FROM payments WHERE updated_at <> status_at OR created_at > status_at"
        " OR (completed_at IS NOT NULL) <> (status = 'completed')"
        " OR completed_at <> status_at OR status_at > %s OR created_at < %s",
        PERIOD.until,
        PERIOD.until - timedelta(days=PERIOD.days),
    )
    assert wrong == []
    assert (
        count(
            loaded,
            "SELECT count(*) FROM payments WHERE status NOT IN ('completed', 'expired', 'failed')",
        )
        == 0
    )


def test_the_audit_trail_names_the_history_as_author(loaded: str) -> None:
    actors = query(
        loaded, "SELECT DISTINCT actor FROM audit_logs WHERE subject_type IN ('payment', 'entry')"
    )
    assert actors == [("demo:history",)]


def test_loading_again_changes_nothing(loaded: str) -> None:
    before = all_rows(loaded)
    outcome = load(loaded)
    assert outcome.already
    assert all_rows(loaded) == before


def test_a_later_start_keeps_the_period_of_the_first(loaded: str) -> None:
    later = Period(PERIOD.seed, PERIOD.until + timedelta(days=3), 9, PERIOD.payments_per_day)
    assert load(loaded, period=later).period == PERIOD


def test_another_ledger_gets_the_same_rows(loaded: str, make_ledger: MakeLedger) -> None:
    again = make_ledger("history_again")
    load(again)
    assert all_rows(again) == all_rows(loaded)


def test_a_load_killed_on_the_way_ends_with_the_same_rows(
    loaded: str, make_ledger: MakeLedger
) -> None:
    url = make_ledger("history_killed")
    reached = [kill_a_load_after(url, more) for more in (3, 6)]
    assert 3 <= reached[0] < reached[1] < count(loaded, "SELECT count(*) FROM demo.history_batches")
    outcome = load(url)
    assert outcome.batches > 0
    assert not outcome.already
    assert all_rows(url) == all_rows(loaded)


def kill_a_load_after(url: str, more: int) -> int:
    """Start a loader process, SIGKILL it once so many more batches are in; returns how many are."""
    enough = _batches_in(url) + more
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD_SCRIPT, url, "800"],
        cwd=CHECKOUT,
        env=base_environment(Path("/tmp")),  # noqa: S108
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + LOAD_TIMEOUT_S
        while _batches_in(url) < enough:
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < deadline, "the loader is too slow"
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate(timeout=60)
    return _batches_in(url)


def _batches_in(url: str) -> int:
    if query(url, "SELECT to_regclass('demo.history_batches')") == [(None,)]:
        return 0
    return count(url, "SELECT count(*) FROM demo.history_batches")


def test_a_history_refused_for_want_of_merchants_leaves_the_ledger_free(
    make_ledger: MakeLedger,
) -> None:
    url = make_ledger("history_refused")
    other = Period(PERIOD.seed + 1, PERIOD.until, PERIOD.days, PERIOD.payments_per_day)
    with pytest.raises(HistoryRefusedError, match="not registered"):
        load(url, period=other)
    assert count(url, "SELECT count(*) FROM payments") == 0
    short = Period(PERIOD.seed, PERIOD.until, 1, 10)
    assert load(url, period=short).period == short


def test_two_loaders_do_not_work_at_once(loaded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.demo.loader.LOCK_TIMEOUT_S", 0.5)
    with Ledger(loaded) as first:
        first.prepare(PERIOD)
        with Ledger(loaded) as second, pytest.raises(HistoryRefusedError, match="another"):
            second.prepare(PERIOD)
