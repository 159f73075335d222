"""Which of several capture processes captures: one leads, the others stand by and take over.

The leader holds an advisory lock of the ledger database, named after the slot, so another gets it
the moment PostgreSQL notices that the leader's connection is gone. A leader that keeps its
connection and beats no more, as on a frozen machine, is unseated: its backends are ended, and the
lock with them. This decides who works; that nothing is lost or doubled rests on slot, offset and
the stream's fence, also while two processes both believe that they lead. A lost connection raises
`psycopg.Error`, and the process ends.
"""

import os
import secrets
import socket
import tomllib
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import psycopg

from ingest.errors import ResumeRefused, SeatLost
from ingest.guardian import Database
from ingest.levels import Level

KEPT_ROWS: Final = "1 minute"
"""How long the row of a process that is gone is of use: its last error lives on in the next."""
_FORGET_SQL: Final = """
    DELETE FROM capture.process WHERE slot = %(slot)s
    AND coalesce(ended_at, beat_at) < clock_timestamp() - %(kept)s::interval
"""
_ENTER_SQL: Final = """
    INSERT INTO capture.process
        (instance, slot, role, host, pid, backend, version, last_error, last_error_at)
    SELECT %(instance)s, %(slot)s, 'standby', %(host)s, %(pid)s, pg_backend_pid(), %(version)s,
           before.last_error, before.last_error_at
    FROM (SELECT) AS one LEFT JOIN LATERAL (
        SELECT last_error, last_error_at FROM capture.process
        WHERE slot = %(slot)s AND last_error IS NOT NULL ORDER BY last_error_at DESC LIMIT 1
    ) AS before ON true
"""
_TRY_SQL: Final = "SELECT pg_try_advisory_lock(hashtextextended('giovang capture ' || %(slot)s, 0))"
_LEAD_SQL: Final = "UPDATE capture.process SET role = 'active' WHERE instance = %(instance)s"
_LEADER_SQL: Final = """
    SELECT l.pid, p.host, p.pid, p.beat_at
    FROM pg_locks l
    LEFT JOIN capture.process p ON p.backend = l.pid AND p.slot = %(slot)s AND p.ended_at IS NULL
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (l.classid::bigint << 32 | l.objid::bigint)
          = hashtextextended('giovang capture ' || %(slot)s, 0)
    ORDER BY p.beat_at DESC NULLS LAST LIMIT 1
"""
_BEAT_SQL: Final = """
    UPDATE capture.process SET beat_at = clock_timestamp() WHERE instance = %(instance)s
"""
_FIGURES_SQL: Final = """
    UPDATE capture.process SET
        beat_at = clock_timestamp(), position = %(position)s, committed_at = %(committed_at)s,
        events = %(events)s, passed_over = %(passed_over)s, rate_per_s = %(rate_per_s)s,
        lag_bytes = %(lag_bytes)s, lag_ms = %(lag_ms)s, retained_bytes = %(retained_bytes)s,
        level = %(level)s, forecast_s = %(forecast_s)s
    WHERE instance = %(instance)s
"""
# Ends the leader's session and the one that reads the slot, unless it has beaten since.
_UNSEAT_SQL: Final = """
    SELECT count(pg_terminate_backend(holder.pid)) FROM (
        SELECT %(backend)s::integer AS pid
        UNION
        SELECT active_pid FROM pg_replication_slots
        WHERE slot_name = %(slot)s AND active_pid IS NOT NULL
    ) AS holder
    WHERE NOT EXISTS (
        SELECT FROM capture.process
        WHERE backend = %(backend)s AND slot = %(slot)s AND ended_at IS NULL
          AND beat_at IS DISTINCT FROM %(beat_at)s)
"""
_LEAVE_SQL: Final = """
    UPDATE capture.process SET
        ended_at = clock_timestamp(),
        last_error = coalesce(%(error)s, last_error),
        last_error_at = CASE WHEN %(error)s::text IS NULL THEN last_error_at
                             ELSE clock_timestamp() END
    WHERE instance = %(instance)s
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """What a leading process says of itself each second; see `capture.process`."""

    position: int
    committed_at: datetime | None
    events: int
    passed_over: int
    rate_per_s: float
    lag_bytes: int
    lag_ms: int | None
    retained_bytes: int
    level: Level
    forecast_s: int | None


@dataclass(frozen=True, slots=True)
class Leader:
    """Who holds the lock: PostgreSQL's process for it, and where it runs, as far as it said so."""

    backend: int
    host: str | None
    pid: int | None
    beat_at: datetime | None

    def __str__(self) -> str:
        if self.host is None:
            return f"PostgreSQL process {self.backend}"
        return f"{self.host}, process {self.pid}"


