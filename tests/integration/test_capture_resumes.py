"""Where capture goes on, and where it refuses to: offset, slot and stream must agree.

Real PostgreSQL, NATS and engine; what the stream holds is compared with what an auditor with a slot
of its own saw committed.
"""

import asyncio
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nats
import psycopg
import pytest
from psycopg import sql

from ingest.checkpoint import Done, lsn_text, offset_value
from tests.fixtures.capture import (
    DRAIN_TIMEOUT_S,
    READY_TIMEOUT_S,
    CaptureRoom,
    Stored,
    capture_room,
    poll,
)
from tests.fixtures.checksum import assert_same
from tests.fixtures.ledger_writers import PAYMENT
from tests.fixtures.services import BrokerServer, DatabaseServer


@pytest.fixture
def room(
    ledger_database: DatabaseServer, broker: BrokerServer, tmp_path: Path
) -> Iterator[CaptureRoom]:
    with capture_room(ledger_database, broker, tmp_path) as made:
        yield made


def test_an_offset_stored_while_capture_starts_loses_nothing(room: CaptureRoom) -> None:
    """Of a process that was killed, PostgreSQL may carry out the last statements late."""
    end = _killed_before_its_offset(room)
    _frozen_while_it_starts(room)
    _store_offset(room, end)
    room.beat()
    room.engine.thaw()
    assert_same(room.drain(), room.auditor)


def test_a_slot_that_moves_while_capture_starts_loses_nothing(room: CaptureRoom) -> None:
    """As another process leaves it that took over from this one, and is gone again."""
    end = _killed_before_its_offset(room)
    _frozen_while_it_starts(room)
    _store_offset(room, end)
    with psycopg.connect(room.url, autocommit=True) as database:
        database.execute("SELECT pg_replication_slot_advance(%s, %s)", (room.slot, lsn_text(end)))
    room.beat()
    room.engine.thaw()
    assert room.engine.wait_for_exit() == 1
    assert "ahead of the stored offset" in room.engine.reasons()[-1]
    room.engine.start()
    assert_same(room.drain(), room.auditor)


def test_the_further_of_two_offsets_stays(room: CaptureRoom) -> None:
    """What a process that was frozen does when it wakes, as Debezium's store does it."""
    offset = room.stored_offset()
    table = sql.Identifier("capture", f"{room.slot}_offset")
    url = room.database.url("giovang_capture")
    with psycopg.connect(url) as first, psycopg.connect(url) as late:
        row = first.execute(sql.SQL("SELECT * FROM {}").format(table)).fetchone()
        assert row is not None
        first.commit()

        def store(writer: psycopg.Connection[tuple[Any, ...]], position: int) -> None:
            value = row[2].replace(str(offset), str(position))
            writer.execute(sql.SQL("DELETE FROM {}").format(table))
            writer.execute(
                sql.SQL("INSERT INTO {} VALUES (%s, %s, %s, %s, %s)").format(table),
                (row[0], row[1], value, row[3], row[4]),
            )

        def store_late(position: int) -> None:
            store(late, position)
            late.commit()

        for position in (offset + 8, offset + 32):
            store(first, offset + 16)
            with ThreadPoolExecutor(1) as beside:
                waiting = beside.submit(store_late, position)
                poll(lambda: _waits(room, late), what="the late writer", timeout_s=60)
                first.commit()
                waiting.result(60)
            assert room.stored_offset() == max(offset + 16, position), "and it is the only row"
        store_late(offset + 24)
    assert room.stored_offset() == offset + 32


def _waits(room: CaptureRoom, writer: psycopg.Connection[tuple[Any, ...]]) -> bool:
    with psycopg.connect(room.url, autocommit=True) as database:
        found = database.execute(
            "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = %s",
            (writer.info.backend_pid,),
        ).fetchone()
    return found is not None and found[0] is True


def _killed_before_its_offset(room: CaptureRoom) -> int:
    """Publish one beat and kill capture before it stores that; return where the beat ends."""
    room.engine.start()
    poll(
        lambda: room.stored_offset() > room.ledger.messages()[-1].event.position,
        what="the offset behind the first event",
        timeout_s=READY_TIMEOUT_S,
    )
    with psycopg.connect(room.url) as database:
        # Debezium stores its offset once a second; now it waits, and who reads it does not.
        table = sql.Identifier("capture", f"{room.slot}_offset")
        database.execute(sql.SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(table))
        stored = room.stored_offset()
        number = room.beat()
        poll(
            lambda: room.ledger.last_beat() >= number,
            what="the beat on the stream",
            timeout_s=DRAIN_TIMEOUT_S,
        )
        room.engine.kill()
    assert room.stored_offset() == stored == room.ledger.messages()[-1].event.position
    room.beat()
    # An id begins with the place where the one before it ended.
    return room.auditor.committed()[-1].place.position


def _frozen_while_it_starts(room: CaptureRoom) -> None:
    """Start capture, and stop it between its look at the offset and Debezium's."""
    begun = room.engine.log.read_text().count('"capture resumes"')
    room.engine.start(ready=False)
    poll(
        lambda: room.engine.log.read_text().count('"capture resumes"') > begun,
        what="capture resumes",
        timeout_s=READY_TIMEOUT_S,
    )
    room.engine.freeze()


