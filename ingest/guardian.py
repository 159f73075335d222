"""What the ledger database says about capture: slot, log, stored offset.

Reads only, save one beat of the heartbeat table. Its findings decide, before the engine starts,
whether capture may resume at all, and measure its lag while it runs. A database that does not
answer in time raises `psycopg.Error`.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import Connection, sql
from psycopg.rows import TupleRow

from ingest.checkpoint import SEQUENCE_KEY, LogState, SlotState, WalStatus
from ingest.errors import ProvisionRefused, SlotLost
from ingest.settings import IngestSettings
from ingest.tables import ORIGIN_TABLE, SCHEMA

Database = Connection[TupleRow]

CONNECT_TIMEOUT_S: Final = 10
STATEMENT_TIMEOUT_MS: Final = 10_000
# A machine that vanished must not keep the lock of its session for two hours.
_KEEPALIVE: Final = (
    "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3"
)
HEARTBEAT_SQL: Final = (
    "UPDATE public.capture_heartbeat "
    "SET beat_at = clock_timestamp(), sequence = sequence + 1 WHERE id = 1"
)
_SLOT_SQL: Final = """
    SELECT confirmed_flush_lsn - '0/0', restart_lsn - '0/0', wal_status, active_pid,
           plugin, database = current_database(), safe_wal_size
    FROM pg_replication_slots WHERE slot_name = %s
"""
_SYSTEM_SQL: Final = """
    SELECT (SELECT system_identifier::text FROM pg_control_system()),
           pg_current_wal_flush_lsn() - '0/0'
"""
_NOW_SQL: Final = """
    SELECT pg_current_wal_flush_lsn() - '0/0',
           (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
"""
_PLUGIN: Final = "pgoutput"


@dataclass(frozen=True, slots=True)
class Lag:
    """How far capture is behind, and how much log its slot holds back, in bytes.

    `limit` is how much it may hold back before PostgreSQL gives it up; None without a limit.
    `now_us` is the database's clock.
    """

    behind: int
    retained: int
    limit: int | None
    wal_status: WalStatus
    active_pid: int | None
    now_us: int


def open_database(settings: IngestSettings) -> Database:
    """Connect as the capture role, every statement on its own and with a deadline."""
    return psycopg.connect(
        settings.database_url.get_secret_value(),
        autocommit=True,
        connect_timeout=CONNECT_TIMEOUT_S,
        application_name="giovang capture guardian",
        options=f"-c statement_timeout={STATEMENT_TIMEOUT_MS} {_KEEPALIVE}",
        tcp_user_timeout=STATEMENT_TIMEOUT_MS,
    )


def slot_state(connection: Database, slot: str) -> SlotState | None:
    """Read the replication slot; raises `ProvisionRefused` where it is not of our kind."""
    row = connection.execute(_SLOT_SQL, (slot,)).fetchone()
    if row is None:
        return None
    confirmed, restart, wal_status, active_pid, plugin, ours, room = row
    if plugin != _PLUGIN or not ours:
        raise ProvisionRefused(
            f"replication slot {slot} belongs to another database or plug-in ({plugin})"
        )
    status = WalStatus.LOST if confirmed is None or wal_status is None else WalStatus(wal_status)
    return SlotState(
        confirmed=int(confirmed or 0),
        restart=int(restart or 0),
        wal_status=status,
        active_pid=active_pid,
        room=None if room is None else int(room),
    )


def log_state(connection: Database, settings: IngestSettings) -> LogState:
    """Read everything that `checkpoint.resume_from` needs from the database."""
    row = connection.execute(_SYSTEM_SQL).fetchone()
    assert row is not None, "a SELECT without FROM has a row"  # noqa: S101
    system, position = row
    offset, offset_sequence = _stored_offset(connection, settings)
    return LogState(
        system=system,
        position=int(position),
        slot=slot_state(connection, settings.slot),
        offset=offset,
        origin=_origin(connection, settings),
        offset_sequence=offset_sequence,
    )


def _table_exists(connection: Database, name: str) -> bool:
    row = connection.execute(
        "SELECT to_regclass(format('%%I.%%I', %s::text, %s::text)) IS NOT NULL", (SCHEMA, name)
    ).fetchone()
    return row is not None and bool(row[0])


def _stored_offset(connection: Database, settings: IngestSettings) -> tuple[int | None, int | None]:
    """Return the commit position that is done, and the sequence that the stream had then."""
    if not _table_exists(connection, settings.offset_table):
        return None, None
    rows = connection.execute(
        sql.SQL("SELECT offset_val FROM {}").format(sql.Identifier(SCHEMA, settings.offset_table))
    ).fetchall()
    if not rows:
        return None, None
    if len(rows) > 1:
        raise ProvisionRefused(f"{SCHEMA}.{settings.offset_table} holds {len(rows)} offsets")
    offset: dict[str, Any] = json.loads(rows[0][0])
    commit = offset.get("lsn_commit")
    if not isinstance(commit, int) or offset.get("lsn") != commit:
        raise ProvisionRefused(
            f"{SCHEMA}.{settings.offset_table} holds an offset that is not the end of a database "
            "transaction"
        )
    return commit, offset.get(SEQUENCE_KEY)


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


def beat(connection: Database) -> None:
    """Write one heartbeat, which comes back through the log as an event."""
    if connection.execute(HEARTBEAT_SQL).rowcount != 1:
        raise ProvisionRefused("table capture_heartbeat has no row to beat: run the migrations")


def measure(connection: Database, slot: str, position: int) -> Lag:
    """Measure how far `position`, the last published commit, is behind the log's end.

    Raises `SlotLost` where the slot vanished.
    """
    row = connection.execute(_NOW_SQL).fetchone()
    state = slot_state(connection, slot)
    if row is None or state is None:
        raise SlotLost(
            f"replication slot {slot} vanished: changes since then can no longer be captured; run "
            "`python -m ingest.provision`, which says what to do"
        )
    end = int(row[0])
    retained = max(0, end - state.restart)
    return Lag(
        behind=max(0, end - position),
        retained=retained,
        limit=None if state.room is None else retained + max(0, state.room),
        wal_status=state.wal_status,
        active_pid=state.active_pid,
        now_us=int(row[1]),
    )
