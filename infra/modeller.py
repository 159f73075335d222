"""The modeller: dbt in a lasting process, which keeps the marts as fresh as the warehouse.

It looks at the warehouse once a second and builds when something arrived, at most once an interval;
while nothing arrives it only moves the marts' freshness along. A build that fails is named, logged
and tried again with back-off; after too many in a row the process ends with status 1, and one that
outlives its deadline ends it with status 70, so that a supervisor starts afresh. Models are built
each in one database transaction, so a build may be cut off anywhere.
"""

import hashlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import Any, Final, Protocol

import psycopg
from dbt.cli.main import dbtRunner
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra.telemetry import configure_logging, get_logger, notify_alive, notify_ready

PROJECT: Final = Path(__file__).resolve().parents[1] / "dbt"
LOOK_EVERY_S: Final = 1.0
NOTIFY_EVERY_S: Final = 2.0
QUERY_DEADLINE_S: Final = 10
BACKOFF_LIMIT_S: Final = 60.0
OVERDUE_STATUS: Final = 70  # EX_SOFTWARE of sysexits.h
# No local day begins anywhere but on a quarter of a UTC hour, so "today" is rebuilt at each.
DAY_BOUNDARY_S: Final = 900

log = get_logger(__name__)


class ModellerSettings(BaseSettings):
    """Where the warehouse is, how often to build, and where dbt may write."""

    model_config = SettingsConfigDict(env_prefix="GIOVANG_DBT_", frozen=True)

    host: str = "127.0.0.1"
    port: int = 15433
    database: str = "analytics"
    user: str = "giovang_dbt"
    password: SecretStr
    threads: int = Field(default=2, ge=1, le=16)
    interval_s: float = Field(default=15.0, gt=0)
    test_interval_s: float = Field(default=600.0, gt=0)
    build_deadline_s: float = Field(default=600.0, gt=0)
    failure_limit: int = Field(default=8, ge=1)
    project_dir: Path = Field(default=PROJECT, validation_alias="DBT_PROJECT_DIR")
    target_path: Path = Field(validation_alias="DBT_TARGET_PATH")
    log_path: Path = Field(validation_alias="DBT_LOG_PATH")


class Work(Enum):
    """What one cycle does; the value says it to a person."""

    PROJECT = "whole project"
    MARTS = "marts"
    FRESHNESS = "freshness"


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look at the warehouse showed."""

    is_pending: bool
    committed_through: datetime | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a dbt command ended: failures by node name, each with one line of why."""

    failures: dict[str, str]
    seconds: float

    @property
    def succeeded(self) -> bool:
        """True where nothing failed."""
        return not self.failures


class Project(Protocol):
    """The dbt project, as the loop sees it; DbtProject is the real one."""

    def fingerprint(self) -> str: ...  # noqa: D102
    def build(self, work: Work) -> Outcome: ...  # noqa: D102
    def test(self) -> Outcome: ...  # noqa: D102


class Warehouse(Protocol):
    """The warehouse, as the loop sees it; PostgresWarehouse is the real one."""

    def look(self) -> Sight: ...  # noqa: D102


@dataclass
class Schedule:
    """Decides what is due. Times are seconds of one monotonic clock, except `slot`."""

    interval_s: float
    test_interval_s: float
    project: str = ""
    slot: int = -1
    published: datetime | None = None
    built_at_s: float = float("-inf")
    freshened_at_s: float = float("-inf")
    tested_at_s: float | None = None

    def due(self, sight: Sight | None, project: str, now_s: float, slot: int) -> Work | None:
        """Return the work that is due now; `sight` is None before the first build."""
        if sight is None or project != self.project:
            return Work.PROJECT
        rested = now_s - self.built_at_s >= self.interval_s
        if rested and (sight.is_pending or slot != self.slot):
            return Work.MARTS
        moved = not sight.is_pending and sight.committed_through != self.published
        if moved and now_s - self.freshened_at_s >= self.interval_s:
            return Work.FRESHNESS
        return None

    def done(self, work: Work, sight: Sight, project: str, began_s: float, slot: int) -> None:
        """Note that `work`, begun at `began_s`, succeeded; `sight` is how things stand after it."""
        self.freshened_at_s = began_s
        self.published = sight.committed_through
        if work is not Work.FRESHNESS:
            self.built_at_s, self.slot, self.project = began_s, slot, project

    def tests_due(self, now_s: float) -> bool:
        """True once an interval; the first time one interval after the first question."""
        if self.tested_at_s is None:
            self.tested_at_s = now_s
        if now_s - self.tested_at_s < self.test_interval_s:
            return False
        self.tested_at_s = now_s
        return True


