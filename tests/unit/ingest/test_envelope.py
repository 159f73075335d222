"""From Debezium's JSON to the envelope."""

import base64
import json
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest

import ingest.contract
from ingest.contract import ChangeEvent, EventId
from ingest.envelope import EnvelopeWriter, Message, full_moment, utc_text
from ingest.errors import EnvelopeInvalid
from tests.fixtures.records import NOW_US, UNCHANGED, merchant, payment, posting, record, told_again

SCHEMA = json.loads(
    Path(ingest.contract.__file__).with_name("envelope.schema.json").read_text(encoding="utf-8")
)


def writer() -> EnvelopeWriter:
    return EnvelopeWriter(UNCHANGED, lambda: NOW_US)


def written(*, ends: bool = False, **parts: Any) -> tuple[Message, dict[str, Any]]:
    message = writer().message(EventId(400, 1), record(**parts), ends=ends)
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
        settled_minor="0",
        asset_amount_minor="9560230",
        received_minor="0",
        created_at="2026-01-31T17:30:00.100000Z",
        expires_at="2026-01-31T17:45:00.100000Z",
        status_at="2026-01-31T17:30:00.000000Z",
    )
    assert (document["schema"], document["ends"], document["backfill"]) == (2, False, None)
    assert b"Giovang-Committed-At: 2026-01-31T17:30:00.000000Z\r\n" in message.headers
    assert ChangeEvent.from_bytes(message.payload).to_bytes() == message.payload


def test_the_last_change_of_a_database_transaction_says_so() -> None:
    message, document = written(after=payment(), ends=True)
    assert document["ends"] is True
    assert b"Giovang-Ends: 1\r\n" in message.headers
    message, _ = written(after=payment())
    assert b"Giovang-Ends" not in message.headers


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


@pytest.mark.parametrize(
    "form",
    [
        UNCHANGED,
        base64.b64encode(UNCHANGED.encode()).decode(),
        [UNCHANGED],
        [base64.b64encode(UNCHANGED.encode()).decode()],
        list(UNCHANGED.encode()),
    ],
)
def test_it_is_known_whatever_the_columns_type(form: object) -> None:
    before, after = payment(new=["kept"]), payment(status="pending", new=form)
    _, document = written(op="u", before=before, after=after)
    assert document["after"]["new"] == ["kept"]


def test_a_value_that_is_nowhere_is_named() -> None:
    row = merchant(name=UNCHANGED)
    with pytest.raises(EnvelopeInvalid, match=r"column name .* REPLICA IDENTITY FULL"):
        writer().message(EventId(1, 1), record(op="u", table="merchants", after=row), ends=True)


@pytest.mark.parametrize(
    "parts",
    [
        {"op": "u", "before": payment(description=UNCHANGED), "after": payment()},
        {"op": "d", "before": payment(description=UNCHANGED)},
        {"op": "u", "before": payment(), "after": payment(description=f"around {UNCHANGED} it")},
        {"op": "u", "before": merchant(), "after": merchant(id=UNCHANGED), "table": "merchants"},
    ],
)
def test_it_never_leaves_where_it_cannot_be_put_right(parts: dict[str, Any]) -> None:
    with pytest.raises(EnvelopeInvalid, match="not in the log"):
        writer().message(EventId(1, 1), record(**parts), ends=True)


def test_a_row_told_again_is_a_snapshot_of_its_own_table() -> None:
    _, streamed = written(after=payment(status="completed"))
    carried = told_again("payments", "snapshot", streamed["after"])
    message, document = written(table="capture_backfill", after=carried)
    assert message.subject == document["subject"] == "ledger.payment.snapshot"
    assert (document["table"], document["op"]) == ("payments", "snapshot")
    assert (document["backfill"], document["key"]) == (7, "mer_1")
    assert document["before"] is None
    assert document["after"] == streamed["after"]
    assert document["id"] == "0000000000000190-00000001"


def test_a_row_found_gone_is_a_deletion() -> None:
    # As the stream last told it, perhaps before the table had all its columns.
    image = {"id": "pay_1", "merchant_id": "mer_1", "status": "expired", "amount_minor": "5"}
    carried = told_again("payments", "delete", image)
    message, document = written(table="capture_backfill", after=carried)
    assert message.subject == "ledger.payment.deleted"
    assert (document["op"], document["backfill"], document["key"]) == ("delete", 7, "mer_1")
    assert document["before"] == image
    assert document["after"] is None


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"op": "u"}, "only insertions"),
        ({"after": told_again("payments", "update", payment())}, "not known"),
        ({"after": told_again("capture_heartbeat", "snapshot", {})}, "not known"),
        ({"after": told_again("capture_backfill", "delete", {})}, "not known"),
        ({"after": told_again("audit_logs", "snapshot", {})}, "not known"),
        ({"after": told_again("payments", "snapshot", {"id": "pay_1"})}, "merchant_id is missing"),
        ({"after": told_again("payments", "snapshot", {}) | {"image": "[26150]"}}, "not a row"),
        ({"after": told_again("payments", "snapshot", {}) | {"image": "26150{"}}, "not JSON"),
        (
            {"after": told_again("payments", "snapshot", payment(description=UNCHANGED))},
            "not in the log",
        ),
    ],
)
def test_what_tells_nothing_again_is_refused(parts: dict[str, Any], told: str) -> None:
    with pytest.raises(EnvelopeInvalid, match=told) as caught:
        written(table="capture_backfill", **parts)
    assert "26150" not in str(caught.value)


def test_a_new_column_flows_through() -> None:
    _, document = written(after=payment(loyalty_tier="gold"))
    assert document["after"]["loyalty_tier"] == "gold"


def test_a_needed_column_that_is_missing_stops_with_who_needs_it() -> None:
    table = writer()
    table.message(EventId(1, 1), record(after=payment()), ends=True)
    row = payment()
    del row["payer_country"]
    told = r"payments\.payer_country is missing, which breaks raw\.payment_analytics\.payer_country"
    with pytest.raises(EnvelopeInvalid, match=told):
        table.message(EventId(1, 2), record(after=row), ends=True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"chain": 5}, "column chain holds int, not str"),
        ({"event_seq": "5"}, "column event_seq holds str, not int"),
        ({"event_seq": True}, "column event_seq holds bool, not int"),
        ({"is_escrow": "t"}, "column is_escrow holds str, not bool"),
        ({"amount_minor": "100.00"}, "column amount_minor: not an integer"),
        ({"amount_minor": 1.5}, "column amount_minor: not an integer"),
        ({"amount_minor": True}, "column amount_minor: not an integer"),
        ({"status_at": 1769880601}, "column status_at: not a moment"),
    ],
)
def test_a_needed_column_of_another_type_stops_at_the_first_row(
    changes: dict[str, Any], told: str
) -> None:
    table = writer()
    table.message(EventId(1, 1), record(after=payment()), ends=True)
    with pytest.raises(EnvelopeInvalid, match=told):
        table.message(EventId(1, 2), record(after=payment(**changes)), ends=True)


def test_tables_of_equal_shape_keep_their_own_needs() -> None:
    table = writer()
    row = posting(1)
    table.message(EventId(1, 1), record(table="ledger_postings", after=row), ends=True)
    with pytest.raises(EnvelopeInvalid, match=r"merchants\.id is missing"):
        table.message(EventId(1, 2), record(table="merchants", after=posting(1)), ends=True)


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
        writer().message(EventId(1, 1), record(**parts), ends=True)
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
