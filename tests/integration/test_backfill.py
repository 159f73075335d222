"""Rows told again: a first snapshot, a backfill that is killed, a closed gap, held rows.

The real server, broker and engine; backfills are processes of their own, as a person starts them. A
cluster of this module's own, since slots are lost here on purpose.
"""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from ingest.contract import Operation, Table
from streams.contract import Table as Raw
from streams.rows import row_for, table_for
from streams.store import Store
from tests.fixtures import services
from tests.fixtures.backfill import TIMEOUT_S, Backfill
from tests.fixtures.capture import CaptureRoom, Stored, capture_room, poll
from tests.fixtures.checksum import Comparison
from tests.fixtures.replay import TABLES, Churn, Marks, Replay, Rows, fill, key_of, table_rows
from tests.fixtures.services import BrokerServer, DatabaseServer

SEED = 20260214
OLD_ROWS = 5_000


@pytest.fixture(scope="module")
def ledger(module_folder: Path, postgres_tree: Path) -> Iterator[DatabaseServer]:
    server = services.start_ledger(module_folder, postgres_tree)
    services.run_module("api.migrations", GIOVANG_API_MIGRATION_URL=server.url("giovang_owner"))
    yield server
    server.stop()


@pytest.fixture
def before(ledger: DatabaseServer) -> Iterator[psycopg.Connection[Any]]:
    """A writer before there is a slot; afterwards the tables are empty again."""
    url = ledger.superuser_url("giovang")
    with psycopg.connect(url, options="-c session_replication_role=replica") as writer:
        yield writer
        writer.rollback()
        for table in reversed(TABLES):
            writer.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table)))


@pytest.fixture
def room(
    before: psycopg.Connection[Any], ledger: DatabaseServer, broker: BrokerServer, tmp_path: Path
) -> Iterator[CaptureRoom]:
    fill(before, "old", 300)
    before.commit()
    with capture_room(ledger, broker, tmp_path) as made:
        yield made


def rows_now(room: CaptureRoom) -> dict[str, Any]:
    with psycopg.connect(room.url) as database:
        return table_rows(database)


def snapshots(messages: list[Stored]) -> list[Stored]:
    return [stored for stored in messages if stored.event.operation is Operation.SNAPSHOT]


@pytest.mark.timeout(400)
def test_a_first_snapshot_joins_the_stream_whatever_dies(
    before: psycopg.Connection[Any], ledger: DatabaseServer, broker: BrokerServer, tmp_path: Path
) -> None:
    """Rows from before the slot, writers that go on, both processes killed in the middle."""
    fill(before, "old", OLD_ROWS)
    before.commit()
    with capture_room(ledger, broker, tmp_path) as room, contextlib.ExitStack() as until_done:
        backfill, marks = Backfill(room), Marks(room)
        gap = backfill.gap()
        room.engine.start()
        until_done.enter_context(Churn(room, SEED))
        marks.take()
        process = backfill.start("start", "--gap", str(gap))
        for kill in range(1, 4):
            poll(
                lambda kill=kill: backfill.rows() > kill * OLD_ROWS // 5,  # type: ignore[misc]
                what="rows are told",
                timeout_s=TIMEOUT_S,
            )
            if kill == 2:
                room.engine.kill()
                marks.take()
                room.engine.start(ready=False)
            else:
                process.kill()
                process.wait(timeout=60)
                marks.take()
                process = backfill.start("resume")
        assert backfill.end(process) == 0, backfill.log.read_text()[-2000:]
        marks.take()
        until_done.close()
        told_of = backfill.status()
        messages = room.drain()
        committed = room.auditor.committed()
    last_event = messages[-1].event.event_id
    comparison = Comparison()
    comparison.take(messages, [change for change in committed if change.place <= last_event])
    comparison.settle()
    later = {change.table for change in committed if change.place > last_event}
    assert later <= {Table.CAPTURE_HEARTBEAT}, "capture's own beat may come while we read"
    replay = Replay().take(messages, marks.rows)
    last = max(marks.rows)
    for number, tables in marks.rows.items():
        for table in TABLES:
            known = replay.marks[number][table]
            expected = tables[table]
            if number != last:
                expected = {key: row for key, row in expected.items() if key in known}
            assert known == expected, f"{table} at mark {number}"
    assert told_of["gaps"] == [], "the gap is closed"
    told_again = snapshots(messages)
    assert len(told_again) >= OLD_ROWS // 2
    for run in told_of["runs"]:
        keys = [
            key_of(stored.event.table, stored.event.row)
            for stored in told_again
            if stored.event.backfill == run["id"]
        ]
        assert len(keys) == len(set(keys)) == run["rows"], "a chunk was told twice, or not at all"
        assert run["state"] == "finished"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["dropped", "invalidated"])
