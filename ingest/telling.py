"""Work on backfills: put rows into the log in chunks, behind writers and behind capture.

Each chunk is true at its own place in commit order (api/migrations/sql/170_capture.sql says why),
so what reads the stream has nothing to reconcile. A run is finished only when the stream holds all
that it told. Writers come first: a chunk aims at holding rows for 0.1 s, is ended by PostgreSQL
after a second, and waits no longer than 0.2 s for what others hold. Where rows stay locked, capture
stays behind or the stream fills up, the run is paused and `BackfillStopped` says why.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import psycopg
from nats.js import JetStreamContext

from infra.telemetry import get_logger
from ingest import gaps, guardian, publisher, runs
from ingest.alive import Alive, Key
from ingest.errors import BackfillStopped
from ingest.runs import Chunk, Phase, Run, RunState
from ingest.settings import IngestSettings

TARGET_S: Final = 0.1
"""How long a chunk shall hold its rows."""
CHUNK_TIMEOUT_MS: Final = 1000
"""How long a chunk may hold its rows."""
LOCK_TIMEOUT_MS: Final = 200
"""Less than PostgreSQL's deadlock_timeout (1 s): a chunk steps back before anybody has to die."""
FIRST_CHUNK: Final = 250
LARGEST_CHUNK: Final = 5000
GONE_AT_ONCE: Final = 200
CLEAR_BYTES: Final = 64 * 1024**2
"""Size at which the table that rows pass through is emptied."""
FULL: Final = 0.8
"""Share of the stream's bytes beyond which a backfill leaves the room to changes."""
POLL_S: Final = 0.05
LOOK_S: Final = 0.25
BEAT_S: Final = 1.0
TELL_S: Final = 2.0
MIB: Final = 1024**2

_Answer = TypeVar("_Answer")

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a backfill puts up with: capture's lag in bytes, and waiting in seconds."""

    lag_bytes: int
    patience_s: float


