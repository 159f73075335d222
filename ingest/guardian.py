"""What the ledger database says about capture: slot, log, stored offset, published tables.

Reads only, save one beat of the heartbeat table. Its findings decide, before the engine starts,
whether capture may resume at all, and measure its lag while it runs. A database that does not
answer in time raises `psycopg.Error`; a published table that the envelope cannot tell correctly
raises `ProvisionRefused`, naming table and column.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import Connection, sql
from psycopg.rows import TupleRow

from ingest.checkpoint import LogState, SlotState, WalStatus
from ingest.contract import MUTABLE_TABLES, Table
from ingest.envelope import MOMENT_SUFFIX, MONEY_SUFFIX
from ingest.errors import ProvisionRefused
from ingest.settings import IngestSettings

Database = Connection[TupleRow]

SCHEMA: Final = "capture"
ORIGIN_TABLE: Final = "slot_origin"
CONNECT_TIMEOUT_S: Final = 10
STATEMENT_TIMEOUT_MS: Final = 10_000
HEARTBEAT_SQL: Final = (
    "UPDATE public.capture_heartbeat "
    "SET beat_at = clock_timestamp(), sequence = sequence + 1 WHERE id = 1"
)
_SLOT_SQL: Final = """
    SELECT confirmed_flush_lsn - '0/0', restart_lsn - '0/0', wal_status, active_pid,
           plugin, database = current_database()
    FROM pg_replication_slots WHERE slot_name = %s
"""
_SYSTEM_SQL: Final = """
    SELECT (SELECT system_identifier::text FROM pg_control_system()),
           pg_current_wal_flush_lsn() - '0/0'
"""
_COLUMNS_SQL: Final = """
    SELECT c.relname, c.relreplident = 'f', a.attname, a.atttypid::regtype::text
    FROM pg_publication_tables p
    JOIN pg_class c ON c.oid = format('%%I.%%I', p.schemaname, p.tablename)::regclass
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE p.pubname = %s
    ORDER BY c.relname, a.attnum
"""
_PLUGIN: Final = "pgoutput"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a published table; `whole_before` is REPLICA IDENTITY FULL."""

    table: str
    whole_before: bool
    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Lag:
    """How far capture is behind, and how much log its slot holds back, in bytes."""

    behind: int
    retained: int
    wal_status: WalStatus
    active_pid: int | None


def open_database(settings: IngestSettings) -> Database:
    """Connect as the capture role, every statement on its own and with a deadline."""
    return psycopg.connect(
        settings.database_url.get_secret_value(),
        autocommit=True,
        connect_timeout=CONNECT_TIMEOUT_S,
        application_name="giovang capture guardian",
        options=f"-c statement_timeout={STATEMENT_TIMEOUT_MS}",
    )


def slot_state(connection: Database, slot: str) -> SlotState | None:
    """Read the replication slot; raises `ProvisionRefused` where it is not of our kind."""
    row = connection.execute(_SLOT_SQL, (slot,)).fetchone()
    if row is None:
        return None
    confirmed, restart, wal_status, active_pid, plugin, ours = row
    if plugin != _PLUGIN or not ours:
        raise ProvisionRefused(
            f"replication slot {slot} belongs to another database or plug-in ({plugin})"
        )
    status = WalStatus.LOST if confirmed is None or wal_status is None else WalStatus(wal_status)
    return SlotState(int(confirmed or 0), int(restart or 0), status, active_pid)


def log_state(connection: Database, settings: IngestSettings) -> LogState:
    """Read everything that `checkpoint.resume_from` needs from the database."""
    row = connection.execute(_SYSTEM_SQL).fetchone()
    assert row is not None, "a SELECT without FROM has a row"  # noqa: S101
    system, position = row
    return LogState(
        system=system,
        position=int(position),
        slot=slot_state(connection, settings.slot),
        offset=_stored_offset(connection, settings),
        origin=_origin(connection, settings),
    )


