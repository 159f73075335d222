"""Gaps: stretches of the log that capture was never told, as `capture.gap` remembers them.

Provisioning notes a gap in the unit of work that makes it; a backfill that told every published
table since then, whole and with what is gone, closes it. A gap is never forgotten otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString

from psycopg import sql

from ingest.contract import Table
from ingest.guardian import Database

TOLD_TABLES: Final = (
    Table.MERCHANTS,
    Table.PAYMENTS,
    Table.REFUNDS,
    Table.PAYOUTS,
    Table.LEDGER_ENTRIES,
    Table.LEDGER_POSTINGS,
)
"""Every published table with rows of the business, those that others refer to first."""

_NOTE: Final[LiteralString] = """
    WITH known AS (
        SELECT id FROM capture.gap
        WHERE slot = %(slot)s AND closed_at IS NULL
          AND after IS NOT DISTINCT FROM %(after)s AND until = %(until)s
    ), noted AS (
        INSERT INTO capture.gap (slot, after, until, reason)
        SELECT %(slot)s, %(after)s, %(until)s, %(reason)s WHERE NOT EXISTS (SELECT FROM known)
        RETURNING id
    )
    SELECT id FROM noted UNION ALL SELECT id FROM known
"""
_OPEN: Final[LiteralString] = """
    SELECT id, after, until, found_at, reason FROM capture.gap
    WHERE slot = %s AND closed_at IS NULL ORDER BY id
"""
# A run counts for the gaps that were known when it began: its rows were read after they ended.
_CLOSE: Final[LiteralString] = """
    UPDATE capture.gap AS g SET closed_at = clock_timestamp(), closed_by = %(closed_by)s
    WHERE g.slot = %(slot)s AND g.closed_at IS NULL AND NOT EXISTS (
        SELECT FROM unnest(%(tables)s::text[]) AS wanted (table_name)
        WHERE NOT EXISTS (
            SELECT FROM capture.backfill_run AS r
            WHERE r.slot = g.slot AND r.table_name = wanted.table_name AND r.state = 'finished'
              AND r.deletes AND r.after_gap >= g.id
              AND num_nonnulls(r.range_from, r.range_to, r.merchant_id) = 0))
    RETURNING g.id
"""


@dataclass(frozen=True, slots=True)
class Gap:
    """An open gap: what lies after `after` (None: from the beginning), up to `until`, in bytes."""

    id: int
    after: int | None
    until: int | None
    found_at: datetime
    reason: str


def note_gap(database: Database, slot: str, after: int | None, until: int, reason: str) -> int:
    """Remember a gap and return its number; the one there is where it was noted before."""
    row = database.execute(
        _NOTE, {"slot": slot, "after": after, "until": until, "reason": reason}
    ).fetchone()
    assert row is not None, "a gap is noted or known"  # noqa: S101
    return int(row[0])


def open_gaps(database: Database, slot: str) -> list[Gap]:
    """Return the gaps that no backfill has closed, oldest first."""
    return [Gap(*row) for row in database.execute(_OPEN, (slot,))]


def close_gaps(database: Database, slot: str, closed_by: str) -> Sequence[int]:
    """Close every gap that finished backfills cover; return their numbers."""
    told = [table.value for table in TOLD_TABLES]
    found = database.execute(_CLOSE, {"slot": slot, "closed_by": closed_by, "tables": told})
    return [int(row[0]) for row in found]


def tables_with_rows(database: Database) -> list[str]:
    """Return the tables that hold rows, as far as the caller may see them."""
    return [
        table.value
        for table in TOLD_TABLES
        if database.execute(
            sql.SQL("SELECT FROM {} LIMIT 1").format(sql.Identifier("public", table.value))
        ).fetchone()
        is not None
    ]
