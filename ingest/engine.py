"""The capture process: every committed change of the ledger becomes one message on the stream.

`python -m ingest.engine` stands by while another process captures. When it leads, it starts where
slot, stored offset and stream agree, runs Debezium in this process, publishes what it hands over
and marks it as done only after JetStream acknowledged it. Whatever goes wrong, the process ends
with a reason in the log and a status other than 0; the next one passes over what the stream holds
already. SIGTERM ends it cleanly.
"""

import asyncio
import contextlib
import gc
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Final

import psycopg

from infra.telemetry import (
    configure_logging,
    get_logger,
    notify_alive,
    notify_ready,
    serve_metrics,
)
from ingest import debezium, guardian, publisher
from ingest.checkpoint import Done, Resume, check_slot, lsn_text, resume_from
from ingest.columns import published_columns, verify_tables
from ingest.envelope import EnvelopeWriter
from ingest.errors import EngineStopped, IngestError, MetricsRefused, ResumeRefused, SeatLost
from ingest.masking import NO_MASKS, masks
from ingest.metrics import CaptureMetrics
from ingest.publisher import LedgerPublisher
from ingest.pump import Pump
from ingest.report import Reporter
from ingest.settings import IngestSettings
from ingest.standby import Leader, Seat, Silence

SLOT_TIMEOUT_S: Final = 10.0
"""How long to wait for the slot of a capture process that has just died."""
BEAT_S: Final = 1.0
STANDBY_POLL_S: Final = 0.25
START_S: Final = 90.0
"""How long the engine may take until it hands over the first event, on a busy machine."""
STALL_S: Final = 30.0
STALL_HEARTBEATS: Final = 4
"""Silence of the engine, in seconds or heartbeats, after which it counts as dead."""
STOP_TIMEOUT_S: Final = 8.0
LEAVE_TIMEOUT_S: Final = 2.0
POLL_S: Final = 0.05
GC_THRESHOLD: Final = 50_000
"""New containers before Python looks for cycles; a batch makes thousands, and none of them."""
_EXPECTED: Final = (IngestError, psycopg.Error, ValueError)

log = get_logger(__name__)