class Pace:
    """Finds the size of a chunk, in rows, by how long the ones before took."""

    def __init__(self) -> None:
        self.rows = FIRST_CHUNK

    def took(self, seconds: float) -> None:
        """Learn from a chunk that was told."""
        if seconds < TARGET_S / 2:
            self.rows = min(LARGEST_CHUNK, self.rows * 2)
        elif seconds > TARGET_S:
            self.rows = max(1, int(self.rows * max(0.25, TARGET_S / seconds)))

    def refused(self) -> None:
        """Learn from a chunk that met a locked row or took too long."""
        self.rows = max(1, self.rows // 4)


def open_passage(settings: IngestSettings) -> guardian.Database:
    """Connect for telling: every chunk on its own, and ended by PostgreSQL when it takes long."""
    return psycopg.connect(
        settings.database_url.get_secret_value(),
        autocommit=True,
        connect_timeout=guardian.CONNECT_TIMEOUT_S,
        application_name=runs.worker_name(settings.slot),
        options=f"-c statement_timeout={CHUNK_TIMEOUT_MS} -c lock_timeout={LOCK_TIMEOUT_MS}",
    )


class Teller:
    """Works on the open runs of a slot, one after the other, until none is left.

    Of the two connections the second is one of `open_passage`; `tell` takes lines for a person.
    """

    def __init__(
        self,
        settings: IngestSettings,
        limits: Limits,
        connections: tuple[guardian.Database, guardian.Database],
        jetstream: JetStreamContext,
        tell: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._limits = limits
        self._database, self._passage = connections
        self._jetstream = jetstream
        self._tell = tell
        self._stopping = asyncio.Event()
        self._pace = Pace()
        self._passed_bytes = CLEAR_BYTES  # what a process before this one left is not known
        self._behind = 0
        self._looked_at = self._told_at = -TELL_S

    def stop(self) -> None:
        """Ask for an end after the chunk at hand; the run stays open."""
        self._stopping.set()

    async def work(self) -> None:
        """Finish every open run; raises `BackfillStopped` where one cannot go on."""
        while (run := runs.next_run(self._database, self._settings.slot)) is not None:
            try:
                await self._work_on(run)
            except BackfillStopped as stopped:
                if stopped.pauses:
                    self._move(run, RunState.PAUSED, str(stopped))
                raise
        await self._insist("rows pass through", lambda: runs.clear(self._passage))

    async def _work_on(self, run: Run) -> None:
        phase = run.phase
        if phase == Phase.ROWS:
            phase = await self._tell_rows(run)
        if phase == Phase.GONE:
            await self._tell_gone(run)
        await self._stream_holds_it()
        self._ours(run, runs.finish(self._database, run.id))
        log.info("backfill finished", run=run.id, table=run.table_name)
        self._tell(f"backfill {run.id} of {run.table_name} is finished")
        closed_by = f"backfill {run.id}"
        for gap in gaps.close_gaps(self._database, self._settings.slot, closed_by):
            log.info("gap closed", gap=gap, run=run.id)
            self._tell(f"gap {gap} is closed")

    async def _tell_rows(self, run: Run) -> str:
        rows, phase, begun = 0, run.phase, time.monotonic()
        while phase == Phase.ROWS:
            await self._follow_capture()
            if self._passed_bytes >= CLEAR_BYTES:
                await self._insist("rows pass through", lambda: runs.clear(self._passage))
                self._passed_bytes = 0
            chunk = await self._tell_chunk(run)
            self._passed_bytes += chunk.bytes
            rows, phase = rows + chunk.rows, chunk.phase
            rate = rows / max(0.001, time.monotonic() - begun)
            self._progress(run, run.rows + rows, rate, last=phase != Phase.ROWS)
        return phase

    async def _tell_chunk(self, run: Run) -> Chunk:
        took_s = 0.0

        def told() -> Chunk | None:
            nonlocal took_s
            begun = time.monotonic()
            chunk = runs.tell_rows(self._passage, run.id, self._pace.rows)
            took_s = time.monotonic() - begun
            return chunk

        chunk = await self._insist(f"rows of {run.table_name} are locked", told)
        self._pace.took(took_s)
        return self._ours(run, chunk)

    async def _tell_gone(self, run: Run) -> None:
        """Tell what the stream believes alive and the table no longer has."""
        key = runs.key_columns(self._database, run.table_name)
        told = part = 0
        parts = 1
        while part < parts:
            alive = Alive(self._jetstream, self._settings.stream, run, key)
            parts = parts if part else await alive.parts()
            await alive.read_on(await self._stream_holds_it(), part, parts)
            gone = alive.not_in(self._database)
            if gone:
                # What was deleted while we read is told by its own event, before this place.
                await alive.read_on(await self._stream_holds_it(), part, parts)
                gone = [row for row in gone if row in alive.sequences]
            for start in range(0, len(gone), GONE_AT_ONCE):
                told += await self._tell_images(run, alive, gone[start : start + GONE_AT_ONCE])
            part += 1
        self._ours(run, runs.gone_is_told(self._database, run.id))
        self._tell(f"backfill {run.id}, {run.table_name}: {told} rows are gone")

    async def _tell_images(self, run: Run, alive: Alive, gone: Sequence[Key]) -> int:
        await self._follow_capture()
        images = [await alive.image(key) for key in gone]
        chunk = await self._insist(
            f"table {run.table_name} is locked by its writers",
            lambda: runs.tell_gone(self._passage, run.id, images),
        )
        return self._ours(run, chunk).rows

    async def _insist(self, held_up: str, act: Callable[[], _Answer]) -> _Answer:
        """Act, again and again where locks are not to be had in time, but not for ever."""
        since = time.monotonic()
        while True:
            self._go_on()
            try:
                return act()
            except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled) as error:
                self._pace.refused()
                reason = held_up
                if isinstance(error, psycopg.errors.QueryCanceled):
                    reason = f"a chunk takes longer than {CHUNK_TIMEOUT_MS} ms"
                await self._wait(since, reason, error)

    async def _follow_capture(self) -> None:
        """Wait while capture lags; raise where the stream has no room for more than changes."""
        self._go_on()
        if time.monotonic() - self._looked_at < LOOK_S:
            return
        since = beaten_at = time.monotonic()
        while True:
            self._behind = await self._lag()
            self._looked_at = time.monotonic()
            if self._behind <= self._limits.lag_bytes:
                return
            if self._looked_at - beaten_at > BEAT_S:
                # Log that tells nothing published moves no event; a beat does.
                guardian.beat(self._database)
                beaten_at = self._looked_at
            await self._wait(since, f"capture is {self._behind / MIB:.1f} MiB behind; does it run?")

    async def _lag(self) -> int:
        stream = self._settings.stream
        info = await publisher.stream_info(self._jetstream, stream)
        state = await publisher.stream_state(self._jetstream, stream)
        if info is None or state is None:
            raise BackfillStopped(f"stream {stream} is missing")
        room = info.config.max_bytes or 0
        if room > 0 and info.state.bytes > FULL * room:
            raise BackfillStopped(
                f"stream {stream} is full to {100 * info.state.bytes / room:.0f} %, and the rest "
                "is for changes: give it more room (GIOVANG_INGEST_STREAM_MAX_BYTES)"
            )
        reached = state.last_id.position if state.last_id else state.origin or 0
        return max(0, runs.log_end(self._database) - reached)

    async def _stream_holds_it(self) -> int:
        """Wait until the stream holds all that is committed by now; return its last sequence."""
        target = runs.log_end(self._database)
        since, beaten_at = time.monotonic(), -BEAT_S
        while True:
            if time.monotonic() - beaten_at > BEAT_S:
                # An event's place is where the database transaction before it ended: so two.
                for _ in range(2):
                    guardian.beat(self._database)
                beaten_at = time.monotonic()
            state = await publisher.stream_state(self._jetstream, self._settings.stream)
            if state is not None and state.last_id and state.last_id.position >= target:
                return state.last_sequence
            await self._wait(since, "the stream does not hold all of it yet; does capture run?")

    async def _wait(self, since: float, reason: str, cause: BaseException | None = None) -> None:
        """Wait a moment, and say so; raise where it has been too long or an end is asked for."""
        waited_s = time.monotonic() - since
        if waited_s > self._limits.patience_s:
            raise BackfillStopped(f"{reason} ({waited_s:.0f} s)") from cause
        if waited_s > TELL_S:
            self._tell_seldom(f"waiting for {waited_s:.0f} s: {reason}")
        try:
            await asyncio.wait_for(self._stopping.wait(), POLL_S)
        except TimeoutError:
            return
        self._go_on()

    def _go_on(self) -> None:
        if self._stopping.is_set():
            raise BackfillStopped("stopped; the run stays open", pauses=False)

    def _ours(self, run: Run, chunk: Chunk | None) -> Chunk:
        """Return what was told; raise where the run is no longer ours to go on with."""
        if chunk is not None:
            return chunk
        if runs.overtaken(self._database, run.id):
            reason = "a gap was noted since it began, so what it told may be lost: start anew"
            self._move(run, RunState.CANCELLED, reason)
            raise BackfillStopped(f"backfill {run.id} is cancelled: {reason}", pauses=False)
        raise BackfillStopped(f"backfill {run.id} was paused or cancelled", pauses=False)

    def _move(self, run: Run, to: RunState, reason: str) -> None:
        runs.move(self._database, self._settings.slot, run.id, to, reason)
        log.warning("backfill stopped", run=run.id, table=run.table_name, state=to, reason=reason)

    def _progress(self, run: Run, rows: int, rate: float, *, last: bool) -> None:
        expected = max(run.estimate, rows)
        line = f"backfill {run.id}, {run.table_name}: {rows} of about {expected} rows, {rate:.0f}/s"
        if last:
            self._tell(f"backfill {run.id}, {run.table_name}: {rows} rows are told, {rate:.0f}/s")
        elif rate > 0:
            behind, left_s = self._behind / MIB, (expected - rows) / rate
            self._tell_seldom(f"{line}, capture {behind:.1f} MiB behind, about {left_s:.0f} s left")

    def _tell_seldom(self, line: str) -> None:
        if time.monotonic() - self._told_at >= TELL_S:
            self._told_at = time.monotonic()
            self._tell(line)
