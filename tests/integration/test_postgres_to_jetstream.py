"""From PostgreSQL to JetStream: what is committed is on the stream, once, in commit order.

The real server, the real broker and the real engine as a process of its own; an auditor with a
replication slot and a decoder of its own says what was committed.
"""

import asyncio
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.contract import HEARTBEAT_SUBJECT
from tests.fixtures.capture import DRAIN_TIMEOUT_S, CaptureRoom, capture_room, poll
from tests.fixtures.checksum import assert_same, told
from tests.fixtures.ledger_writers import ENTRY, PAYMENT, Writer, Writers
from tests.fixtures.racers import race
from tests.fixtures.services import BrokerServer, DatabaseServer

SEED = 20260131
KILLS = 5
LARGE = 5000


@pytest.fixture
def room(
    ledger_database: DatabaseServer, broker: BrokerServer, tmp_path: Path
) -> Iterator[CaptureRoom]:
    with capture_room(ledger_database, broker, tmp_path) as made:
        yield made


def test_every_kind_of_change_comes_once_in_commit_order(room: CaptureRoom) -> None:
    room.engine.start()
    with room.connect() as writer:
        for work in (_many_rows, _one_row_many_times, _large_value, _rolled_back):
            work(writer, room.tag)
            writer.commit()
        # Two database transactions at once: the one that ends first comes first, whole.
        writer.execute(PAYMENT, {"prefix": room.tag + "slow", "count": 3})
        with room.connect() as other:
            other.execute(PAYMENT, {"prefix": room.tag + "quick", "count": 2})
        writer.execute(PAYMENT, {"prefix": room.tag + "late", "count": 2})
        writer.commit()
        writer.execute(PAYMENT, {"prefix": room.tag + "large", "count": LARGE})
    messages = room.drain()
    assert_same(messages, room.auditor)
    subjects = [stored.subject for stored in messages]
    assert subjects.count("ledger.payment.created") > LARGE
    assert {
        "ledger.payment.confirming",
        "ledger.payment.completed",
        "ledger.payment.updated",
        "ledger.payment.deleted",
        "ledger.entry.posted",
        "ledger.posting.recorded",
        HEARTBEAT_SUBJECT,
    } <= set(subjects)
    assert b"giovang_unchanged" not in b"".join(stored.payload for stored in messages)
    assert room.engine.stop() == 0
    assert "cà phê" not in room.engine.log.read_text(), "row data is in the log"
    room.engine.hear()
    assert any("lag " in status and " events, at " in status for status in room.engine.statuses)


def _many_rows(writer: Writer, tag: str) -> None:
    writer.execute(PAYMENT, {"prefix": tag + "many", "count": 20})
    with writer.cursor().copy(
        "COPY merchants (id, name, trade, timezone, country) FROM STDIN"
    ) as copy:
        for number in range(30):
            merchant_id = f"mer_{hashlib.sha256(f'{tag}{number}'.encode()).hexdigest()[:26]}"
            copy.write_row((merchant_id, f"Quán {number}", tag, "Asia/Ho_Chi_Minh", "VN"))
    writer.execute(ENTRY, {"prefix": tag + "first"})


def _one_row_many_times(writer: Writer, tag: str) -> None:
    for status in ("pending", "confirming", "completed"):
        writer.execute(
            "UPDATE payments SET status = %s, status_at = clock_timestamp() WHERE reference = %s",
            (status, tag + "many_1"),
        )
    writer.execute(
        "UPDATE payments SET payer_address = 'someone' WHERE reference = %s", (tag + "many_1",)
    )
    writer.execute(
        "UPDATE payments SET amount_minor = amount_minor + 1 WHERE reference LIKE %s",
        (tag + "many_1%",),
    )
    writer.execute("DELETE FROM payments WHERE reference = %s", (tag + "many_2",))
    # A changed key is a deletion and an insertion that share one place in the log.
    writer.execute(
        "UPDATE merchants SET id = 'mer_' || left(md5(id), 26) WHERE trade = %s AND name = %s",
        (tag, "Quán 9"),
    )