class Capture:
    """One run of the capture process, from the first look at the database to the last message."""

    def __init__(self, settings: IngestSettings) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._polling = threading.Event()
        self._metrics = CaptureMetrics()
        self._standing_by = False
        self._masks = NO_MASKS

    def stop(self) -> None:
        """Ask for a clean end."""
        self._stopping.set()

    async def run(self) -> None:
        """Stand by, then capture until stopped; raises the reason for any other end."""
        with (
            self._served_metrics(),
            await asyncio.to_thread(guardian.open_database, self._settings) as database,
        ):
            seat = Seat(database, self._settings.slot)
            await asyncio.to_thread(seat.enter)
            failure: str | None = None
            try:
                await self._take_part(seat, database)
            except _EXPECTED as error:
                failure = ": ".join(map(one_line, filter(None, (error, error.__cause__))))[:500]
                raise
            finally:
                await _leave(seat, failure)

    async def _take_part(self, seat: Seat, database: guardian.Database) -> None:
        try:
            if await self._stand_by(seat):
                await self._lead(seat, database)
        except psycopg.errors.AdminShutdown as error:
            raise SeatLost(
                "PostgreSQL ended this process's session: another capture process took its place, "
                "or the server stops"
            ) from error

    @contextlib.contextmanager
    def _served_metrics(self) -> Iterator[None]:
        host, port = self._settings.metrics_host, self._settings.metrics_port
        with contextlib.ExitStack() as stack:
            if port:
                try:
                    stack.enter_context(serve_metrics(self._metrics, host=host, port=port))
                except OSError as error:
                    raise MetricsRefused(
                        f"metrics cannot be served on {host}:{port} ({error.strerror}): set "
                        "GIOVANG_INGEST_METRICS_PORT to a free port, or to 0"
                    ) from error
            yield

    async def _stand_by(self, seat: Seat) -> bool:
        """Wait until this process leads; False when its end was asked for before."""
        silence = Silence()
        while not self._stopping.is_set():
            if await asyncio.to_thread(seat.try_lead):
                return True
            looked_s = time.monotonic()
            leader = await asyncio.to_thread(seat.leader)
            if leader is not None:
                silent_s = silence.of(leader, looked_s)
                if silent_s > self._settings.silence_s:
                    log.warning("the leader is silent", leader=str(leader), silent_s=int(silent_s))
                    await asyncio.to_thread(seat.unseat, leader)
                    silence = Silence()
                else:
                    self._tell_standby(leader, alive=silence.beaten)
            await asyncio.to_thread(seat.beat)
            await self._sleep(STANDBY_POLL_S)
        return False

    def _tell_standby(self, leader: Leader, *, alive: bool) -> None:
        status = f"standby: {leader} captures"
        # Ready only beside a leader that lives: one that just died leaves its place in a moment.
        if alive and not self._standing_by:
            self._standing_by = True
            log.info("capture stands by", leader=str(leader))
            # The Java machine takes the longest to start, so it is there when it is needed.
            debezium.start_jvm(self._settings.heap_mb)
            notify_ready(status)
        notify_alive(status)

    async def _lead(self, seat: Seat, database: guardian.Database) -> None:
        if self._standing_by:
            log.info("capture takes over")
        client = await publisher.connect(self._settings.nats_url, "giovang capture")
        try:
            jetstream = client.jetstream()
            await self._wait_for_slot(seat, database)
            log_state = await asyncio.to_thread(guardian.log_state, database, self._settings)
            stream = await publisher.stream_state(jetstream, self._settings.stream)
            resume = resume_from(self._settings.slot, log_state, stream)
            columns = await asyncio.to_thread(
                published_columns, database, self._settings.publication
            )
            verify_tables(self._settings.publication, columns)
            self._masks = masks(self._settings.mask, self._settings.mask_key, columns)
            sender = LedgerPublisher(
                client, self._settings.stream, resume.sequence, resume.replicas
            )
            await sender.open()
            if not self._stopping.is_set():
                reporter = Reporter(
                    self._settings,
                    database,
                    jetstream,
                    seat,
                    self._metrics,
                    replicas=resume.replicas,
                )
                await self._capture(resume, sender, database, reporter)
        finally:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.close(), publisher.CLOSE_TIMEOUT_S)

    async def _wait_for_slot(self, seat: Seat, database: guardian.Database) -> None:
        deadline = time.monotonic() + SLOT_TIMEOUT_S
        while not self._stopping.is_set():
            slot = await asyncio.to_thread(guardian.slot_state, database, self._settings.slot)
            if slot is None or slot.active_pid is None:
                return
            if time.monotonic() > deadline:
                raise ResumeRefused(
                    f"another capture process holds replication slot {self._settings.slot} "
                    f"(PostgreSQL process {slot.active_pid})"
                )
            await asyncio.to_thread(seat.beat)
            await self._sleep(POLL_S)

    async def _capture(
        self,
        resume: Resume,
        sender: LedgerPublisher,
        database: guardian.Database,
        reporter: Reporter,
    ) -> None:
        log.info(
            "capture resumes",
            position=lsn_text(resume.position),
            sequence=resume.sequence,
            published=None if resume.published is None else str(resume.published),
        )
        unchanged = f"__giovang_unchanged_{secrets.token_hex(16)}"
        writer = EnvelopeWriter(unchanged, lambda: time.time_ns() // 1000, self._masks)

        def begins() -> None:
            # The slot is this process's by now, so nobody else moves it; but another one may have
            # had it since the look, and PostgreSQL leaves out what is before it without a word.
            slot = guardian.slot_state(database, self._settings.slot)
            check_slot(self._settings.slot, slot, resume.position)

        pump = Pump(resume, writer, sender, asyncio.get_running_loop(), begins)
        if not self._standing_by:
            debezium.start_jvm(self._settings.heap_mb)
        engine = debezium.DebeziumEngine(
            debezium.engine_properties(
                self._settings, unchanged, Done(resume.position, resume.sequence)
            ),
            pump,
            self._polling.set,
        )
        # Each collection of Java's brings on a full one of Python's; what is there to stay need not
        # be looked at again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        thread = threading.Thread(target=engine.run, name="debezium", daemon=True)
        thread.start()
        try:
            await self._watch(engine, thread, pump, database, reporter)
        finally:
            await self._stop_engine(engine, thread)
        log.info(
            "capture stopped",
            events=pump.progress.events,
            position=lsn_text(pump.progress.position),
        )

    async def _watch(
        self,
        engine: debezium.DebeziumEngine,
        thread: threading.Thread,
        pump: Pump,
        database: guardian.Database,
        reporter: Reporter,
    ) -> None:
        """Tell how capture stands, for as long as it truly works."""
        beaten = ready = False
        told_at = 0.0
        while not self._stopping.is_set():
            if not thread.is_alive() or engine.failure is not None:
                if isinstance(engine.failure, IngestError):
                    raise engine.failure
                raise EngineStopped("the engine ended by itself") from engine.failure
            done = pump.progress
            silent_s = time.monotonic() - done.heard_at
            patience_s = max(STALL_S, STALL_HEARTBEATS * self._settings.heartbeat_ms / 1000)
            if silent_s > (patience_s if ready else max(patience_s, START_S)):
                raise EngineStopped(f"the engine handed nothing over for {silent_s:.0f} s")
            if self._polling.is_set() and not beaten:
                # Ready means that a change made now came back through log, engine and stream.
                await asyncio.to_thread(guardian.beat, database)
                beaten = True
            now_ready = beaten and done.events + done.passed_over > 0
            if now_ready != ready or time.monotonic() - told_at >= BEAT_S:
                await reporter.tell(done, ready=now_ready, first=now_ready != ready)
                ready, told_at = now_ready, time.monotonic()
            await self._sleep(BEAT_S if ready else POLL_S)

    async def _sleep(self, seconds: float) -> None:
        """Wait, but no longer than until the end is asked for."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _stop_engine(self, engine: debezium.DebeziumEngine, thread: threading.Thread) -> None:
        deadline = time.monotonic() + STOP_TIMEOUT_S
        closing = threading.Thread(target=_close, args=(engine, thread, deadline), daemon=True)
        closing.start()
        # Not joined here: the loop has to go on for what is still in flight.
        await asyncio.to_thread(closing.join, STOP_TIMEOUT_S)
        if thread.is_alive():
            log.warning("the engine did not stop in time", timeout_s=STOP_TIMEOUT_S)


def _close(engine: debezium.DebeziumEngine, thread: threading.Thread, deadline: float) -> None:
    while not engine.close() and time.monotonic() < deadline:
        time.sleep(POLL_S)
    thread.join(max(0.0, deadline - time.monotonic()))


async def _leave(seat: Seat, failure: str | None) -> None:
    try:
        await asyncio.wait_for(asyncio.to_thread(seat.leave, failure), LEAVE_TIMEOUT_S)
    except (psycopg.Error, TimeoutError) as error:
        # What ended this process is in its log; only its row does not know.
        log.warning("the end is not written to capture.process", reason=one_line(error))


def one_line(error: BaseException) -> str:
    """Return an error's text as one line for a person."""
    return " ".join(str(error).split()) or type(error).__name__


async def _serve(settings: IngestSettings) -> None:
    capture = Capture(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, capture.stop)
    await capture.run()


def main() -> int:
    """Capture by the environment's settings; 0 after a clean stop, 1 with a reason in the log."""
    configure_logging("capture")
    try:
        asyncio.run(_serve(IngestSettings()))
    except _EXPECTED as error:
        cause = error.__cause__
        log.error(  # noqa: TRY400 - the reason is a sentence for a person
            "capture ended",
            reason=one_line(error),
            cause=None if cause is None else one_line(cause)[:500],
        )
        return 1
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Leaving by the interpreter's door would wait for Java threads that may never end.
    os._exit(status)