@dataclass
class Modeller:
    """The loop: look, build what is due, test now and then, say that it is alive."""

    settings: ModellerSettings
    project: Project
    warehouse: Warehouse
    stopping: threading.Event = field(default_factory=threading.Event)
    is_working: bool = False
    status: str = "starting"

    def run(self) -> int:
        """Work until asked to stop; returns the exit status."""
        schedule = Schedule(self.settings.interval_s, self.settings.test_interval_s)
        failures_in_a_row, is_ready = 0, False
        while not self.stopping.is_set():
            try:
                worked = self._cycle(schedule, is_first=not is_ready)
            except ModellingError as error:
                failures_in_a_row += 1
                # The next attempt takes the whole project: a view that is gone is made again.
                schedule.project = ""
                # The reason is the whole story; a trace through this loop would add nothing.
                log.error("build failed", reason=str(error), in_a_row=failures_in_a_row)  # noqa: TRY400
                if failures_in_a_row >= self.settings.failure_limit:
                    log.critical("giving up")
                    return 1
                self._rest(backoff_s(self.settings.interval_s, failures_in_a_row), str(error))
                continue
            if worked and not is_ready:
                notify_ready(self.status)
                is_ready = True
            failures_in_a_row = 0
            self._rest(LOOK_EVERY_S, self.status)
        log.info("stopped")
        return 0

    def _cycle(self, schedule: Schedule, *, is_first: bool) -> bool:
        sight = None if is_first else self.warehouse.look()
        now_s, slot = time.monotonic(), int(time.time() // DAY_BOUNDARY_S)
        fingerprint = self.project.fingerprint()
        work = schedule.due(sight, fingerprint, now_s, slot)
        if work is not None:
            with self._working(work.value):
                outcome = self.project.build(work)
            if self.stopping.is_set():
                return False
            self._judge(work, outcome)
            schedule.done(work, self.warehouse.look(), fingerprint, now_s, slot)
        if schedule.tests_due(now_s):
            with self._working("data tests"):
                self._report(self.project.test())
        return work is not None

    def _judge(self, work: Work, outcome: Outcome) -> None:
        if not outcome.succeeded:
            for node, reason in outcome.failures.items():
                log.error("model failed", model=node, reason=reason)
            raise ModellingError(", ".join(outcome.failures))
        log.info("built", work=work.value, seconds=round(outcome.seconds, 2))
        self.status = f"{work.value} built at {datetime.now(UTC):%H:%M:%S} UTC"

    def _report(self, outcome: Outcome) -> None:
        if self.stopping.is_set():
            return
        for node, reason in outcome.failures.items():
            log.error("data test failed", test=node, reason=reason)
            self.status = f"{len(outcome.failures)} data tests fail: see the log"
        log.info("tested", failed=len(outcome.failures), seconds=round(outcome.seconds, 2))

    @contextmanager
    def _working(self, what: str) -> Iterator[None]:
        """Say that this process is alive while dbt works, but no longer than its deadline."""
        finished = threading.Event()
        beat = threading.Thread(target=self._beat, args=(what, finished), daemon=True)
        beat.start()
        self.is_working = True
        try:
            yield
        except KeyboardInterrupt:
            if not self.stopping.is_set():
                raise
        finally:
            self.is_working = False
            finished.set()
            beat.join()

    def _beat(self, what: str, finished: threading.Event) -> None:
        deadline_s = time.monotonic() + self.settings.build_deadline_s
        while time.monotonic() < deadline_s:
            notify_alive(f"building: {what}")
            if finished.wait(NOTIFY_EVERY_S):
                return
        log.critical("dbt outlived its deadline", work=what)
        # dbt's threads cannot be interrupted; PostgreSQL rolls their work back.
        os._exit(OVERDUE_STATUS)

    def _rest(self, seconds: float, status: str) -> None:
        until_s = time.monotonic() + seconds
        while not self.stopping.is_set():
            notify_alive(status)
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return
            self.stopping.wait(min(left_s, NOTIFY_EVERY_S))

    def stop(self, _signal: int = signal.SIGTERM, _frame: FrameType | None = None) -> None:
        """Signal handler: stop at once; dbt answers an interrupt by cancelling its queries."""
        self.stopping.set()
        if self.is_working:
            raise KeyboardInterrupt


class ModellingError(Exception):
    """A build did not succeed; the message names the models or says what is away."""


def backoff_s(interval_s: float, failures_in_a_row: int) -> float:
    """Return how long to rest after a failure: doubling, bounded, never in step with others."""
    doubled_s = interval_s * 2.0 ** min(failures_in_a_row - 1, 10)
    return min(doubled_s, BACKOFF_LIMIT_S) * random.uniform(0.5, 1.0)


class DbtProject:
    """The dbt project beside this file, run by dbt's own in-process runner."""

    def __init__(self, settings: ModellerSettings) -> None:
        self._folder = settings.project_dir
        self._options = (
            *("--project-dir", str(self._folder), "--profiles-dir", str(self._folder)),
            *("--target-path", str(settings.target_path), "--log-path", str(settings.log_path)),
            *("--threads", str(settings.threads)),
            # dbt's own log file has the details; these logs say what a person must know.
            *("--log-level", "none", "--log-level-file", "info", "--no-print"),
        )

    def fingerprint(self) -> str:
        """Tell one state of the project's files from another, by their times and sizes."""
        digest = hashlib.sha256()
        for path in sorted(self._folder.rglob("*")):
            if path.suffix in {".sql", ".yml", ".csv"}:
                stat = path.stat()
                digest.update(f"{path}|{stat.st_mtime_ns}|{stat.st_size}\n".encode())
        return digest.hexdigest()

    def build(self, work: Work) -> Outcome:
        """Run the models that `work` names; views change only with the project's files."""
        selection: dict[Work, tuple[str, ...]] = {
            Work.PROJECT: (),
            Work.MARTS: ("--exclude", "config.materialized:view"),
            Work.FRESHNESS: ("--select", "freshness"),
        }
        return self._invoke("run", *selection[work])

    def test(self) -> Outcome:
        """Run the data tests; unit tests need no data and belong to the test suite."""
        return self._invoke("test", "--select", "test_type:data")

    def _invoke(self, *arguments: str) -> Outcome:
        began_s = time.monotonic()
        answer = dbtRunner().invoke([*arguments, *self._options])
        return Outcome(failures=failures_of(answer), seconds=time.monotonic() - began_s)


def failures_of(answer: Any) -> dict[str, str]:  # noqa: ANN401 - dbt ships no types
    """Return what failed of a dbtRunnerResult: node name to one line without row data."""
    if isinstance(answer.exception, KeyboardInterrupt):
        raise answer.exception
    if answer.exception:
        return {"dbt": _first_line(answer.exception)}
    failures = {
        result.node.name: _reason(result)
        for result in getattr(answer.result, "results", ())
        if result.status in {"error", "fail", "runtime error"}
    }
    if not answer.success and not failures:
        return {"dbt": "ended without success and without naming a model"}
    return failures


def _reason(result: Any) -> str:  # noqa: ANN401 - dbt ships no types
    # dbt's first line names the kind and the file, the second says what PostgreSQL said; the rest
    # (DETAIL) may quote rows.
    lines = [line.strip() for line in str(result.message or result.status).splitlines()]
    return ": ".join(line for line in lines[:2] if line)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


class PostgresWarehouse:
    """The warehouse over one connection, made when needed and dropped after an error."""

    LOOK: Final = """
        SELECT
            (SELECT is_pending FROM intermediate.int_pending_arrivals),
            (SELECT MIN(committed_through) FROM staging.stg_watermark)
    """

    def __init__(self, settings: ModellerSettings) -> None:
        self._settings = settings
        self._connection: psycopg.Connection[Any] | None = None

    def look(self) -> Sight:
        """Ask what is new; ModellingError where the warehouse cannot be asked."""
        try:
            if self._connection is None:
                self._connection = psycopg.connect(
                    host=self._settings.host,
                    port=self._settings.port,
                    dbname=self._settings.database,
                    user=self._settings.user,
                    password=self._settings.password.get_secret_value(),
                    application_name="giovang-modeller",
                    autocommit=True,
                    connect_timeout=QUERY_DEADLINE_S,
                    options=f"-c statement_timeout={QUERY_DEADLINE_S}s",
                )
            ((is_pending, committed_through),) = self._connection.execute(self.LOOK).fetchall()
        except psycopg.Error as error:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            message = f"warehouse: {_first_line(error)}"
            raise ModellingError(message) from error
        return Sight(is_pending=is_pending, committed_through=committed_through)


def session_options(settings: ModellerSettings) -> str:
    """Return PGOPTIONS for dbt's sessions: UTC hours, and a limit on every statement and lock."""
    return (
        "-c timezone=UTC -c lock_timeout=30s -c idle_in_transaction_session_timeout=120s "
        f"-c statement_timeout={int(settings.build_deadline_s)}s"
    )


def main() -> int:
    """Run until SIGTERM or SIGINT; returns the exit status."""
    configure_logging("modeller")
    settings = ModellerSettings()
    os.environ["PGOPTIONS"] = session_options(settings)
    modeller = Modeller(settings, DbtProject(settings), PostgresWarehouse(settings))
    signal.signal(signal.SIGTERM, modeller.stop)
    signal.signal(signal.SIGINT, modeller.stop)
    return modeller.run()


if __name__ == "__main__":
    sys.exit(main())
