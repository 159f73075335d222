"""The envelope's codec: what a row holds comes back as it went, and ids keep their order."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.checkpoint import Cursor, Resume
from ingest.contract import (
    MAX_ORDINAL,
    MAX_POSITION,
    ChangeEvent,
    EventId,
    Operation,
    Table,
    timestamp_text,
)
from ingest.envelope import EnvelopeWriter, full_moment, utc_text
from tests.fixtures.records import payment

# PostgreSQL's text holds neither NUL nor lone surrogates.
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
moments = st.datetimes(
    datetime(1970, 1, 1),  # noqa: DTZ001 - Hypothesis adds the zone itself
    datetime(9999, 12, 31, 23, 59),  # noqa: DTZ001
    timezones=st.just(UTC),
)
bigints = st.integers(-(2**63), 2**63 - 1)
ids = st.builds(EventId, st.integers(0, MAX_POSITION), st.integers(1, MAX_ORDINAL))
keys = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=30)
values = st.one_of(st.none(), st.booleans(), bigints, text)
rows = st.dictionaries(text, values, max_size=8)


@given(
    event_id=ids,
    operation=st.sampled_from(Operation),
    table=st.sampled_from(Table),
    lsn=st.integers(0, MAX_POSITION),
    committed_at=moments,
    captured_at=moments,
    key=st.none() | keys,
    before=st.none() | rows,
    after=st.none() | rows,
    ends=st.none() | st.booleans(),
    backfill=st.none() | st.integers(1, 2**63 - 1),
)
def test_an_event_comes_back_as_it_went(
    *,
    event_id: EventId,
    operation: Operation,
    table: Table,
    lsn: int,
    committed_at: datetime,
    captured_at: datetime,
    key: str | None,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    ends: bool | None,
    backfill: int | None,
) -> None:
    event = ChangeEvent(
        table=table.value,
        operation=operation,
        subject="ledger.payment.created",
        position=event_id.position,
        ordinal=event_id.ordinal,
        ends=ends,
        lsn=lsn,
        database_transaction="1",
        committed_at=committed_at,
        captured_at=captured_at,
        key=key,
        before=before,
        after=after,
        # Version 1, which says nothing of ends, had no backfills either.
        backfill=None if ends is None else backfill,
    )
    payload = event.to_bytes()
    again = ChangeEvent.from_bytes(payload)
    assert again == event
    assert again.to_bytes() == payload
    assert EventId.parse(event.id) == event_id


@given(st.lists(ids, min_size=2, max_size=20))
def test_ids_sort_as_text_in_log_order(found: list[EventId]) -> None:
    assert [str(event_id) for event_id in sorted(found)] == sorted(map(str, found))


@settings(deadline=None)
@given(
    amount=st.none() | bigints,
    described=text,
    created=moments,
    digits=st.integers(0, 6),
    key=keys,
    committed_us=st.integers(0, 4 * 10**15),
)
def test_what_debezium_says_is_told_exactly(
    *,
    amount: int | None,
    described: str,
    created: datetime,
    digits: int,
    key: str,
    committed_us: int,
) -> None:
    unit = 10 ** (6 - digits)
    created = created.replace(microsecond=created.microsecond // unit * unit)
    shortened = f"{timestamp_text(created)[: 20 + digits].removesuffix('.')}Z"
    row = payment(merchant_id=key, amount_minor=amount, description=described, created_at=shortened)
    source = {"table": "payments", "ts_us": committed_us, "txId": 5, "lsn": 9}
    record = json.loads(json.dumps({"before": None, "after": row, "op": "c", "source": source}))
    message = EnvelopeWriter("__unchanged__", lambda: 0).message(EventId(1, 1), record, ends=True)
    event = ChangeEvent.from_bytes(message.payload)
    told = event.after
    assert told is not None
    assert told.keys() == row.keys()
    assert told["amount_minor"] == (None if amount is None else str(amount))
    assert told["created_at"] == timestamp_text(created)
    assert told["description"] == described
    assert event.key == key
    assert event.committed_at == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
        microseconds=committed_us
    )


@given(moments)
def test_moments_keep_their_microseconds(moment: datetime) -> None:
    told = timestamp_text(moment)
    assert full_moment(told) == told
    assert datetime.fromisoformat(told) == moment
    since_1970 = moment - datetime(1970, 1, 1, tzinfo=UTC)
    assert utc_text(since_1970 // timedelta(microseconds=1)) == told


transactions = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 1000)), min_size=1, max_size=12)


@given(transactions, st.data())
def test_however_often_it_restarts_each_event_is_published_once(
    log: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Runs end anywhere; the offset is the end of some database transaction published by then."""
    ends: list[int] = []
    for _, length in log:
        ends.append((ends[-1] if ends else 0) + length)
    whole = feed(Cursor(Resume(0, 0, None)), log, ends, 0)
    stream: list[EventId] = []
    offset_index = 0  # how many database transactions the stored offset says are done
    while len(stream) < len(whole):
        offset = ends[offset_index - 1] if offset_index else 0
        resume = Resume(offset, len(stream), stream[-1] if stream else None)
        coming = feed(Cursor(resume), log, ends, offset_index)
        stream += coming[: data.draw(st.integers(1, len(coming)), label="published before it died")]
        held = first_gap(whole, stream, ends)
        offset_index = data.draw(st.integers(offset_index, held), label="offset")
    assert stream == whole


def first_gap(whole: list[EventId], stream: list[EventId], ends: list[int]) -> int:
    """Return how many database transactions, from the first, the stream holds whole."""
    held = set(stream)
    for index, start in enumerate([0, *ends[:-1]]):
        if any(event_id not in held for event_id in whole if event_id.position == start):
            return index
    return len(ends)


def feed(cursor: Cursor, log: list[tuple[int, int]], ends: list[int], first: int) -> list[EventId]:
    """Let the engine hand over the log from database transaction `first` on."""
    found = []
    for (changes, _), end in zip(log[first:], ends[first:], strict=True):
        cursor.begin()
        ids_ = [cursor.change(number) for number in range(1, changes + 1)]
        found += [event_id for event_id in ids_ if event_id is not None]
        cursor.end(end, changes)
    return found