def _table_exists(connection: Database, name: str) -> bool:
    row = connection.execute(
        "SELECT to_regclass(format('%%I.%%I', %s::text, %s::text)) IS NOT NULL", (SCHEMA, name)
    ).fetchone()
    return row is not None and bool(row[0])


def _stored_offset(connection: Database, settings: IngestSettings) -> int | None:
    if not _table_exists(connection, settings.offset_table):
        return None
    rows = connection.execute(
        sql.SQL("SELECT offset_val FROM {}").format(sql.Identifier(SCHEMA, settings.offset_table))
    ).fetchall()
    if not rows:
        return None
    if len(rows) > 1:
        raise ProvisionRefused(f"{SCHEMA}.{settings.offset_table} holds {len(rows)} offsets")
    offset: dict[str, Any] = json.loads(rows[0][0])
    commit = offset.get("lsn_commit")
    if not isinstance(commit, int) or offset.get("lsn") != commit:
        raise ProvisionRefused(
            f"{SCHEMA}.{settings.offset_table} holds an offset that is not the end of a database "
            "transaction"
        )
    return commit


def _origin(connection: Database, settings: IngestSettings) -> int | None:
    if not _table_exists(connection, ORIGIN_TABLE):
        return None
    row = connection.execute(
        sql.SQL("SELECT began FROM {} WHERE slot = %s").format(
            sql.Identifier(SCHEMA, ORIGIN_TABLE)
        ),
        (settings.slot,),
    ).fetchone()
    return None if row is None else int(row[0])


def published_columns(connection: Database, publication: str) -> list[Column]:
    """Read the columns of every table in the publication."""
    return [Column(*row) for row in connection.execute(_COLUMNS_SQL, (publication,))]


def verify_tables(publication: str, columns: Iterable[Column]) -> None:
    """Raise `ProvisionRefused` where the published tables and the contract differ."""
    columns = list(columns)
    problems = []
    published = {column.table for column in columns}
    if missing := {table.value for table in Table} - published:
        problems.append(f"{', '.join(sorted(missing))} not published")
    if unknown := published - {table.value for table in Table}:
        problems.append(f"{', '.join(sorted(unknown))} unknown to ingest/contract.py")
    problems += sorted(
        {
            f"{column.table} lacks REPLICA IDENTITY FULL"
            for column in columns
            if column.table in MUTABLE_TABLES and not column.whole_before
        }
    )
    problems += [problem for column in columns for problem in _column_problems(column)]
    if problems:
        raise ProvisionRefused(f"publication {publication}: {'; '.join(problems)}")


def _column_problems(column: Column) -> Iterable[str]:
    moment, money = column.name.endswith(MOMENT_SUFFIX), column.name.endswith(MONEY_SUFFIX)
    if column.type.startswith("timestamp"):
        if not moment or column.type != "timestamp with time zone":
            yield f"{column.table}.{column.name} must be timestamptz and end in {MOMENT_SUFFIX}"
    elif moment:
        yield f"{column.table}.{column.name} ends in {MOMENT_SUFFIX} but is {column.type}"
    if money and column.type not in {"bigint", "numeric"}:
        yield f"{column.table}.{column.name} ends in {MONEY_SUFFIX} but is {column.type}"


def beat(connection: Database) -> None:
    """Write one heartbeat, which comes back through the log as an event."""
    if connection.execute(HEARTBEAT_SQL).rowcount != 1:
        raise ProvisionRefused("table capture_heartbeat has no row to beat: run the migrations")


def measure(connection: Database, slot: str, position: int) -> Lag:
    """Measure how far `position`, the last published commit, is behind the log's end.

    Raises `ProvisionRefused` where the slot vanished.
    """
    row = connection.execute("SELECT pg_current_wal_flush_lsn() - '0/0'").fetchone()
    state = slot_state(connection, slot)
    if row is None or state is None:
        raise ProvisionRefused(f"replication slot {slot} vanished while capture was running")
    end = int(row[0])
    return Lag(
        behind=max(0, end - position),
        retained=max(0, end - state.restart),
        wal_status=state.wal_status,
        active_pid=state.active_pid,
    )
