"""Where capture may resume, and what it passes over."""

from dataclasses import replace

import pytest

from ingest.checkpoint import (
    Cursor,
    LogState,
    Resume,
    SlotState,
    StreamState,
    WalStatus,
    lsn_text,
    resume_from,
)
from ingest.contract import EventId
from ingest.errors import CaptureDisordered, ResumeRefused

SLOT = SlotState(confirmed=100, restart=90, wal_status=WalStatus.RESERVED, active_pid=None)
LOG = LogState(system="7", position=500, slot=SLOT, offset=100, origin=50)
STREAM = StreamState(last_sequence=12, messages=12, last_id=EventId(200, 3), system="7", origin=50)
FRESH_LOG = replace(LOG, offset=50, slot=replace(SLOT, confirmed=50))
FRESH_STREAM = replace(STREAM, last_sequence=0, messages=0, last_id=None)


def test_resumes_after_offset_and_sequence() -> None:
    assert resume_from("s", LOG, STREAM) == Resume(100, 12, EventId(200, 3))


def test_a_stream_that_went_on_after_the_offset_was_stored_is_well() -> None:
    assert resume_from("s", replace(LOG, offset_sequence=12), STREAM).sequence == 12
    assert resume_from("s", replace(LOG, offset_sequence=5), STREAM).sequence == 12


def test_starts_where_provisioning_said() -> None:
    assert resume_from("s", FRESH_LOG, FRESH_STREAM) == Resume(50, 0, None)


@pytest.mark.parametrize(
    ("log", "stream", "told"),
    [
        (LOG, None, "stream is missing"),
        (replace(LOG, slot=None), STREAM, "slot s is missing"),
        (replace(LOG, slot=replace(SLOT, wal_status=WalStatus.LOST)), STREAM, "invalidated"),
        (replace(LOG, offset=None), STREAM, "no offset is stored, but the stream"),
        (replace(LOG, offset=None), FRESH_STREAM, "ingest.provision"),
        (replace(LOG, slot=replace(SLOT, confirmed=101)), STREAM, "ahead of the stored"),
        (LOG, replace(STREAM, system="8"), "two systems"),
        (LOG, replace(STREAM, system=None), "two systems"),
        (replace(LOG, offset_sequence=13), STREAM, "ends at sequence 12, but JetStream ackn"),
        (LOG, replace(STREAM, messages=0, last_id=None), "emptied after sequence 12"),
        (LOG, FRESH_STREAM, "events were published"),
        (replace(LOG, position=199), STREAM, "went back in time"),
    ],
)
def test_refuses_where_it_would_lose_or_double(
    log: LogState, stream: StreamState | None, told: str
) -> None:
    with pytest.raises(ResumeRefused, match=told):
        resume_from("s", log, stream)


def test_lsn_is_written_as_postgresql_does() -> None:
    assert lsn_text(0x16_B374D848) == "16/B374D848"
    assert lsn_text(255) == "0/FF"


def feed(cursor: Cursor, *transactions: tuple[int, int]) -> list[EventId]:
    """Feed database transactions of (changes, end position); return the ids to publish."""
    found: list[EventId] = []
    for changes, end in transactions:
        cursor.begin()
        ids = [cursor.change(number) for number in range(1, changes + 1)]
        found += [event_id for event_id in ids if event_id is not None]
        cursor.end(end, changes)
    return found


LOG_OF_THREE = ((2, 110), (3, 220), (1, 300))
ALL = [(100, 1), (100, 2), (110, 1), (110, 2), (110, 3), (220, 1)]


def test_ids_are_previous_end_and_counter() -> None:
    cursor = Cursor(Resume(100, 0, None))
    assert feed(cursor, *LOG_OF_THREE) == ALL
    assert cursor.position == 300


@pytest.mark.parametrize("published", range(1, len(ALL) + 1))
def test_what_the_stream_holds_is_passed_over(published: int) -> None:
    """Wherever the last run stopped, also within a database transaction, the rest follows."""
    cursor = Cursor(Resume(100, published, EventId(*ALL[published - 1])))
    assert feed(cursor, *LOG_OF_THREE) == ALL[published:]


def test_events_before_the_offset_do_not_come_again() -> None:
    cursor = Cursor(Resume(110, 2, EventId(100, 2)))
    assert feed(cursor, *LOG_OF_THREE[1:]) == ALL[2:]


def test_an_empty_database_transaction_moves_the_position() -> None:
    cursor = Cursor(Resume(100, 0, None))
    assert feed(cursor, (0, 105), (1, 110)) == [(105, 1)]


def test_a_last_event_that_does_not_come_again_is_a_gap() -> None:
    cursor = Cursor(Resume(100, 9, EventId(105, 1)))
    cursor.begin()
    assert cursor.change(1) is None
    cursor.end(110, 1)
    cursor.begin()
    with pytest.raises(CaptureDisordered, match="did not come again"):
        cursor.change(1)


def test_a_change_outside_a_database_transaction_has_no_id() -> None:
    with pytest.raises(CaptureDisordered, match="no open database transaction"):
        Cursor(Resume(100, 0, None)).change(1)


def test_the_engines_count_must_be_ours() -> None:
    cursor = Cursor(Resume(100, 0, None))
    cursor.begin()
    with pytest.raises(CaptureDisordered, match="counts change 2"):
        cursor.change(2)


@pytest.mark.parametrize(("end", "count"), [(110, 2), (100, 1), (99, 1)])
def test_an_end_that_does_not_fit_is_refused(end: int, count: int) -> None:
    cursor = Cursor(Resume(100, 0, None))
    cursor.begin()
    cursor.change(1)
    with pytest.raises(CaptureDisordered, match="ended at"):
        cursor.end(end, count)


def test_two_begins_and_an_end_alone_are_refused() -> None:
    cursor = Cursor(Resume(100, 0, None))
    with pytest.raises(CaptureDisordered, match="ended at"):
        cursor.end(110, 0)
    cursor.begin()
    with pytest.raises(CaptureDisordered, match="began"):
        cursor.begin()
