"""Backfills as `capture.backfill_run` remembers them: one run for each table that is told again.

A chunk of rows and the run's progress are one statement, and so one unit of work: a run that dies
anywhere goes on exactly where it was, and two processes cannot tell the same chunk. What is asked
of a run that is paused, cancelled or overtaken by a new gap changes nothing and returns None.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, LiteralString, NamedTuple

from psycopg import sql
from psycopg.rows import class_row

from ingest.guardian import Database


class RunState(StrEnum):
    """Whether a run is to be worked on. An open run of a dead process waits to be resumed."""

    OPEN = "open"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    FINISHED = "finished"


class Phase(StrEnum):
    """What a run does: tells rows, tells what is gone, or waits for the stream to hold it all."""

    ROWS = "rows"
    GONE = "gone"
    TOLD = "told"


@dataclass(frozen=True, slots=True)
class Scope:
    """What a run tells: a table, a part of its keys, one merchant's rows; and what is gone of it.

    The range is of the key's first column, both ends included.
    """

    table: str
    range_from: str | None = None
    range_to: str | None = None
    merchant_id: str | None = None
    deletes: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """One run and how far it is; `estimate` is PostgreSQL's own guess of all its rows.

    `state` is a `RunState`, `phase` a `Phase`.
    """

    id: int
    table_name: str
    range_from: str | None
    range_to: str | None
    merchant_id: str | None
    deletes: bool
    state: str
    phase: str
    rows: int
    gone: int
    bytes: int
    estimate: int
    started_at: datetime
    updated_at: datetime
    finished_at: datetime | None
    reason: str | None


class Chunk(NamedTuple):
    """What one step of a run told."""

    rows: int
    bytes: int
    phase: Phase


_COLUMNS: Final[LiteralString] = """
    id, table_name, range_from, range_to, merchant_id, deletes, state, phase, rows, gone, bytes,
    estimate, started_at, updated_at, finished_at, reason
"""
_START: Final[LiteralString] = f"""
    INSERT INTO capture.backfill_run
        (slot, table_name, range_from, range_to, merchant_id, deletes, estimate, after_gap)
    VALUES (%(slot)s, %(table)s, %(from)s, %(to)s, %(merchant)s, %(deletes)s, %(estimate)s,
            (SELECT coalesce(max(id), 0) FROM capture.gap WHERE slot = %(slot)s))
    RETURNING {_COLUMNS}
"""  # noqa: S608 - constants only
_LIST: Final[LiteralString] = f"""
    SELECT {_COLUMNS} FROM capture.backfill_run WHERE slot = %s ORDER BY id DESC LIMIT %s
"""  # noqa: S608
_NEXT: Final[LiteralString] = f"""
    SELECT {_COLUMNS} FROM capture.backfill_run
    WHERE slot = %s AND state = 'open' ORDER BY id LIMIT 1
"""  # noqa: S608
# Opening the run's row first makes the chunk and its progress one; the lock order is the same for
# all that works on runs.
_MINE: Final[LiteralString] = """
    WITH mine AS MATERIALIZED (
        SELECT r.* FROM capture.backfill_run AS r
        WHERE r.id = %(run)s AND r.state = 'open' AND r.phase = %(phase)s
          AND NOT EXISTS (
              SELECT FROM capture.gap AS g WHERE g.slot = r.slot AND g.id > r.after_gap)
        FOR UPDATE OF r
    )
"""
_TELL_ROWS: Final[LiteralString] = f"""{_MINE}, told AS MATERIALIZED (
        SELECT t.told, t.bytes, t.last_key
        FROM mine, public.backfill_tell(
            mine.id, mine.table_name::name, mine.next_key, mine.range_from, mine.range_to,
            mine.merchant_id, %(most)s) AS t
    )
    UPDATE capture.backfill_run AS r SET
        rows = r.rows + told.told, bytes = r.bytes + told.bytes, next_key = told.last_key,
        phase = CASE WHEN told.last_key IS NOT NULL THEN 'rows'
                     WHEN r.deletes THEN 'gone' ELSE 'told' END,
        updated_at = clock_timestamp(), reason = NULL
    FROM told WHERE r.id = %(run)s
    RETURNING told.told, told.bytes, r.phase
"""  # noqa: S608
_TELL_GONE: Final[LiteralString] = f"""{_MINE}, told AS MATERIALIZED (
        SELECT public.backfill_tell_gone(mine.id, mine.table_name::name, %(images)s) AS told
        FROM mine
    )
    UPDATE capture.backfill_run AS r SET
        gone = r.gone + told.told, updated_at = clock_timestamp(), reason = NULL
    FROM told WHERE r.id = %(run)s
    RETURNING told.told, 0, r.phase
"""  # noqa: S608
_STEP: Final[LiteralString] = f"""{_MINE}
    UPDATE capture.backfill_run AS r SET
        phase = 'told', state = CASE WHEN %(finished)s THEN 'finished' ELSE r.state END,
        finished_at = CASE WHEN %(finished)s THEN clock_timestamp() END,
        updated_at = clock_timestamp(), reason = NULL
    FROM mine WHERE r.id = mine.id
    RETURNING 0, 0, r.phase
"""  # noqa: S608
_MOVE: Final[LiteralString] = """
    UPDATE capture.backfill_run SET state = %(to)s, reason = %(reason)s,
           finished_at = CASE WHEN %(to)s = 'cancelled' THEN clock_timestamp() END
    WHERE slot = %(slot)s AND (id = %(run)s OR %(run)s::bigint IS NULL)
      AND state IN ('open', 'paused')
    RETURNING id
