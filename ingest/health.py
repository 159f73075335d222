"""How capture stands, as one look at PostgreSQL and NATS tells it; nothing is changed by looking.

Works while capture, PostgreSQL or NATS is down: what cannot be reached is named in `unreachable`,
what a person should mend in `problems`, one sentence each that says what to do. Only settings that
make no sense raise.
"""

import asyncio
import contextlib
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import psycopg
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from psycopg.rows import class_row

from ingest import contract, gaps, guardian, publisher, runs, stream
from ingest.checkpoint import LogState, StreamState, WalStatus, lsn_text, resume_from
from ingest.contract import EventId
from ingest.errors import IngestError, ProvisionRefused, PublishFailed, ResumeRefused
from ingest.guardian import Database, Lag
from ingest.levels import Filling, Level, log_level, stream_filling
from ingest.runs import Run, RunState
from ingest.settings import IngestSettings
from ingest.standby import leader_of

ALIVE_S: Final = 5.0
"""A process beats each second; one that has not for so long does not work."""
LATE_MS: Final = 60_000
MONITORING_TIMEOUT_S: Final = 3.0
SHOWN_RUNS: Final = 5

_PROCESSES_SQL: Final = """
    SELECT instance, role, host, pid, backend, version, started_at, ended_at,
           EXISTS (SELECT FROM pg_stat_activity AS a
                   WHERE a.pid = p.backend AND a.backend_start <= p.started_at) AS connected,
           extract(epoch FROM clock_timestamp() - beat_at)::float8 AS beat_age_s,
           position, committed_at, events, passed_over, rate_per_s, lag_bytes, lag_ms,
           retained_bytes, last_error, last_error_at
    FROM capture.process AS p WHERE slot = %s ORDER BY beat_at DESC
"""


@dataclass(frozen=True, slots=True)
class Process:
    """One row of `capture.process`; `beat_age_s` by the database's clock."""

    instance: str
    role: str
    host: str
    pid: int
    backend: int
    version: str
    started_at: datetime
    ended_at: datetime | None
    connected: bool
    beat_age_s: float
    position: int | None
    committed_at: datetime | None
    events: int
    passed_over: int
    rate_per_s: float
    lag_bytes: int | None
    lag_ms: int | None
    retained_bytes: int | None
    last_error: str | None
    last_error_at: datetime | None

    @property
    def alive(self) -> bool:
        """Whether it beats: one that was killed lost its session, however fresh its last beat."""
        return self.ended_at is None and self.connected and self.beat_age_s < ALIVE_S

    @property
    def place(self) -> str:
        """Where it runs."""
        return f"{self.host}, process {self.pid}"


@dataclass(frozen=True, slots=True)
class Slot:
    """The replication slot and the log that it holds back; positions as PostgreSQL writes them."""

    name: str
    wal_status: WalStatus
    offset: str | None
    behind_bytes: int
    retained_bytes: int
    limit_bytes: int | None
    level: Level
    forecast_s: int | None


@dataclass(frozen=True, slots=True)
class StreamHealth:
    """The stream: its size, its last event, and how it differs from what is stated."""

    name: str
    messages: int
    bytes: int
    limit_bytes: int | None
    level: Level
    last_sequence: int
    last_event: str | None
    last_subject: str | None
    last_committed_at: datetime | None
    version: int | None
    drift: list[str] | None
    """None where PostgreSQL, which knows the slot's beginning, did not answer."""
    sync: str


@dataclass(slots=True)
class Health:
    """All that one look told."""

    at: datetime
    state: str = "unknown"
    processes: list[Process] = field(default_factory=list)
    slot: Slot | None = None
    stream: StreamHealth | None = None
    open_gaps: list[gaps.Gap] = field(default_factory=list)
    backfills: list[Run] = field(default_factory=list)
    last_error: str | None = None
    last_error_at: datetime | None = None
    problems: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)

    @property
    def active(self) -> Process | None:
        """The process that captures."""
        return next((p for p in self.processes if p.role == "active" and p.alive), None)

    @property
    def exit_status(self) -> int:
        """0 all well, 1 something needs a person, 2 it cannot be told."""
        if self.unreachable:
            return 2
        return 1 if self.problems else 0