def test_a_lost_slot_is_a_gap_that_a_backfill_closes(room: CaptureRoom, how: str) -> None:
    backfill = Backfill(room)
    room.engine.start()
    backfill.run("start", "--gap", str(backfill.gap()))
    assert room.engine.stop() == 0
    with psycopg.connect(room.url, autocommit=True) as database:
        if how == "dropped":
            database.execute("SELECT pg_drop_replication_slot(%s)", (room.slot,))
        with room.connect() as writer:
            fill(writer, f"{room.tag}missed", 50)
            writer.execute("DELETE FROM payments WHERE id IN (SELECT id FROM payments LIMIT 40)")
            writer.execute("DELETE FROM ledger_postings WHERE seq = 2")
            writer.execute("DELETE FROM ledger_entries")
            writer.execute("UPDATE merchants SET name = 'renamed'")
        if how == "invalidated":
            _lose_log(database, room.slot)
    refused = room.provision()
    assert refused.returncode == 1
    assert "captured by nobody" in refused.stderr
    accepted = room.provision("--accept-gap")
    assert accepted.returncode == 0, accepted.stderr
    assert "python -m ingest.backfill start --gap" in accepted.stderr

    room.engine.start()
    messages = room.drain()
    assert Replay(strict=False).take(messages).rows != rows_now(room), "nothing was missed"
    with Churn(room, SEED):
        told = backfill.run("start", "--gap", str(backfill.gap()))
    assert "is closed" in told
    messages = room.drain()
    assert Replay(strict=False).take(messages).rows == rows_now(room)
    gone = [
        stored
        for stored in messages
        if stored.event.operation is Operation.DELETE and stored.event.backfill is not None
    ]
    assert {stored.event.table for stored in gone} == {
        "payments",
        "ledger_entries",
        "ledger_postings",
    }
    assert all(stored.event.before for stored in gone)
    status = backfill.status()
    assert status["gaps"] == []
    assert sum(run["gone"] for run in status["runs"]) == len(gone)
    told_before = len(room.ledger.messages())
    backfill.run("start", "payments", "--deletes")
    again = room.ledger.messages(after=told_before)
    assert not [stored for stored in again if stored.event.operation is Operation.DELETE]


def _lose_log(database: psycopg.Connection[Any], slot: str) -> None:
    """Let PostgreSQL remove the log that the slot needs."""
    database.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
    try:
        database.execute("SELECT pg_reload_conf()")

        def lost() -> bool:
            database.execute("SELECT pg_logical_emit_message(true, 'fill', repeat('x', 1000000))")
            database.execute("SELECT pg_switch_wal()")
            database.execute("CHECKPOINT")
            return database.execute(
                "SELECT wal_status FROM pg_replication_slots WHERE slot_name = %s", (slot,)
            ).fetchone() == ("lost",)

        poll(lost, what="the slot is lost", timeout_s=60)
    finally:
        database.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        database.execute("SELECT pg_reload_conf()")


def test_what_is_told_again_has_the_form_of_what_happened(
    room: CaptureRoom, analytics_database: DatabaseServer
) -> None:
    """Column by column; and a warehouse that has it all is not changed by it."""
    room.engine.start()
    with room.connect() as writer:
        fill(writer, f"{room.tag}new", 30)
    happened = Replay().take(room.drain()).rows
    backfill = Backfill(room)
    backfill.run("start", "--all")
    messages = room.drain()
    told = snapshots(messages)
    compared = dict.fromkeys(TABLES, 0)
    for stored in told:
        event = stored.event
        streamed = happened[event.table].get(key_of(event.table, event.row))
        if streamed is not None:
            assert event.after is not None
            assert list(event.after.items()) == list(streamed.items()), event.table
            compared[event.table] += 1
        assert event.before is None
        assert stored.subject.endswith(".snapshot")
    assert all(compared.values()), compared
    now = rows_now(room)
    assert Replay().take(messages).rows == now

    before = load(analytics_database, [])
    known = load(analytics_database, messages)
    assert known != before, "nothing to change"
    _parts(room, backfill, now["payments"])
    assert len(backfill.status()["gaps"]) == 1, "neither parts nor rows alone close a gap"
    told_before = room.ledger.last_sequence()
    backfill.run("start", "--all", "--deletes")
    again = room.ledger.messages(after=told_before)
    assert len(snapshots(again)) == len(told)
    assert load(analytics_database, again) == known
    assert backfill.status()["gaps"] == []