def _large_value(writer: Writer, tag: str) -> None:
    """A value stored out of line, which PostgreSQL does not log again when it did not change."""
    noise = random.Random(SEED).randbytes(6000).hex()
    writer.execute(
        "UPDATE payments SET metadata = jsonb_build_object('noise', %s::text) WHERE reference = %s",
        (noise, tag + "many_4"),
    )
    writer.execute("UPDATE payments SET status = 'pending' WHERE reference = %s", (tag + "many_4",))
    writer.execute("UPDATE merchants SET name = 'renamed' WHERE trade = %s", (tag,))


def _rolled_back(writer: Writer, tag: str) -> None:
    writer.execute(PAYMENT, {"prefix": tag + "kept", "count": 1})
    writer.execute("SAVEPOINT half")
    writer.execute(PAYMENT, {"prefix": tag + "halfgone", "count": 5})
    writer.execute("ROLLBACK TO SAVEPOINT half")
    writer.commit()
    writer.execute(PAYMENT, {"prefix": tag + "gone", "count": 50})
    writer.rollback()


def test_a_database_transaction_open_across_a_restart_comes_whole(room: CaptureRoom) -> None:
    """The trap: a row that begins in the log exactly where the stored commit ends."""
    room.engine.start()
    met = 0
    for attempt in range(10):
        with room.connect() as slow, room.connect() as quick:
            slow.execute(PAYMENT, {"prefix": f"{room.tag}a{attempt}x", "count": 1})
            quick.execute(PAYMENT, {"prefix": f"{room.tag}b{attempt}x", "count": 1})
            quick.commit()
            slow.execute(PAYMENT, {"prefix": f"{room.tag}c{attempt}x", "count": 1})
            poll(
                lambda: told(room.ledger.messages())[-1:] == room.auditor.committed()[-1:],
                what="the quick one on the stream",
                timeout_s=DRAIN_TIMEOUT_S,
            )
            assert room.engine.stop() == 0
            offset = room.stored_offset()
            slow.execute(PAYMENT, {"prefix": f"{room.tag}d{attempt}x", "count": 2})
            slow.commit()
        room.engine.start()
        messages = room.drain()
        assert_same(messages, room.auditor)
        met += any(stored.event.lsn == offset for stored in messages)
        if met:
            break
    assert met, "no row began where the stored commit ends, so the trap was not met"


@pytest.mark.timeout(600)
def test_kill_9_at_any_moment_loses_and_doubles_nothing(room: CaptureRoom) -> None:
    chance = random.Random(SEED)
    with Writers(room, SEED) as writers:
        for kill in range(KILLS):
            room.engine.start(ready=kill % 2 == 0)
            before = room.ledger.last_sequence()
            with room.connect() as large:
                large.execute(PAYMENT, {"prefix": f"{room.tag}large{kill}k", "count": 1200})
            # Somewhere before, within and after the large database transaction.
            enough = before + chance.randint(1, 1500)
            poll(
                lambda enough=enough: room.ledger.last_sequence() >= enough,  # type: ignore[misc]
                what=f"sequence {enough}",
                timeout_s=DRAIN_TIMEOUT_S,
            )
            room.engine.kill()
        assert not writers.errors
    room.engine.start()
    messages = room.drain()
    assert_same(messages, room.auditor)
    assert room.engine.stop() == 0


def test_a_killed_broker_ends_capture_and_nothing_is_lost(room: CaptureRoom) -> None:
    room.engine.start()
    with Writers(room, SEED + 100):
        before = room.ledger.last_sequence()
        poll(
            lambda: room.ledger.last_sequence() > before + 100,
            what="events on the stream",
            timeout_s=DRAIN_TIMEOUT_S,
        )
        room.broker.kill()
        try:
            assert room.engine.wait_for_exit() == 1
        finally:
            room.broker.start()
        room.engine.start()
    assert_same(room.drain(), room.auditor)


def test_two_publishers_never_interleave(room: CaptureRoom) -> None:
    """Both know the same last sequence: one wins, the other is told and goes no further."""
    asyncio.run(race([room.broker.url] * 2, "LEDGER", SEED))
