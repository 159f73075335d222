"""Entrypoint `python -m streams.app`: the Faust worker that fills the warehouse.

It serves until SIGTERM, then finishes the batch in hand, commits its offsets and exits 0. An
error it cannot wait out ends the process with a non-zero status, for the supervisor to restart;
whatever was not acknowledged is read again.
"""

import logging
from typing import Literal

import faust
from faust.types import TP, AppT, StreamT
from mode import ServiceT
from mode.supervisors import CrashingSupervisor

from infra.telemetry import configure_logging, get_logger
from streams.contract import (
    LEDGER_STREAM,
    LEDGER_TOPIC,
    WAREHOUSE_APP,
    WAREHOUSE_DEADLETTER_SUBJECT,
)
from streams.deadletter import DeadLetters
from streams.monitor import CommitMonitor
from streams.progress import Progress, Reporter
from streams.settings import StreamsSettings, WorkerSettings
from streams.store import Store
from streams.transport import Connection
from streams.warehouse import InterruptedBatchError, WarehouseProcessor, close

COMMIT_EVERY_S = 1.0
HEARTBEAT_S = 1.0
REQUEST_TIMEOUT_S = 30.0


def new_app(
    settings: WorkerSettings, app_id: str, *, begin: Literal["earliest", "latest"] = "earliest"
) -> AppT:
    """Return a Faust app on our transport: no Kafka, no web server, no leader topic.

    `begin` is where an app begins that has committed nothing yet: at the stream's first event, or
    at its next.
    """
    app = faust.App(
        app_id,
        broker=f"{settings.nats_url.get_secret_value()}/?topic.{LEDGER_TOPIC}={LEDGER_STREAM}",
        Stream="streams.transport:Stream",
        datadir=str(settings.state_dir),
        web_enabled=False,
        topic_disable_leader=True,
        topic_replication_factor=settings.replicas,
        broker_commit_interval=COMMIT_EVERY_S,
        broker_session_timeout=settings.lease_ms / 1000,
        broker_heartbeat_interval=HEARTBEAT_S,
        broker_request_timeout=REQUEST_TIMEOUT_S,
        consumer_auto_offset_reset=begin,
        stream_buffer_maxsize=4 * settings.batch_size,
        stream_recovery_delay=0.0,
        stream_wait_empty=True,
        worker_redirect_stdouts=False,
        cython_optimizations=True,
    )
    app.monitor = CommitMonitor()
    return app


def warehouse_worker(settings: StreamsSettings) -> faust.Worker:
    """Return the worker of the warehouse processor, ready to be run."""
    app = new_app(settings, WAREHOUSE_APP)
    progress = Progress()
    store = Store(settings.warehouse_url.get_secret_value())
    connection = Connection(app.transport.url, f"{WAREHOUSE_APP} dead letters")
    processor = WarehouseProcessor(
        store=store,
        deadletters=DeadLetters(
            connection,
            consumer=WAREHOUSE_APP,
            subject=WAREHOUSE_DEADLETTER_SUBJECT,
            source_stream=LEDGER_STREAM,
        ),
        progress=progress,
        pause=app.sleep,
        stopping=lambda: bool(app.should_stop),
    )
    _declare_agent(app, settings, processor, connection, store)
    return quiet_worker(app, Reporter(app, TP(LEDGER_TOPIC, 0), progress))


def _declare_agent(
    app: AppT,
    settings: StreamsSettings,
    processor: WarehouseProcessor,
    connection: Connection,
    store: Store,
) -> None:
    topic = app.topic(
        LEDGER_TOPIC,
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
    )
    window_s = settings.batch_window_ms / 1000

    @app.agent(topic, name="warehouse", supervisor_strategy=CrashingSupervisor)  # type: ignore[untyped-decorator]
    async def warehouse(stream: StreamT) -> None:
        await connection.open()
        await processor.deadletters.ensure(replicas=settings.replicas)
        async for events in stream.take_events(settings.batch_size, within=window_s):
            try:
                await processor.process([event.message for event in events])
            except InterruptedBatchError:
                return

    @app.on_before_shutdown.connect  # type: ignore[untyped-decorator]
    async def disconnect(*_: object, **__: object) -> None:
        await close(store)
        await connection.close()


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


def main() -> None:
    """Run the warehouse worker until it is told to stop."""
    configure_logging("warehouse")
    serve(warehouse_worker(StreamsSettings()))


if __name__ == "__main__":
    main()