def _parts(room: CaptureRoom, backfill: Backfill, payments: Rows) -> None:
    """A range of keys, and one merchant's rows."""
    keys = sorted(key for (key,) in payments)
    told_before = room.ledger.last_sequence()
    backfill.run("start", "payments", "--from", keys[10], "--to", keys[20])
    merchant = f"mer_{3:026d}"
    backfill.run("start", "payments", "--merchant", merchant, "--deletes")
    second, first = backfill.status()["runs"][:2]
    told = snapshots(room.ledger.messages(after=told_before))
    assert [s.event.row["id"] for s in told if s.event.backfill == first["id"]] == keys[10:21]
    theirs = [s.event for s in told if s.event.backfill == second["id"]]
    assert {event.key for event in theirs} == {merchant}
    assert len(theirs) == sum(row["merchant_id"] == merchant for row in payments.values())


def load(warehouse: DatabaseServer, messages: list[Stored]) -> list[Any]:
    """Load events as the warehouse's processor does; return every row of its tables."""

    async def write() -> None:
        store = Store(warehouse.url("giovang_streams"))
        mapped = [
            row
            for stored in messages
            if (table := table_for(stored.subject)) is not None
            and (row := row_for(table, stored.subject, stored.payload)) is not None
        ]
        for start in range(0, len(mapped), 100):
            await store.write(mapped[start : start + 100], None)
        await store.close()

    asyncio.run(write())
    with psycopg.connect(warehouse.superuser_url("analytics")) as database:
        return [
            database.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3".encode()).fetchall()  # noqa: S608
            for table in Raw
            if table is not Raw.WATERMARK
        ]


def test_a_held_row_pauses_the_run_and_harms_no_writer(room: CaptureRoom) -> None:
    backfill = Backfill(room)
    keys = sorted(key for (key,) in rows_now(room)["payments"])
    with room.connect() as holder, psycopg.connect(room.url, autocommit=True) as database:
        # It has a second at least; where all is slow, more.
        holder.execute("SET deadlock_timeout = '9s'")
        holder.execute("SET lock_timeout = '8s'")
        holder.execute("UPDATE payments SET order_id = 'held' WHERE id = %s", (keys[50],))
        process = backfill.start("start", "payments", "--patience-s", "12")
        poll(lambda: bool(_waits(database, room)), what="the backfill meets the row", timeout_s=60)
        # What a chunk holds it gives back before PostgreSQL would choose who has to die.
        holder.execute("UPDATE payments SET order_id = 'held' WHERE id = %s", (keys[0],))
        assert backfill.end(process) == 1
        assert "rows of payments are locked" in backfill.log.read_text()
        (run,) = backfill.status()["runs"]
        assert run["state"] == "paused"
        assert "locked" in run["reason"]
        holder.commit()
    room.engine.start()
    backfill.run("resume")
    assert {s.event.row["id"] for s in snapshots(room.drain())} == set(keys)


def _waits(database: psycopg.Connection[Any], room: CaptureRoom) -> list[Any]:
    return database.execute(
        "SELECT FROM pg_stat_activity WHERE application_name = %s AND wait_event_type = 'Lock'",
        (f"backfill {room.slot}",),
    ).fetchall()


def test_without_capture_a_run_is_paused_and_a_new_gap_ends_it(room: CaptureRoom) -> None:
    backfill = Backfill(room)
    said = backfill.run("start", "payouts", "--patience-s", "5", status=1)
    assert "does capture run?" in said
    (run,) = backfill.status()["runs"]
    assert (run["state"], run["rows"]) == ("paused", 20)
    said = backfill.run("resume", "--patience-s", "1", "--max-lag-mib", "0", status=1)
    assert "does capture run?" in said

    with psycopg.connect(room.url, autocommit=True) as database:
        database.execute("SELECT pg_drop_replication_slot(%s)", (room.slot,))
        assert room.provision("--accept-gap").returncode == 0
    room.engine.start()
    assert "start anew" in backfill.run("resume", status=1)
    assert backfill.status()["runs"][0]["state"] == "cancelled"
    assert len(backfill.status()["gaps"]) == 2
    backfill.run("start", "--gap", str(backfill.status()["gaps"][-1]["id"]))
    assert backfill.status()["gaps"] == [], "what was read after both gaps closes both"
