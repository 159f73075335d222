"""An auditor of the warehouse's tables: reads the stream, and says what rows there must be.

Shares no code with the processor: what a row is follows from the event alone.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import psycopg

from ingest.contract import ChangeEvent, EventId
from tests.fixtures.capture import Ledger

CONNECT_TIMEOUT_S = 5

_Row = tuple[Any, ...]
_WATERMARK = "SELECT position, ordinal FROM raw.watermark WHERE source = 'ledger'"
_ALL = """
SELECT count(*), count(*) FILTER (WHERE recorded_at < before)
FROM (SELECT recorded_at, lag(recorded_at) OVER (ORDER BY position, ordinal) AS before FROM {})
    AS rows
"""
_BETWEEN = """
WHERE (position, ordinal) > (%(after)s, %(after_ordinal)s)
  AND (position, ordinal) <= (%(until)s, %(until_ordinal)s)
ORDER BY position, ordinal
"""


def _payment(event: ChangeEvent) -> _Row:
    row = event.row
    return (
        row["id"],
        row["merchant_id"],
        row["status"],
        Decimal(row["amount_minor"]),
        row["asset"],
        Decimal(row["asset_amount_minor"]) / 1_000_000,
        row["payer_address"],
    )


def _entry(event: ChangeEvent) -> _Row:
    return event.row["id"], event.row["merchant_id"], event.row["kind"], event.row["payment_id"]


def _posting(event: ChangeEvent) -> _Row:
    row = event.row
    return (
        row["entry_id"],
        row["seq"],
        row["merchant_id"],
        row["account_id"],
        row["asset"],
        int(row["amount_minor"]),
    )


_TABLES: dict[str, tuple[str, str, Callable[[ChangeEvent], _Row]]] = {
    "payments": (
        "raw.payment_analytics",
        "payment_id, merchant_id, status, amount_vnd, currency, asset_amount, payer_address",
        _payment,
    ),
    "ledger_entries": ("raw.ledger_entries", "entry_id, merchant_id, kind, payment_id", _entry),
    "ledger_postings": (
        "raw.ledger_postings",
        "entry_id, seq, merchant_id, account_id, asset, amount_minor",
        _posting,
    ),
}


class TableAudit:
    """Compares tables and stream bit by bit; `events` and `rows` say how much was compared."""

    def __init__(self, stream: Ledger, warehouse_url: str) -> None:
        self._stream = stream
        self._url = warehouse_url
        self._sequence = 0
        self._place = EventId(0, 0)
        self.events = 0
        self.rows = dict.fromkeys(_TABLES, 0)

    def watermark(self) -> EventId:
        """Return the place up to which the warehouse says that it is whole."""
        with self._connect() as warehouse:
            found = warehouse.execute(_WATERMARK).fetchone()
        return EventId(0, 0) if found is None else EventId(*found)

    def compare(self) -> None:
        """Compare what came since the last time, up to the warehouse's own watermark."""
        until = self.watermark()
        expected: dict[str, list[_Row]] = {table: [] for table in _TABLES}
        for stored in self._stream.messages(after=self._sequence):
            if stored.event.event_id > until:
                break
            self._sequence = stored.sequence
            self.events += 1
            table = stored.event.table
            row = (stored.event.id, *_TABLES[table][2](stored.event))
            expected[table].append(row)
        for table, rows in expected.items():
            self._compare(table, rows, until)
            self.rows[table] += len(rows)
        self._place = until

    def settle(self) -> None:
        """Compare the rest; then there is no row besides, and none came before an earlier one."""
        self.compare()
        assert self.events == self._stream.last_sequence(), "the warehouse is not at the end"
        with self._connect() as warehouse:
            for table, (name, _, _) in _TABLES.items():
                found = warehouse.execute(_ALL.format(name).encode()).fetchone()
                assert found == (self.rows[table], 0), f"{name}: {found} rows, and out of order"

    def _compare(self, table: str, expected: list[_Row], until: EventId) -> None:
        name, columns, _ = _TABLES[table]
        place = {
            "after": self._place.position,
            "after_ordinal": self._place.ordinal,
            "until": until.position,
            "until_ordinal": until.ordinal,
        }
        query = f"SELECT event_id, {columns} FROM {name} {_BETWEEN}"  # noqa: S608 - constants
        with self._connect() as warehouse:
            found = warehouse.execute(query.encode(), place).fetchall()
        assert found == expected, f"{name}: {_difference(found, expected)}"

    def _connect(self) -> psycopg.Connection[_Row]:
        return psycopg.connect(self._url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S)


def _difference(found: list[_Row], expected: list[_Row]) -> str:
    """Name the first row in which the two differ."""
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=False)):
        if ours != theirs:
            return f"row {number} is {ours}, the stream says {theirs}"
    return f"{len(found)} rows, the stream says {len(expected)}"
