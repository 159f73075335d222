"""How a processor becomes a process: a Faust worker on our transport with one agent.

It serves until SIGTERM, then finishes the batch in hand, commits its offsets and exits 0. An
error it cannot wait out ends the process with a non-zero status, for the supervisor to restart;
whatever was not acknowledged is read again.
"""

import logging
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import faust
from faust.types import TP, AppT, StreamT
from faust.utils.urls import urllist
from mode import ServiceT
from mode.supervisors import CrashingSupervisor
from yarl import URL

from infra.telemetry import get_logger
from streams.contract import LEDGER_STREAM, LEDGER_TOPIC
from streams.deadletter import DeadLetters
from streams.metrics import MetricsServer, ProcessorMetrics
from streams.monitor import CommitMonitor
from streams.processor import InterruptedBatchError, Processor, Surroundings
from streams.progress import Progress, Reporter
from streams.settings import WorkerSettings

COMMIT_EVERY_S = 1.0
HEARTBEAT_S = 1.0
REQUEST_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Reading:
    """How a processor reads the ledger's stream.

    `begin` is where an app begins that has committed nothing yet: at the stream's first event, or
    at its next. A batch is whatever arrives within `window_s` seconds; with 0 nothing waits for
    company.
    """

    app_id: str
    agent: str
    deadletter_subject: str
    begin: Literal["earliest", "latest"] = "earliest"
    window_s: float = 0.0


def processor_worker(
    settings: WorkerSettings, reading: Reading, make: Callable[[Surroundings], Processor]
) -> faust.Worker:
    """Return the worker of one processor, ready to be run."""
    app = _new_app(settings, reading)
    progress = Progress()
    connection = app.transport.connect(f"{reading.app_id} dead letters")
    deadletters = DeadLetters(
        connection,
        consumer=reading.app_id,
        subject=reading.deadletter_subject,
        source_stream=LEDGER_STREAM,
    )
    processor = make(
        Surroundings(
            deadletters=deadletters,
            progress=progress,
            pause=app.sleep,
            stopping=lambda: bool(app.should_stop),
            table=partial(_new_table, app),
            connect=app.transport.connect,
        )
    )
    topic = app.topic(
        LEDGER_TOPIC,
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
    )

    @app.agent(topic, name=reading.agent, supervisor_strategy=CrashingSupervisor)  # type: ignore[untyped-decorator]
    async def agent(stream: StreamT) -> None:
        await connection.open()
        await deadletters.ensure(replicas=settings.replicas)
        async for events in stream.take_events(settings.batch_size, within=reading.window_s):
            try:
                await processor.process([event.message for event in events])
            except InterruptedBatchError:
                return

    @app.on_before_shutdown.connect  # type: ignore[untyped-decorator]
    async def disconnect(*_: object, **__: object) -> None:
        await processor.close()
        await connection.close()

    return quiet_worker(
        app,
        Reporter(app, TP(LEDGER_TOPIC, 0), progress, reading.deadletter_subject),
        MetricsServer(ProcessorMetrics(reading.app_id, progress), settings),
    )


def _new_app(settings: WorkerSettings, reading: Reading) -> AppT:
    """Return a Faust app on our transport: no Kafka, no web server, no leader topic."""
    app = faust.App(
        reading.app_id,
        broker=_broker_urls(settings.nats_url.get_secret_value()),
        Stream="streams.transport:Stream",
        datadir=str(settings.state_dir),
        web_enabled=False,
        topic_disable_leader=True,
        topic_replication_factor=settings.replicas,
        broker_commit_interval=COMMIT_EVERY_S,
        broker_session_timeout=settings.lease_ms / 1000,
        broker_heartbeat_interval=HEARTBEAT_S,
        broker_request_timeout=REQUEST_TIMEOUT_S,
        consumer_auto_offset_reset=reading.begin,
        stream_buffer_maxsize=4 * settings.batch_size,
        stream_recovery_delay=0.0,
        stream_wait_empty=True,
        worker_redirect_stdouts=False,
        cython_optimizations=True,
    )
    app.monitor = CommitMonitor()
    return app


def _broker_urls(setting: str) -> list[URL]:
    """Return the servers of the setting with all it says of them, and the stream of the topic."""
    first, *others = urllist(setting)
    return [first.update_query({f"topic.{LEDGER_TOPIC}": LEDGER_STREAM}), *others]


def _new_table(app: AppT, name: str) -> MutableMapping[bytes, bytes]:
    """Return a table of the app: bytes by bytes, kept in a changelog, one partition as the ledger.

    Faust takes the partition of an event in hand, and while a batch is, there is none: the
    partitioner says the same, with one partition.
    """
    table: MutableMapping[bytes, bytes] = app.Table(
        name, key_type=bytes, value_type=bytes, partitions=1, use_partitioner=True
    )
    return table


def quiet_worker(app: AppT, *services: ServiceT) -> faust.Worker:
    """Return a Faust worker that leaves logging and standard output alone."""
    worker = faust.Worker(app, *services, quiet=True, override_logging=False)
    worker.spinner = None
    return worker


def serve(worker: faust.Worker) -> None:
    """Run a worker until it is told to stop; raises SystemExit with its status."""
    for name in ("faust", "mode", "aiokafka"):
        logging.getLogger(name).setLevel(logging.WARNING)
    log = get_logger(__name__)
    try:
        worker.execute_from_commandline()
    except SystemExit as ending:
        log.info("stopped", status=ending.code or 0)
        raise
