"""From Debezium's JSON to the envelope."""

import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

import ingest.contract
from ingest.contract import ChangeEvent, EventId
from ingest.envelope import EnvelopeWriter, Message, full_moment, utc_text
from ingest.errors import EnvelopeInvalid

SCHEMA = json.loads(
    Path(ingest.contract.__file__).with_name("envelope.schema.json").read_text(encoding="utf-8")
)
UNCHANGED = "__unchanged__"
NOW_US = 1_769_880_601_000_000


def writer() -> EnvelopeWriter:
    return EnvelopeWriter(UNCHANGED, lambda: NOW_US)


def payment(**changes: Any) -> dict[str, Any]:
    row = {
        "id": "pay_1",
        "merchant_id": "mer_1",
        "status": "created",
        "amount_minor": 9007199254740993,
        "fee_minor": None,
        "rate": "26150.00000000",
        "metadata": '{"table": 5}',
        "created_at": "2026-01-31T17:30:00.1Z",
        "status_at": "2026-01-31T17:30:00Z",
        "completed_at": None,
        "description": "2026-01-31T17:30:00Z",
    }
    return row | changes


def record(
    *,
    op: str = "c",
    table: str = "payments",
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "before": before,
        "after": after,
        "op": op,
        "source": {"table": table, "ts_us": NOW_US - 1_000_000, "txId": 772, "lsn": 500},
        "transaction": {"id": "772:500", "total_order": 1, "data_collection_order": 1},
    }


def written(**parts: Any) -> tuple[Message, dict[str, Any]]:
    message = writer().message(EventId(400, 1), record(**parts))
    document = json.loads(message.payload)
    jsonschema.validate(document, SCHEMA)
    return message, document


def test_an_insert() -> None:
    message, document = written(after=payment())
    assert message.subject == document["subject"] == "ledger.payment.created"
    assert document["id"] == "0000000000000190-00000001"
    assert (document["position"], document["ordinal"], document["lsn"]) == (400, 1, 500)
    assert document["database_transaction"] == "772"
    assert document["committed_at"] == "2026-01-31T17:30:00.000000Z"
    assert document["captured_at"] == "2026-01-31T17:30:01.000000Z"
    assert document["key"] == "mer_1"
    assert document["before"] is None
    assert document["after"] == payment(
        amount_minor="9007199254740993",
        created_at="2026-01-31T17:30:00.100000Z",
        status_at="2026-01-31T17:30:00.000000Z",
    )
    assert b"Giovang-Committed-At: 2026-01-31T17:30:00.000000Z\r\n" in message.headers
    assert ChangeEvent.from_bytes(message.payload).to_bytes() == message.payload


def test_an_update_names_the_status_reached() -> None:
    message, document = written(op="u", before=payment(), after=payment(status="pending"))
    assert message.subject == "ledger.payment.pending"
    assert document["before"]["amount_minor"] == "9007199254740993"
    message, _ = written(op="u", before=payment(), after=payment(fee_minor=1))
    assert message.subject == "ledger.payment.updated"


def test_a_delete_has_the_row_before() -> None:
    message, document = written(op="d", before=payment())
    assert message.subject == "ledger.payment.deleted"
    assert document["key"] == "mer_1"
    assert document["after"] is None


def test_a_heartbeat_belongs_to_nobody() -> None:
    beat = {"id": 1, "beat_at": "2026-01-31T17:30:00.123456Z", "sequence": 7}
    message, document = written(op="u", table="capture_heartbeat", after=beat)
    assert message.subject == "ledger.capture.heartbeat"
    assert document["key"] is None
    assert document["after"] == beat
    assert b"Giovang-Key: \r\n" in message.headers


def test_a_value_that_was_not_logged_comes_from_the_row_before() -> None:
    _, document = written(
        op="u", before=payment(), after=payment(status="pending", metadata=UNCHANGED)
    )
    assert document["after"]["metadata"] == '{"table": 5}'


def test_a_value_that_is_nowhere_is_named() -> None:
    row = {"id": "mer_1", "name": UNCHANGED}
    with pytest.raises(EnvelopeInvalid, match=r"column name .* REPLICA IDENTITY FULL"):
        writer().message(EventId(1, 1), record(op="u", table="merchants", after=row))


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"op": "t"}, "operation 't'"),
        ({"op": "r", "after": payment()}, "operation 'r'"),
        ({"after": payment(), "table": "audit_logs"}, "audit_logs"),
        ({"op": "u", "after": payment()}, "without the row before"),
        ({"after": payment(status="a.b")}, "word of a subject"),
        ({"after": payment(merchant_id="a\r\nb")}, "partition key"),
        ({"after": payment(status_at="2026-01-31T17:30:00+07:00")}, "column status_at"),
        ({"after": payment(status_at="292278994-08-16T23:00:00Z")}, "column status_at"),
    ],
)
def test_what_cannot_be_told_is_an_error_without_values(parts: dict[str, Any], told: str) -> None:
    with pytest.raises(EnvelopeInvalid, match=told) as caught:
        writer().message(EventId(1, 1), record(**parts))
    assert "26150" not in str(caught.value)


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("2026-01-31T17:30:00Z", "2026-01-31T17:30:00.000000Z"),
        ("2026-01-31T17:30:00.12Z", "2026-01-31T17:30:00.120000Z"),
        ("2026-01-31T17:30:00.123456Z", "2026-01-31T17:30:00.123456Z"),
    ],
)
def test_moments_get_all_their_digits(short: str, full: str) -> None:
    assert full_moment(short) == full


def test_microseconds_become_text() -> None:
    assert utc_text(0) == "1970-01-01T00:00:00.000000Z"
    assert utc_text(NOW_US + 7) == "2026-01-31T17:30:01.000007Z"
    assert utc_text(-1) == "1969-12-31T23:59:59.999999Z"
