"""Rows of the warehouse from change events: exact amounts, nothing guessed."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from ingest.contract import Operation, subject_for
from streams.contract import Table
from streams.rows import PoisonEventError, Row, amount, dollars, row_for, table_for, watermark_for
from tests.fixtures import ledger_stream as ledger

AT = datetime(2026, 1, 31, 17, 30, 0, 123456, tzinfo=UTC)


def payment(status: str = "completed", **changes: Any) -> Row:
    """Map a payment event that reached `status`."""
    row = ledger.payment_row(1, status, AT, **changes)
    message = ledger.event_message(ledger.change("payments", row, position=7, ordinal=2, at=AT))
    mapped = row_for(Table.PAYMENT_ANALYTICS, message.subject, message.payload)
    assert mapped is not None
    return mapped


def test_a_payment_becomes_a_row_with_exact_amounts() -> None:
    row = payment(
        asset="USDC",
        asset_amount_minor="9560230",
        amount_minor="250000",
        fee_minor="2500",
        payer_country="VN",
        payer_address="payer",
        exception="overpaid",
    )
    assert row == Row(
        Table.PAYMENT_ANALYTICS,
        (
            AT,
            f"mer_{1:026d}",
            Decimal(250000),
            Decimal("9.56"),
            "USDC",
            "solana",
            "VN",
            "completed",
            "0000000000000007-00000002",
            f"pay_{1:026d}",
            "overpaid",
            Decimal("9.560230"),
            Decimal(2500),
            "payer",
            7,
            2,
            AT,
        ),
    )


@pytest.mark.parametrize(
    ("status", "settled", "expected"),
    [
        ("completed", "240000", 240_000),  # accepted though it was too little
        ("completed", "0", 250_000),
        ("completed", None, 250_000),  # from before payments said what was settled
        ("escrow_held", "240000", 240_000),
        ("resolved", "240000", 240_000),
        ("created", "0", 250_000),
        ("confirming", "240000", 250_000),  # not settled yet, whatever the column says
    ],
)
def test_a_settled_payment_is_worth_what_was_settled(
    status: str, settled: str | None, expected: int
) -> None:
    told = {} if settled is None else {"settled_minor": settled}
    assert payment(status, amount_minor="250000", **told).values[2] == Decimal(expected)


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ("5000", "0.00"),  # half a cent goes to the even neighbour
        ("15000", "0.02"),
        ("25000", "0.02"),
        ("25001", "0.03"),
        ("1004999", "1.00"),
        ("0", "0.00"),
        ("123456789012345678", "123456789012.35"),
    ],
)
def test_dollars_are_rounded_half_even_to_cents(units: str, expected: str) -> None:
    assert dollars(amount(units, "USDT")) == Decimal(expected)


@pytest.mark.parametrize("minor", ["12.5", "1e3", "", " 5", "1_000", "+5", "٣", 5, None, True])
def test_an_amount_is_an_integer_written_as_text(minor: object) -> None:
    with pytest.raises(PoisonEventError, match="minor units"):
        amount(minor, "VND")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"asset": "DOGE"}, "DOGE"),
        ({"currency": "USD"}, "not in VND"),
        ({"status_at": "yesterday"}, "yesterday"),
        ({"status_at": "2026-01-31T17:30:00"}, "without time zone"),
        ({"merchant_id": None}, "text expected"),
        ({"amount_minor": None}, "minor units"),
        ({"settled_minor": "1.5"}, "minor units"),
    ],
)
def test_what_does_not_fit_is_poison(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(PoisonEventError, match=reason):
        payment(**changes)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (None, "."),
        (b"", "."),
        (b"[]", "."),
        (b'{"schema": 1', "."),
        (b'{"schema": 3}', "version 3"),
        (b'{"schema": 2}', "table"),
        (b'{"schema": 1}', "table"),
    ],
)
def test_what_is_no_event_is_poison(payload: bytes | None, reason: str) -> None:
    with pytest.raises(PoisonEventError, match=reason):
        row_for(Table.PAYMENT_ANALYTICS, "ledger.payment.created", payload)


def test_subject_event_and_row_must_agree() -> None:
    row = ledger.payment_row(1, "created", AT)
    message = ledger.event_message(ledger.change("payments", row, position=7, ordinal=2, at=AT))
    with pytest.raises(PoisonEventError, match=r"says ledger\.payment\.created"):
        row_for(Table.PAYMENT_ANALYTICS, "ledger.payment.completed", message.payload)
    lying = message.payload.replace(b'"status":"created"', b'"status":"completed"')
    with pytest.raises(PoisonEventError, match="status is 'completed'"):
        row_for(Table.PAYMENT_ANALYTICS, "ledger.payment.created", lying)


@pytest.mark.parametrize(
    ("subject", "table"),
    [
        ("ledger.payment.created", Table.PAYMENT_ANALYTICS),
        ("ledger.payment.escrow_held", Table.PAYMENT_ANALYTICS),
        ("ledger.payment.updated", None),
        ("ledger.payment.deleted", Table.DELETIONS),
        ("ledger.refund.completed", Table.REFUNDS),
        ("ledger.refund.updated", None),
        ("ledger.merchant.created", Table.MERCHANTS),
        ("ledger.merchant.updated", Table.MERCHANTS),
        ("ledger.merchant.deleted", Table.MERCHANTS),
        ("ledger.posting.recorded", Table.LEDGER_POSTINGS),
        ("ledger.posting.deleted", Table.DELETIONS),
        ("ledger.entry.posted", Table.LEDGER_ENTRIES),
        ("ledger.entry.snapshot", Table.LEDGER_ENTRIES),
        ("ledger.entry.updated", None),
        ("ledger.payout.requested", Table.PAYOUTS),
        ("ledger.payout.updated", Table.PAYOUTS),
        ("ledger.capture.heartbeat", None),
        ("ledgers.payment.created", None),
    ],
)
def test_the_subject_alone_tells_the_table(subject: str, table: Table | None) -> None:
    assert table_for(subject) is table


def test_a_refund_and_a_merchant_become_rows() -> None:
    refund = ledger.refund_row(3, "requested", AT)
    message = ledger.event_message(ledger.change("refunds", refund, position=9, ordinal=1, at=AT))
    row = row_for(Table.REFUNDS, message.subject, message.payload)
    assert row is not None
    assert row.values[2:7] == (
        refund["id"],
        refund["payment_id"],
        refund["merchant_id"],
        Decimal(5000),
        "requested",
    )
    merchant = ledger.merchant_row(4)
    message = ledger.event_message(
        ledger.change("merchants", merchant, position=9, ordinal=2, at=AT)
    )
    row = row_for(Table.MERCHANTS, message.subject, message.payload)
    assert row is not None
    assert row.values[:6] == (merchant["id"], "Quán 4", "coffee", "Asia/Ho_Chi_Minh", "VN", None)


def mapped(table: str, row: dict[str, Any], before: dict[str, Any] | None = None) -> Row:
    """Map the event of a row of one of the ledger's tables."""
    event = ledger.change(table, row, before=before, position=9, ordinal=1, at=AT)
    raw = table_for(event.subject)
    assert raw is not None
    found = row_for(raw, event.subject, event.to_bytes())
    assert found is not None
    return found