async def examine(settings: IngestSettings) -> Health:
    """Look once at everything; returns within some twenty seconds whatever is down."""
    health = Health(datetime.now(UTC))
    log_state: LogState | None = None
    try:
        log_state = await asyncio.to_thread(_ask_database, settings, health)
    except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
        health.problems.append(
            "capture's tables are missing or of an earlier release: run "
            "`./giovang capture provision`"
        )
    except (psycopg.OperationalError, OSError) as error:
        health.unreachable.append(f"PostgreSQL does not answer: {_one_line(error)}")
    except psycopg.Error as error:
        health.unreachable.append(f"PostgreSQL does not tell: {_one_line(error)}")
    except IngestError as error:
        health.problems.append(str(error))
    found: StreamState | None = None
    try:
        found = await _ask_nats(settings, health, log_state)
    except PublishFailed as error:
        health.unreachable.append(_one_line(error))
    else:
        if log_state is not None and health.active is None:
            _judge_resume(settings, health, log_state, found)
    return health


def _ask_database(settings: IngestSettings, health: Health) -> LogState:
    with guardian.open_database(settings) as database:
        with database.cursor(row_factory=class_row(Process)) as cursor:
            health.processes = cursor.execute(_PROCESSES_SQL, (settings.slot,)).fetchall()
        _judge_processes(settings, health, database)
        log_state = guardian.log_state(database, settings)
        if log_state.slot is not None:
            position = health.active.position if health.active else log_state.offset
            lag = guardian.measure(database, settings.slot, position or 0)
            health.slot = _slot(settings, health, log_state, lag)
        health.open_gaps = gaps.open_gaps(database, settings.slot)
        health.backfills = runs.list_runs(database, settings.slot, SHOWN_RUNS)
        _judge_backfills(health, runs.worker(database, settings.slot))
        return log_state


def _judge_processes(settings: IngestSettings, health: Health, database: Database) -> None:
    told = max(
        (p for p in health.processes if p.last_error_at is not None),
        key=lambda p: p.last_error_at or health.at,
        default=None,
    )
    if told is not None:
        health.last_error, health.last_error_at = told.last_error, told.last_error_at
    leader = leader_of(database, settings.slot)
    active = health.active
    if active is not None:
        health.state = "streaming" if active.events + active.passed_over else "starting"
        if active.lag_ms is not None and active.lag_ms > LATE_MS:
            health.problems.append(
                f"capture is {active.lag_ms // 1000} s behind: look at its log and at what writes "
                "so much"
            )
    elif leader is not None and any(p.backend == leader.backend for p in health.processes):
        silent = next(p for p in health.processes if p.backend == leader.backend)
        health.state = "starting" if silent.alive else "silent"
        if not silent.alive:
            health.problems.append(
                f"capture ({silent.place}) holds its place but has not beaten for "
                f"{silent.beat_age_s:.0f} s: end it, or start a standby, which takes over"
            )
    else:
        health.state = "down"
        health.problems.append("no process captures: `./giovang logs capture` says why")


def _judge_backfills(health: Health, worker: int | None) -> None:
    health.problems += [
        f"gap {gap.id} is open: {gap.reason}; `./giovang capture backfill start --gap {gap.id}` "
        "closes it"
        for gap in health.open_gaps
    ]
    for run in health.backfills:
        if run.state == RunState.PAUSED or (run.state == RunState.OPEN and worker is None):
            why = f" ({run.reason})" if run.reason else ""
            health.problems.append(
                f"backfill {run.id} of {run.table_name} does not go on{why}: "
                "`./giovang capture backfill resume`"
            )


def _slot(settings: IngestSettings, health: Health, log_state: LogState, lag: Lag) -> Slot:
    held = Filling(lag.retained, lag.limit, _growth(health.processes, lag.retained))
    level = log_level(lag.wal_status, held)
    if level in {Level.WARNING, Level.CRITICAL}:
        share = f"{held.share:.0%} of" if held.share is not None else "more than"
        health.problems.append(
            f"slot {settings.slot} holds back {share} what max_slot_wal_keep_size allows: "
            "bring capture back before PostgreSQL gives the slot up"
        )
    return Slot(
        name=settings.slot,
        wal_status=lag.wal_status,
        offset=None if log_state.offset is None else lsn_text(log_state.offset),
        behind_bytes=lag.behind,
        retained_bytes=lag.retained,
        limit_bytes=lag.limit,
        level=level,
        forecast_s=held.forecast_s,
    )


def _growth(processes: Sequence[Process], retained: int) -> float | None:
    """Return bytes a second since a process last measured; the rows are the newest first."""
    before = next((p for p in processes if p.retained_bytes is not None), None)
    if before is None or before.retained_bytes is None or before.beat_age_s < ALIVE_S:
        return None
    return (retained - before.retained_bytes) / before.beat_age_s