"""
_OVERTAKEN: Final[LiteralString] = """
    SELECT EXISTS (SELECT FROM capture.gap AS g WHERE g.slot = r.slot AND g.id > r.after_gap)
    FROM capture.backfill_run AS r WHERE r.id = %s
"""
_KEY: Final[LiteralString] = """
    SELECT a.attname
    FROM pg_index AS i
    CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (number, place)
    JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number
    WHERE i.indrelid = format('public.%%I', %s::text)::regclass AND i.indisprimary
    ORDER BY k.place
"""
_PLAN: Final[LiteralString] = """
    EXPLAIN (FORMAT JSON)
    SELECT FROM {table}
    WHERE ({key} >= %(from)s OR %(from)s::text IS NULL)
      AND ({key} <= %(to)s OR %(to)s::text IS NULL)
      AND ({owner} = %(merchant)s OR %(merchant)s::text IS NULL)
"""
_LOG_END: Final[LiteralString] = "SELECT pg_current_wal_insert_lsn() - '0/0'"
_CLEAR: Final[LiteralString] = "SELECT public.backfill_clear()"
_BUSY: Final[LiteralString] = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
_SEAT: Final[LiteralString] = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"


def key_columns(database: Database, table: str) -> list[str]:
    """Return the columns of a table's primary key, in order."""
    return [row[0] for row in database.execute(_KEY, (table,))]


def estimate(database: Database, scope: Scope) -> int:
    """Return how many rows PostgreSQL expects a run to tell."""
    owner = "id" if scope.table == "merchants" else "merchant_id"
    query = sql.SQL(_PLAN).format(
        table=sql.Identifier("public", scope.table),
        key=sql.Identifier(key_columns(database, scope.table)[0]),
        owner=sql.Identifier(owner),
    )
    row = database.execute(query, _ends(scope)).fetchone()
    assert row is not None, "EXPLAIN has a row"  # noqa: S101
    return int(row[0][0]["Plan"]["Plan Rows"])


def _ends(scope: Scope) -> dict[str, Any]:
    return {"from": scope.range_from, "to": scope.range_to, "merchant": scope.merchant_id}


def start_run(database: Database, slot: str, scope: Scope) -> Run:
    """Remember a new run, to be worked on after those before it."""
    values = {"slot": slot, "table": scope.table, "deletes": scope.deletes, **_ends(scope)}
    with database.cursor(row_factory=class_row(Run)) as cursor:
        found = cursor.execute(_START, {**values, "estimate": estimate(database, scope)}).fetchone()
    assert found is not None, "an INSERT returns its row"  # noqa: S101
    return found


def list_runs(database: Database, slot: str, most: int = 20) -> list[Run]:
    """Return the newest runs of a slot, newest first."""
    with database.cursor(row_factory=class_row(Run)) as cursor:
        return cursor.execute(_LIST, (slot, most)).fetchall()


def next_run(database: Database, slot: str) -> Run | None:
    """Return the oldest open run."""
    with database.cursor(row_factory=class_row(Run)) as cursor:
        return cursor.execute(_NEXT, (slot,)).fetchone()


def tell_rows(database: Database, run: int, most: int) -> Chunk | None:
    """Tell the next rows of a run."""
    return _told(database, _TELL_ROWS, {"run": run, "phase": Phase.ROWS, "most": most})


def tell_gone(database: Database, run: int, images: list[str]) -> Chunk | None:
    """Tell that rows are gone, by their last images; those that are there after all are left."""
    return _told(database, _TELL_GONE, {"run": run, "phase": Phase.GONE, "images": images})


def gone_is_told(database: Database, run: int) -> Chunk | None:
    """Note that a run has told all that is gone."""
    return _told(database, _STEP, {"run": run, "phase": Phase.GONE, "finished": False})


def finish(database: Database, run: int) -> Chunk | None:
    """Note that the stream holds all that a run told."""
    return _told(database, _STEP, {"run": run, "phase": Phase.TOLD, "finished": True})


def _told(database: Database, statement: LiteralString, values: dict[str, Any]) -> Chunk | None:
    row = database.execute(statement, values).fetchone()
    return None if row is None else Chunk(int(row[0]), int(row[1]), Phase(row[2]))


def move(
    database: Database, slot: str, run: int | None, to: RunState, reason: str | None = None
) -> list[int]:
    """Open, pause or cancel one unfinished run, or all of them; return their numbers."""
    values = {"slot": slot, "run": run, "to": to, "reason": reason}
    return sorted(row[0] for row in database.execute(_MOVE, values))


def overtaken(database: Database, run: int) -> bool:
    """Say whether a gap was noted since the run began, so that what it told may be lost."""
    row = database.execute(_OVERTAKEN, (run,)).fetchone()
    return row is not None and bool(row[0])


def worker_name(slot: str) -> str:
    """Return the name by which the one process that works on runs is known to PostgreSQL."""
    return f"backfill {slot}"


def take_seat(database: Database, slot: str) -> bool:
    """Become the slot's only worker for as long as this connection lives; False if there is one."""
    row = database.execute(_SEAT, (worker_name(slot),)).fetchone()
    return row is not None and bool(row[0])


def worker(database: Database, slot: str) -> int | None:
    """Return the PostgreSQL process of the worker, None where nobody works."""
    row = database.execute(_BUSY, (worker_name(slot),)).fetchone()
    return None if row is None else int(row[0])


def log_end(database: Database) -> int:
    """Return where the log ends now, in bytes: what commits from now on is after it."""
    row = database.execute(_LOG_END).fetchone()
    assert row is not None, "a SELECT without FROM has a row"  # noqa: S101
    return int(row[0])


def clear(database: Database) -> None:
    """Empty the table through which rows go into the log."""
    database.execute(_CLEAR)