def test_an_entry_and_its_postings_become_rows_in_minor_units() -> None:
    event = "0000000000000009-00000001"
    entry = ledger.entry_row(3, AT, payout_id="pyo_1", reverses_id="ent_1", merchant_id=None)
    assert mapped("ledger_entries", entry) == Row(
        Table.LEDGER_ENTRIES,
        (
            *(AT, event, entry["id"], None, "payment_completed", entry["payment_id"], "pyo_1"),
            *(None, "ent_1", 9, 1, AT),
        ),
    )
    posting = {**ledger.posting_row(3, 4, AT), "amount_minor": str(-(2**63))}
    assert mapped("ledger_postings", posting) == Row(
        Table.LEDGER_POSTINGS,
        (
            *(AT, event, entry["id"], 4, posting["merchant_id"], posting["account_id"], "VND"),
            *(-(2**63), 9, 1, AT),
        ),
    )


def test_a_payout_has_a_row_for_each_state_and_each_revision() -> None:
    asked = ledger.payout_row(3, "requested", AT)
    event = "0000000000000009-00000001"
    expected = (AT, event, asked["id"], asked["merchant_id"], "test", "requested", 1, "VND")
    amount_minor = int(asked["amount_minor"])
    assert mapped("payouts", asked).values == (*expected, amount_minor, 9, 1, AT)
    revised = {**asked, "revision": 2, "amount_minor": "7"}
    row = mapped("payouts", revised, before=asked)
    assert row.values[6:9] == (2, "VND", 7)
    older = {name: value for name, value in asked.items() if name not in {"mode", "revision"}}
    assert mapped("payouts", older).values[4:7] == (None, "requested", 1)