class Silence:
    """How long a leader has not beaten, by this process's own clock."""

    def __init__(self) -> None:
        self._seen: Leader | None = None
        self._since_s = 0.0
        self.beaten = False

    def of(self, leader: Leader, looked_s: float) -> float:
        """Return the silence in seconds; `looked_s` is the time from before the look.

        A watcher that was frozen itself sees a beat that moved, and so accuses nobody.
        """
        if leader != self._seen:
            self.beaten = (
                self._seen is not None
                and self._seen.backend == leader.backend
                and self._seen.beat_at != leader.beat_at
            )
            self._seen, self._since_s = leader, looked_s
        return looked_s - self._since_s


class Seat:
    """This process's place among those of its slot: one row, one session, perhaps the lock."""

    def __init__(self, database: Database, slot: str) -> None:
        self._database = database
        self._who = {
            "instance": secrets.token_hex(8),
            "slot": slot,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": release(),
            "kept": KEPT_ROWS,
        }

    def enter(self) -> None:
        """Write this process's row, with the last error of those before it."""
        try:
            with self._database.transaction():
                self._database.execute(_ENTER_SQL, self._who)
                self._database.execute(_FORGET_SQL, self._who)
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn) as error:
            raise ResumeRefused(
                "capture's tables are missing or of an earlier release: run "
                "`python -m ingest.provision` first"
            ) from error

    def try_lead(self) -> bool:
        """Take the lock if nobody has it."""
        row = self._database.execute(_TRY_SQL, self._who).fetchone()
        if row is None or not row[0]:
            return False
        self._database.execute(_LEAD_SQL, self._who)
        return True

    def leader(self) -> Leader | None:
        """Return who holds the lock."""
        row = self._database.execute(_LEADER_SQL, self._who).fetchone()
        return None if row is None else Leader(*row)

    def unseat(self, leader: Leader) -> bool:
        """End the sessions of a leader that has not beaten since `leader.beat_at`."""
        row = self._database.execute(_UNSEAT_SQL, {**self._who, **asdict(leader)}).fetchone()
        return row is not None and row[0] > 0

    def beat(self, figures: Figures | None = None) -> None:
        """Say that this process lives, and how it goes; raises `SeatLost` where its row is gone."""
        if figures is None:
            done = self._database.execute(_BEAT_SQL, self._who)
        else:
            done = self._database.execute(_FIGURES_SQL, {**asdict(figures), **self._who})
        if done.rowcount != 1:
            raise SeatLost("this process's row in capture.process is gone: it starts again")

    def leave(self, error: str | None) -> None:
        """Say that this process ends, and why."""
        self._database.execute(_LEAVE_SQL, {**self._who, "error": error})


def leader_of(database: Database, slot: str) -> Leader | None:
    """Return who leads on a slot, for who only looks."""
    row = database.execute(_LEADER_SQL, {"slot": slot}).fetchone()
    return None if row is None else Leader(*row)


def release() -> str:
    """Return the product's version, as its project file has it."""
    project = Path(__file__).resolve().parents[1] / "pyproject.toml"
    if not project.is_file():
        return "unknown"
    version: str = tomllib.loads(project.read_text())["project"]["version"]
    return version