def _store_offset(room: CaptureRoom, position: int) -> None:
    """Store an offset as Debezium does."""
    value = json.dumps(offset_value(Done(position, room.ledger.last_sequence())))
    with psycopg.connect(room.url) as database:
        table = sql.Identifier("capture", f"{room.slot}_offset")
        database.execute(sql.SQL("UPDATE {} SET offset_val = %s").format(table), (value,))


def test_capture_refuses_where_it_would_lose_or_double(room: CaptureRoom) -> None:
    room.engine.start()
    with room.connect() as writer:
        writer.execute(PAYMENT, {"prefix": room.tag + "one", "count": 3})
    room.drain()
    assert room.engine.stop() == 0

    with psycopg.connect(room.url, autocommit=True) as database:
        table = sql.Identifier("capture", f"{room.slot}_offset")
        kept = database.execute(sql.SQL("SELECT * FROM {}").format(table)).fetchone()
        database.execute(sql.SQL("DELETE FROM {}").format(table))
        assert "no offset is stored, but the stream" in _refusal(room)
        refused = room.provision()
        assert refused.returncode == 1
        assert "would be published again" in json.loads(refused.stderr.splitlines()[-1])["reason"]
        database.execute(sql.SQL("INSERT INTO {} VALUES (%s, %s, %s, %s, %s)").format(table), kept)

        with room.connect() as writer:
            writer.execute(PAYMENT, {"prefix": room.tag + "two", "count": 3})
        database.execute(
            "SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", (room.slot,)
        )
        assert "ahead of the stored offset" in _refusal(room)

        database.execute("SELECT pg_drop_replication_slot(%s)", (room.slot,))
        assert "is missing: changes since it was dropped" in _refusal(room)
        refused = room.provision()
        assert refused.returncode == 1
        assert "captured by nobody" in refused.stderr
        accepted = room.provision("--accept-gap")
        assert accepted.returncode == 0, accepted.stderr
    room.engine.start()
    assert room.engine.stop() == 0


def _refusal(room: CaptureRoom) -> str:
    room.engine.start(ready=False)
    assert room.engine.wait_for_exit() == 1
    return room.engine.reasons()[-1]


def test_provisioning_twice_changes_nothing_and_drift_is_named(room: CaptureRoom) -> None:
    again = room.provision()
    assert again.returncode == 0
    assert json.loads(again.stderr.splitlines()[-1])["made"] == []
    room.env["GIOVANG_INGEST_STREAM_MAX_BYTES"] = str(256 * 1024**2)
    drifted = room.provision()
    assert drifted.returncode == 1
    reason = json.loads(drifted.stderr.splitlines()[-1])["reason"]
    assert f"max_bytes is {512 * 1024**2}, stated is {256 * 1024**2}" in reason
    room.env["GIOVANG_INGEST_STREAM_MAX_BYTES"] = str(512 * 1024**2)

    room.engine.start()
    room.drain()
    assert room.engine.stop() == 0
    room.ledger.delete()
    assert "the stream is missing" in _refusal(room)
    gone = room.provision()
    assert gone.returncode == 1
    assert "were published to it" in json.loads(gone.stderr.splitlines()[-1])["reason"]
    assert room.provision("--accept-gap").returncode == 0


def test_a_stream_that_lost_its_end_is_a_gap(room: CaptureRoom) -> None:
    """As a backup of JetStream leaves it: shorter than what was acknowledged."""
    room.engine.start()
    written = room.drain()
    assert room.engine.stop() == 0
    _put_back(room, written[:1])
    assert "it lost events" in _refusal(room)
    refused = room.provision()
    assert refused.returncode == 1
    assert "events are missing at its end" in json.loads(refused.stderr.splitlines()[-1])["reason"]
    accepted = room.provision("--accept-gap")
    assert accepted.returncode == 0, accepted.stderr
    with psycopg.connect(room.url, autocommit=True) as database:
        gap = database.execute(
            "SELECT after, until FROM capture.gap WHERE slot = %s ORDER BY id DESC LIMIT 1",
            (room.slot,),
        ).fetchone()
    assert gap == (written[0].event.position, room.stored_offset())
    room.engine.start()
    missing = {stored.event.id for stored in written[1:]}
    told_now = {stored.event.id for stored in room.drain()}
    committed = {str(change.place) for change in room.auditor.committed()}
    assert committed - told_now == missing


def _put_back(room: CaptureRoom, messages: Sequence[Stored]) -> None:
    """Make the stream anew, as it was, with these messages."""

    async def work() -> None:
        client = await nats.connect(room.broker.url, allow_reconnect=False)
        try:
            jetstream: Any = client.jetstream()
            config = (await jetstream.stream_info("LEDGER")).config
            await jetstream.delete_stream("LEDGER")
            await jetstream.add_stream(config)
            for message in messages:
                await jetstream.publish(message.subject, message.payload, headers=message.headers)
        finally:
            await client.close()

    asyncio.run(asyncio.wait_for(work(), DRAIN_TIMEOUT_S))
