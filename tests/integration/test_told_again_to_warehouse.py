"""What a backfill tells again, in the warehouse: only what is news changes a row."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from ingest.contract import ChangeEvent, Operation, subject_for, timestamp_text
from streams.contract import Table
from streams.rows import row_for, table_for
from streams.store import Store
from tests.fixtures import ledger_stream as ledger
from tests.fixtures.services import DatabaseServer

AT = ledger.START + timedelta(days=900)
NUMBER = 880_000
TABLES = tuple(table for table in Table if table is not Table.WATERMARK)


class Warehouse:
    """Writes events as the processor does, one batch a call."""

    def __init__(self, server: DatabaseServer) -> None:
        self._server = server

    def take(self, *events: ChangeEvent) -> None:
        """Load a batch."""

        async def write(batch: Sequence[ChangeEvent]) -> None:
            store = Store(self._server.url("giovang_streams"))
            rows = []
            for event in batch:
                table = table_for(event.subject)
                assert table is not None
                row = row_for(table, event.subject, event.to_bytes())
                assert row is not None
                rows.append(row)
            await store.write(rows, None)
            await store.close()

        asyncio.run(write(events))

    def rows(self) -> dict[Table, list[tuple[Any, ...]]]:
        """Return every row, as it is and when it was recorded."""
        with psycopg.connect(self._server.superuser_url("analytics")) as database:
            return {
                table: database.execute(
                    f"SELECT * FROM {table} ORDER BY event_id".encode()  # noqa: S608
                ).fetchall()
                for table in TABLES
            }

    def count(self, table: str, column: str, value: str | None) -> int:
        """Return how many rows have the value."""
        with psycopg.connect(self._server.superuser_url("analytics")) as database:
            statement = f"SELECT count(*) FROM {table} WHERE {column} = %s"  # noqa: S608
            found = database.execute(statement.encode(), (value,)).fetchone()
        assert found is not None
        number: int = found[0]
        return number

    def terms(self, number: int) -> list[tuple[Any, ...]]:
        """Return the states and revisions known of a payout, in their order."""
        with psycopg.connect(self._server.superuser_url("analytics")) as database:
            return database.execute(
                "SELECT status, revision, amount_minor FROM raw.payouts WHERE payout_id = %s"
                " ORDER BY time, revision",
                (f"pyo_{number:026d}",),
            ).fetchall()

    def states(self, number: int) -> list[str]:
        """Return the states known of a payment, in the order in which they were reached."""
        with psycopg.connect(self._server.superuser_url("analytics")) as database:
            found = database.execute(
                "SELECT status FROM raw.payment_analytics WHERE payment_id = %s ORDER BY time",
                (f"pay_{number:026d}",),
            )
            return [row[0] for row in found]


@pytest.fixture
def warehouse(analytics_database: DatabaseServer) -> Warehouse:
    return Warehouse(analytics_database)


def payment(number: int, status: str, after_s: int = 0) -> ChangeEvent:
    at = AT + timedelta(seconds=after_s)
    row = ledger.payment_row(number, status, at)
    return ledger.change("payments", row, position=10**9 + number, ordinal=1 + after_s, at=at)


def refund(number: int) -> ChangeEvent:
    row = {
        "id": f"rfd_{number:026d}",
        "payment_id": f"pay_{number:026d}",
        "merchant_id": f"mer_{number:026d}",
        "status": "requested",
        "asset": "VND",
        "amount_minor": "1000",
        "source": "payment",
        "status_at": timestamp_text(AT),
    }
    return ledger.change("refunds", row, position=10**9 + number, ordinal=90, at=AT)


def payout(number: int, status: str = "requested", after_s: int = 0, **terms: Any) -> ChangeEvent:
    at = AT + timedelta(seconds=after_s)
    row = ledger.payout_row(number, status, at, **terms)
    return ledger.change("payouts", row, position=10**9 + number, ordinal=80 + after_s, at=at)


def booked(number: int) -> list[ChangeEvent]:
    """An entry and its six postings."""
    rows = [
        ("ledger_entries", ledger.entry_row(number, AT)),
        *(("ledger_postings", ledger.posting_row(number, leg, AT)) for leg in range(1, 7)),
    ]
    return [
        ledger.change(table, row, position=10**9 + number, ordinal=70 + place, at=AT)
        for place, (table, row) in enumerate(rows)
    ]


def merchant(number: int, name: str, position: int) -> ChangeEvent:
    row = ledger.merchant_row(number, name)
    return ledger.change("merchants", row, position=position, ordinal=1, at=AT)


def test_what_is_known_changes_nothing(warehouse: Warehouse) -> None:
    happened = [
        payment(NUMBER, "created"),
        payment(NUMBER, "completed", 5),
        refund(NUMBER),
        payout(NUMBER),
        *booked(NUMBER),
        merchant(NUMBER, "Quán", 10**9),
    ]
    warehouse.take(*happened)
    known = warehouse.rows()
    again = [
        ledger.told_again(event, position=2 * 10**9, ordinal=number)
        for number, event in enumerate(happened[1:], 1)
    ]
    warehouse.take(*again)
    warehouse.take(*again)
    assert warehouse.rows() == known


def test_what_is_not_known_is_added_once(warehouse: Warehouse) -> None:
    number = NUMBER + 1
    missed, reached = payment(number, "created"), payment(number, "completed", 5)
    warehouse.take(missed)
    again = ledger.told_again(reached, position=2 * 10**9)
    # Twice in a batch, by two backfills, and then once more.
    warehouse.take(again, replace(again, position=3 * 10**9, backfill=2))
    warehouse.take(again)
    assert warehouse.states(number) == ["created", "completed"]


def test_what_the_ledger_missed_is_added_once(warehouse: Warehouse) -> None:
    number = NUMBER + 4
    happened = [*booked(number), payout(number)]
    again = [
        ledger.told_again(event, position=2 * 10**9, ordinal=number + place)
        for place, event in enumerate(happened)
    ]
    # Some is known, some is not; told twice in a batch, and then once more.
    warehouse.take(*happened[:3])
    warehouse.take(*again, *(replace(event, position=3 * 10**9) for event in again))
    warehouse.take(*again)
    assert warehouse.count("raw.ledger_entries", "entry_id", f"ent_{number:026d}") == 1
    assert warehouse.count("raw.ledger_postings", "entry_id", f"ent_{number:026d}") == 6
    assert warehouse.count("raw.payouts", "payout_id", f"pyo_{number:026d}") == 1
    # What happened comes late, after it was told.
    known = warehouse.rows()
    warehouse.take(*happened)
    assert warehouse.rows() == known


def test_a_payouts_terms_are_known_by_their_revision(warehouse: Warehouse) -> None:
    number = NUMBER + 5
    asked, approved = payout(number), payout(number, "approved", 9, revision=2, amount_minor="7")
    revised = replace(
        payout(number, revision=2, amount_minor="7"),
        operation=Operation.UPDATE,
        subject="ledger.payout.updated",
        before=asked.row,
        ordinal=85,
    )
    touched = replace(revised, after={**revised.row, "requested_by": "another"}, ordinal=86)
    # Late ones after newer ones.
    warehouse.take(approved)
    warehouse.take(revised, touched)
    warehouse.take(touched, asked, ledger.told_again(approved, position=2 * 10**9))
    assert warehouse.terms(number) == [
        ("requested", 1, 9_007_199_254_740_993 + number),
        ("requested", 2, 7),
        ("approved", 2, 7),
    ]


def test_what_was_deleted_is_told_and_stays_history(warehouse: Warehouse) -> None:
    number = NUMBER + 6
    happened = [payment(number, "created"), *booked(number)]
    warehouse.take(*happened)
    known = warehouse.rows()
    gone = [
        replace(
            event,
            operation=Operation.DELETE,
            subject=subject_for(event.table, Operation.DELETE),
            before=event.row,
            after=None,
            position=2 * 10**9,
            ordinal=number + place,
        )
        for place, event in enumerate(happened)
    ]
    warehouse.take(*gone)
    warehouse.take(*gone)
    assert {**warehouse.rows(), Table.DELETIONS: known[Table.DELETIONS]} == known
    assert warehouse.count("raw.deletions", "merchant_id", happened[0].key) == 1 + 1 + 3
    for row_id in (f"pay_{number:026d}", f"ent_{number:026d}", f"ent_{number:026d}/6"):
        assert warehouse.count("raw.deletions", "row_id", row_id) == 1


def test_what_happened_in_the_same_batch_is_known(warehouse: Warehouse) -> None:
    number = NUMBER + 2
    created = payment(number, "created")
    warehouse.take(created, ledger.told_again(created, position=2 * 10**9))
    assert warehouse.states(number) == ["created"]


def test_a_merchant_is_as_told_last(warehouse: Warehouse) -> None:
    number = NUMBER + 3

    def name() -> str:
        found = [row for row in warehouse.rows()[Table.MERCHANTS] if row[0] == f"mer_{number:026d}"]
        assert len(found) == 1
        told: str = found[0][1]
        return told

    warehouse.take(merchant(number, "before", 10**9))
    warehouse.take(ledger.told_again(merchant(number, "missed", 1), position=2 * 10**9))
    assert name() == "missed"
    warehouse.take(ledger.told_again(merchant(number, "older", 1), position=15 * 10**8))
    warehouse.take(merchant(number, "older still", 10**9 + 1))
    assert name() == "missed", "what is older says nothing"
    after = merchant(number, "after", 4 * 10**9)
    warehouse.take(ledger.told_again(after, position=3 * 10**9), after)
    assert name() == "after"
