"""Ids, subjects and the envelope, without anything around them."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from ingest.contract import (
    HEADER_ENDS,
    HEADER_EVENT_ID,
    HEADER_KEY,
    ChangeEvent,
    EventId,
    Operation,
    Table,
    header_lines,
    key_of,
    subject_for,
    timestamp_text,
)

EVENT = ChangeEvent(
    table="payments",
    operation=Operation.UPDATE,
    subject="ledger.payment.completed",
    position=27221488,
    ordinal=2,
    ends=True,
    lsn=27224064,
    database_transaction="772",
    committed_at=datetime(2026, 1, 31, 17, 30, 0, 123456, tzinfo=UTC),
    captured_at=datetime(2026, 1, 31, 17, 30, 1, tzinfo=UTC),
    key="mer_1",
    before={"id": "pay_1", "status": "confirming"},
    after={"id": "pay_1", "status": "completed", "amount_minor": "250000"},
)


@pytest.mark.parametrize(
    ("table", "operation", "before", "after", "subject"),
    [
        ("payments", "insert", None, "created", "ledger.payment.created"),
        ("payments", "update", "created", "pending", "ledger.payment.pending"),
        ("payments", "update", "confirming", "completed", "ledger.payment.completed"),
        ("payments", "update", "created", "expired", "ledger.payment.expired"),
        ("payments", "update", "confirming", "escrow_held", "ledger.payment.escrow_held"),
        ("payments", "update", "pending", "pending", "ledger.payment.updated"),
        ("payments", "delete", "expired", "expired", "ledger.payment.deleted"),
        ("payments", "delete", None, None, "ledger.payment.deleted"),
        ("payouts", "insert", None, "requested", "ledger.payout.requested"),
        ("payouts", "update", "requested", "failed", "ledger.payout.failed"),
        ("payouts", "update", "requested", "requested", "ledger.payout.updated"),
        ("payouts", "delete", "failed", None, "ledger.payout.deleted"),
        ("refunds", "insert", None, "requested", "ledger.refund.requested"),
        ("refunds", "update", "requested", "completed", "ledger.refund.completed"),
        ("ledger_entries", "insert", None, None, "ledger.entry.posted"),
        ("ledger_entries", "update", None, None, "ledger.entry.updated"),
        ("ledger_entries", "delete", None, None, "ledger.entry.deleted"),
        ("ledger_postings", "insert", None, None, "ledger.posting.recorded"),
        ("ledger_postings", "delete", None, None, "ledger.posting.deleted"),
        ("merchants", "insert", None, None, "ledger.merchant.created"),
        ("merchants", "update", None, None, "ledger.merchant.updated"),
        ("merchants", "delete", None, None, "ledger.merchant.deleted"),
        ("capture_heartbeat", "insert", None, None, "ledger.capture.heartbeat"),
        ("capture_heartbeat", "update", None, None, "ledger.capture.heartbeat"),
        ("payments", "snapshot", None, "completed", "ledger.payment.snapshot"),
        ("ledger_postings", "snapshot", None, None, "ledger.posting.snapshot"),
    ],
)
def test_subject(
    table: str, operation: str, before: str | None, after: str | None, subject: str
) -> None:
    assert subject_for(table, operation, before, after) == subject


@pytest.mark.parametrize(
    ("table", "operation", "before", "after", "told"),
    [
        ("audit_logs", "insert", None, None, "audit_logs"),
        ("payments", "truncate", None, "created", "truncate"),
        ("payments", "insert", None, None, "None"),
        ("payments", "insert", None, "two.words", "two.words"),
        ("payments", "insert", None, "*", r"\*"),
        ("payments", "update", None, "completed", "without the row before"),
        ("capture_heartbeat", "snapshot", None, None, "not an event"),
        ("capture_backfill", "insert", None, None, "not an event"),
        ("capture_backfill", "delete", None, None, "not an event"),
    ],
)
def test_no_subject_is_guessed(
    table: str, operation: str, before: str | None, after: str | None, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        subject_for(table, operation, before, after)


def test_every_table_has_a_subject_for_every_operation() -> None:
    for table in set(Table) - {Table.CAPTURE_BACKFILL, Table.CAPTURE_HEARTBEAT}:
        for operation in Operation:
            subject = subject_for(table, operation, "requested", "completed")
            assert subject.startswith("ledger.")
            assert subject.count(".") == 2


def test_ids_sort_as_text_as_they_do_as_numbers() -> None:
    ids = [EventId(0, 1), EventId(9, 2**32 - 1), EventId(10, 1), EventId(2**63, 1)]
    assert [str(event_id) for event_id in ids] == sorted(str(event_id) for event_id in ids)
    assert str(EventId(27221488, 2)) == "00000000019f5df0-00000002"
    assert EventId.parse("00000000019f5df0-00000002") == (27221488, 2)


@pytest.mark.parametrize("text", ["", "1-1", "00000000019F5DF0-00000002", " " * 25, "x" * 25])
def test_only_an_id_is_an_id(text: str) -> None:
    with pytest.raises(ValueError, match="not an event id"):
        EventId.parse(text)


def test_envelope_comes_back_as_it_went() -> None:
    payload = EVENT.to_bytes()
    assert ChangeEvent.from_bytes(payload) == EVENT
    document = json.loads(payload)
    assert document["id"] == "00000000019f5df0-00000002" == EVENT.id
    assert document["committed_at"] == "2026-01-31T17:30:00.123456Z"
    assert document["captured_at"] == "2026-01-31T17:30:01.000000Z"
    assert EVENT.row == EVENT.after
    assert (document["schema"], document["ends"], document["backfill"]) == (2, True, None)


def test_version_1_is_still_read_and_stays_what_it_is() -> None:
    document = json.loads(EVENT.to_bytes()) | {"schema": 1}
    del document["ends"], document["backfill"]
    payload = json.dumps(document, separators=(",", ":")).encode()
    event = ChangeEvent.from_bytes(payload)
    assert event == replace(EVENT, ends=None)
    assert event.to_bytes() == payload


def test_a_deleted_row_is_the_row_before() -> None:
    assert replace(EVENT, after=None).row == EVENT.before
    with pytest.raises(ValueError, match="neither image"):
        _ = replace(EVENT, before=None, after=None).row


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 3}, "version 3"),
        ({"schema": True}, "version True"),
        ({"schema": "2"}, "version '2'"),
        ({"id": "00000000019f5df0-00000003"}, "is not that of"),
        ({"op": "truncate"}, "truncate"),
        ({"committed_at": "yesterday"}, "isoformat"),
    ],
)
def test_what_is_no_envelope_is_refused(change: dict[str, object], told: str) -> None:
    payload = json.dumps(json.loads(EVENT.to_bytes()) | change).encode()
    with pytest.raises(ValueError, match=told):
        ChangeEvent.from_bytes(payload)


@pytest.mark.parametrize("field", ["ends", "backfill", "before", "key"])
def test_an_envelope_without_a_field_is_refused(field: str) -> None:
    document = json.loads(EVENT.to_bytes())
    del document[field]
    with pytest.raises(ValueError, match=field):
        ChangeEvent.from_bytes(json.dumps(document).encode())


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b"\xff", b'{"schema": 2}'])
def test_what_is_no_document_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ChangeEvent.from_bytes(payload)


def test_moments_are_told_in_utc_with_six_digits() -> None:
    saigon = timezone(timedelta(hours=7))
    assert timestamp_text(datetime(2026, 2, 1, 0, 30, tzinfo=saigon)) == (
        "2026-01-31T17:30:00.000000Z"
    )


def test_key_is_the_merchant() -> None:
    assert key_of("merchants", {"id": "mer_1"}) == "mer_1"
    assert key_of("payments", {"id": "pay_1", "merchant_id": "mer_1"}) == "mer_1"
    assert key_of("ledger_entries", {"id": "ent_1", "merchant_id": None}) is None
    assert key_of("capture_heartbeat", {"id": 1}) is None


def test_headers_route_without_parsing() -> None:
    lines = header_lines(
        event_id=EVENT.id, position=EVENT.position, committed_at="then", key="mer_1", ends=False
    ).decode()
    headers = dict(line.split(": ", 1) for line in lines.splitlines())
    assert headers[HEADER_EVENT_ID] == EVENT.id
    assert headers[HEADER_KEY] == "mer_1"
    assert HEADER_ENDS not in headers
    assert lines.endswith("\r\n")


def test_the_last_change_of_a_database_transaction_says_so() -> None:
    lines = header_lines(event_id=EVENT.id, position=1, committed_at="then", key=None, ends=True)
    assert lines.endswith(b"Giovang-Ends: 1\r\n")


@pytest.mark.parametrize("key", ["", "a b", "a\r\nNats-Rollup: all", "quán", "x" * 65])
def test_a_key_cannot_forge_a_header(key: str) -> None:
    with pytest.raises(ValueError, match="partition key"):
        header_lines(event_id=EVENT.id, position=1, committed_at="then", key=key, ends=False)
