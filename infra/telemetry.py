"""Structured logs, readiness and metrics for every Giovang process.

Logs are JSON lines on standard error; they never carry row data or secrets. Readiness speaks the
systemd notify protocol (sd_notify(3)), so the local supervisor and systemd understand the same
words. Where no supervisor listens, the notifications do nothing; a supervisor that vanished is not
an error of the service. Metrics are served to Prometheus over HTTP, by a thread of their own.
"""

import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator
from typing import Final

import orjson
import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.registry import Collector

METRICS_STOP_TIMEOUT_S: Final = 2.0


class _StandardError(structlog.BytesLogger):
    """Writes lines to standard error under a module's name."""

    def __init__(self, name: str) -> None:
        super().__init__(sys.stderr.buffer)
        self.name = name


def configure_logging(service: str, level: int = logging.INFO) -> None:
    """Send structlog and standard-library logs to standard error as JSON lines.

    `service` is the name that `giovang status` shows. Call once, from an entrypoint.
    """
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    # Our own lines go straight out: by way of the standard library a line took twice the time, and
    # the API writes one for every request.
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer(serializer=orjson.dumps)],
        logger_factory=_StandardError,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    structlog.contextvars.bind_contextvars(service=service)


def get_logger(name: str) -> structlog.typing.FilteringBoundLogger:
    """Return a structured logger; `name` is the module's name."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(name)
    return logger


def notify_ready(status: str = "ready") -> None:
    """Tell the supervisor that this process serves; `status` is one line for a person."""
    _notify(f"READY=1\nSTATUS={_one_line(status)}")


def notify_alive(status: str) -> None:
    """Tell the supervisor that the working loop still turns; call it at least every 5 s."""
    _notify(f"WATCHDOG=1\nSTATUS={_one_line(status)}")


@contextlib.contextmanager
def serve_metrics(collector: Collector, *, host: str, port: int) -> Iterator[None]:
    """Answer `GET /metrics` with what `collector` tells, and with this process's own use.

    Raises `OSError` where the address is taken.
    """
    registry = CollectorRegistry()
    registry.register(collector)
    ProcessCollector(registry=registry)
    server, thread = start_http_server(port, addr=host, registry=registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(METRICS_STOP_TIMEOUT_S)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]


def _notify(message: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # Linux abstract namespace, as sd_notify(3) has it
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.settimeout(0)
        try:
            channel.sendto(message.encode(), address)
        except (BlockingIOError, ConnectionRefusedError, FileNotFoundError):
            # A full or vanished supervisor must not stop a service that moves money; the
            # supervisor judges silence by itself.
            logging.getLogger(__name__).debug("notification not delivered")
