"""Streams keep what older releases wrote: every reader takes it as it takes what is written now.

`envelopes_v1.jsonl` was written by the release before version 2 of the envelope; it is never made
anew.
"""

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

import ingest.contract
from ingest.contract import ChangeEvent, EventId
from ingest.envelope import EnvelopeWriter
from streams.realtime import push_for
from streams.rows import row_for, table_for
from tests.fixtures.records import NOW_US, UNCHANGED, record

SCHEMA = json.loads(
    Path(ingest.contract.__file__).with_name("envelope.schema.json").read_text(encoding="utf-8")
)
WRITTEN = (
    Path(__file__).parents[2].joinpath("fixtures", "envelopes_v1.jsonl").read_bytes().splitlines()
)
OPERATIONS = {"insert": "c", "update": "u", "delete": "d"}


def written_now(event: ChangeEvent) -> bytes:
    """Return the same change as this release writes it."""
    change: dict[str, Any] = record(
        op=OPERATIONS[event.operation], table=event.table, before=event.before, after=event.after
    )
    return (
        EnvelopeWriter(UNCHANGED, lambda: NOW_US)
        .message(EventId(event.position, event.ordinal), change, ends=True)
        .payload
    )


@pytest.mark.parametrize("payload", WRITTEN)
def test_an_older_envelope_fits_the_schema_and_comes_back_as_it_was(payload: bytes) -> None:
    assert json.loads(payload)["schema"] == 1
    jsonschema.validate(json.loads(payload), SCHEMA)
    event = ChangeEvent.from_bytes(payload)
    assert event.ends is None
    assert event.backfill is None
    assert event.to_bytes() == payload


@pytest.mark.parametrize("payload", WRITTEN)
def test_every_reader_makes_the_same_of_it(payload: bytes) -> None:
    event = ChangeEvent.from_bytes(payload)
    now = written_now(event)
    assert json.loads(now)["schema"] == 2
    raw = table_for(event.subject)
    if raw is not None:
        made = row_for(raw, event.subject, payload)
        assert made is not None
        assert made == row_for(raw, event.subject, now)
    if event.table == "payments":
        assert push_for(event.subject, payload) == push_for(event.subject, now) is not None


def test_the_sample_has_something_for_every_reader() -> None:
    events = [ChangeEvent.from_bytes(payload) for payload in WRITTEN]
    assert {"merchants", "payments", "refunds", "capture_heartbeat"} <= {e.table for e in events}
    assert {event.operation.value for event in events} == set(OPERATIONS)