@pytest.mark.parametrize(
    ("table", "changes", "reason"),
    [
        ("ledger_postings", {"amount_minor": "1.5"}, "minor units"),
        ("ledger_postings", {"amount_minor": 5}, "minor units"),
        ("ledger_postings", {"asset": "DOGE"}, "DOGE"),
        ("ledger_postings", {"seq": "1"}, "integer expected"),
        ("ledger_postings", {"seq": True}, "integer expected"),
        ("ledger_postings", {"account_id": None}, "text expected"),
        ("ledger_postings", {"created_at": "2026-01-31T17:30:00"}, "without time zone"),
        ("ledger_entries", {"merchant_id": ""}, "text expected"),
        ("ledger_entries", {"kind": None}, "text expected"),
        ("payouts", {"merchant_id": None}, "text expected"),
        ("payouts", {"revision": None}, "integer expected"),
    ],
)
def test_what_does_not_fit_the_ledgers_tables_is_poison(
    table: str, changes: dict[str, Any], reason: str
) -> None:
    rows = {
        "ledger_postings": ledger.posting_row(1, 1, AT),
        "ledger_entries": ledger.entry_row(1, AT),
        "payouts": ledger.payout_row(1, "requested", AT),
    }
    with pytest.raises(PoisonEventError, match=reason):
        mapped(table, {**rows[table], **changes})


@pytest.mark.parametrize(
    ("table", "before", "row_id", "merchant"),
    [
        ("payments", ledger.payment_row(1, "created", AT), f"pay_{1:026d}", f"mer_{1:026d}"),
        ("payouts", ledger.payout_row(1, "created", AT), f"pyo_{1:026d}", f"mer_{1:026d}"),
        # Of rows that never change PostgreSQL logs the key alone.
        ("ledger_entries", {"id": "ent_1", "merchant_id": None}, "ent_1", None),
        ("ledger_postings", {"entry_id": "ent_1", "seq": 2}, "ent_1/2", None),
    ],
)
def test_a_deletion_becomes_a_row_of_its_own(
    table: str, before: dict[str, Any], row_id: str, merchant: str | None
) -> None:
    event = replace(
        ledger.change("capture_heartbeat", {}, position=9, ordinal=1, at=AT),
        table=table,
        operation=Operation.DELETE,
        subject=subject_for(table, Operation.DELETE),
        before=before,
        after=None,
    )
    assert table_for(event.subject) is Table.DELETIONS
    row = row_for(Table.DELETIONS, event.subject, event.to_bytes())
    assert row == Row(Table.DELETIONS, (event.id, table, row_id, merchant, 9, 1, AT))


@pytest.mark.parametrize("source", ["excess", "suspense"])
def test_a_refund_of_what_was_never_the_merchants_is_no_row(source: str) -> None:
    refund = {**ledger.refund_row(3, "completed", AT), "source": source, "asset": "USDC"}
    message = ledger.event_message(ledger.change("refunds", refund, position=9, ordinal=1, at=AT))
    assert row_for(Table.REFUNDS, message.subject, message.payload) is None
    refund["source"] = "payment"
    message = ledger.event_message(ledger.change("refunds", refund, position=9, ordinal=1, at=AT))
    with pytest.raises(PoisonEventError, match="not in VND"):
        row_for(Table.REFUNDS, message.subject, message.payload)


def test_the_watermark_is_read_from_headers_alone() -> None:
    message = ledger.heartbeat(1, AT)
    headers = {name: text.encode() for name, text in message.headers.items()}
    watermark = watermark_for(headers, 42)
    assert watermark is not None
    assert (watermark.position, watermark.ordinal) == tuple(ledger.place(message))
    assert watermark.committed_through == "2026-01-31T17:30:00.123456Z"
    assert watermark.stream_sequence == 42


@pytest.mark.parametrize("missing", ["Giovang-Event-Id", "Giovang-Committed-At"])
def test_headers_that_do_not_tell_give_no_watermark(missing: str) -> None:
    headers = {name: text.encode() for name, text in ledger.heartbeat(1, AT).headers.items()}
    assert watermark_for({**headers, missing: b"?"}, 1) is None
    del headers[missing]
    assert watermark_for(headers, 1) is None


def test_what_a_backfill_tells_again_is_the_same_row_and_says_so() -> None:
    happened = ledger.change(
        "payments", ledger.payment_row(1, "completed", AT), position=7, ordinal=2, at=AT
    )
    event = ledger.told_again(happened, position=9)
    message = ledger.event_message(event)
    assert message.subject == "ledger.payment.snapshot"
    assert table_for(message.subject) is Table.PAYMENT_ANALYTICS
    row = row_for(Table.PAYMENT_ANALYTICS, message.subject, message.payload)
    assert row is not None
    assert row.told_again
    known = payment("completed").values
    differing = {place for place, value in enumerate(row.values) if value != known[place]}
    assert differing == {8, 14, 15}, "its own id, position and ordinal, and nothing else"