async def _ask_nats(
    settings: IngestSettings, health: Health, log_state: LogState | None
) -> StreamState | None:
    client = await publisher.connect(settings.nats_url, "giovang capture status")
    try:
        jetstream = client.jetstream()
        info = await publisher.stream_info(jetstream, settings.stream)
        if info is None:
            if health.active is not None or log_state is None:
                health.problems.append(f"stream {settings.stream} is missing")
            return None
        try:
            found = await publisher.stream_state(jetstream, settings.stream)
        except ResumeRefused as error:
            health.problems.append(str(error))
            found = None
        differences: list[str] | None = None
        if log_state is not None:
            differences = _differences(settings, log_state, info.config)
        filling = stream_filling(info.state.bytes, info.config.max_bytes, None)
        sync, sync_problem = await asyncio.to_thread(_sync, settings)
        health.stream = StreamHealth(
            name=settings.stream,
            messages=info.state.messages,
            bytes=info.state.bytes,
            limit_bytes=filling.limit,
            level=filling.level,
            last_sequence=info.state.last_seq,
            version=_version(info.config),
            drift=differences,
            sync=sync,
            **await _last_event(jetstream, settings.stream, info.state.last_seq, found),
        )
    except (NatsError, TimeoutError) as error:
        raise PublishFailed(f"JetStream does not answer: {error!r}") from error
    finally:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(client.close(), publisher.CLOSE_TIMEOUT_S)
    _judge_stream(health, health.stream, filling, sync_problem)
    return found


async def _last_event(
    jetstream: JetStreamContext, name: str, sequence: int, found: StreamState | None
) -> dict[str, Any]:
    last: EventId | None = None if found is None else found.last_id
    if last is None:
        return {"last_event": None, "last_subject": None, "last_committed_at": None}
    message = await jetstream.get_msg(name, sequence)
    committed = (message.headers or {}).get(contract.HEADER_COMMITTED_AT)
    return {
        "last_event": str(last),
        "last_subject": message.subject,
        "last_committed_at": None if committed is None else datetime.fromisoformat(committed),
    }


def _differences(settings: IngestSettings, log_state: LogState, found: Any) -> list[str]:  # noqa: ANN401 - nats-py's own
    stated = stream.statements(settings, log_state, log_state.offset or 0)
    try:
        todo = stream.steps(stated, found)
    except ProvisionRefused as error:
        return [str(error)]
    return [f"version {step.version} is not applied yet: {step.reason}" for step in todo]


def _version(found: Any) -> int | None:  # noqa: ANN401 - nats-py's own
    try:
        return stream.stated_version(found)
    except ProvisionRefused:
        return None


def _sync(settings: IngestSettings) -> tuple[str, str | None]:
    """Return what is known of when the server syncs to disk, and what is wrong with it."""
    if settings.nats_monitoring_url is None:
        return "not known: GIOVANG_INGEST_NATS_MONITORING_URL is not set", None
    url = settings.nats_monitoring_url.rstrip("/") + "/jsz?config=true"
    if not url.startswith(("http://", "https://")):
        return f"not known: {url} is no HTTP address", None
    try:
        with urllib.request.urlopen(url, timeout=MONITORING_TIMEOUT_S) as answer:  # noqa: S310
            server = orjson.loads(answer.read(1024**2))["config"]
    except (OSError, urllib.error.URLError, ValueError, KeyError) as error:
        return f"not known: the server's monitoring does not answer ({_one_line(error)})", None
    problem = stream.sync_drift(settings.replicas, server)
    return problem or "as stated", problem


def _judge_stream(
    health: Health, found: StreamHealth, filling: Filling, sync_problem: str | None
) -> None:
    health.problems += found.drift or []
    if sync_problem is not None:
        health.problems.append(sync_problem)
    if found.level is not Level.OK:
        health.problems.append(
            f"stream {found.name} is {filling.share or 0:.0%} full and then refuses changes: raise "
            "GIOVANG_INGEST_STREAM_MAX_BYTES and run `./giovang capture provision`"
        )


def _judge_resume(
    settings: IngestSettings, health: Health, log_state: LogState, found: StreamState | None
) -> None:
    """Say why the next capture process would refuse to start, where it would."""
    try:
        resume_from(settings.slot, log_state, found)
    except ResumeRefused as error:
        health.problems.append(str(error))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
