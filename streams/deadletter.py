"""Dead letters: events that cannot be processed, kept with the reason instead of dropped.

A letter is the event as it was, byte for byte, with headers that say where it came from and why
it failed. It is durable before `send` returns; a stream that is full refuses letters, and with
them the acknowledgement of the event, so nothing vanishes. The same event sent twice within the
stream's deduplication window is kept once.
"""

import traceback
from collections.abc import Iterable
from datetime import UTC, datetime

import orjson
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from infra.telemetry import get_logger
from streams.contract import (
    DEADLETTER_STREAM,
    DEADLETTER_SUBJECTS,
    DeadLetterHeader,
    DeadLetterLimits,
)
from streams.processor import LedgerMessage
from streams.rows import PoisonEventError
from streams.store import StoreError
from streams.transport import Connection

log = get_logger(__name__)

DEDUPLICATION_WINDOW_S = 3600.0
REASON_LIMIT = 500
TRACEBACK_LIMIT = 4000


class DeadLetters:
    """The dead letters of one consumer."""

    def __init__(
        self, connection: Connection, *, consumer: str, subject: str, source_stream: str
    ) -> None:
        self._connection = connection
        self._consumer = consumer
        self._subject = subject
        self._source_stream = source_stream
        self.sent = 0

    async def ensure(self, *, replicas: int = 1) -> None:
        """Create the dead-letter stream with its limits if it is not there."""
        limits = DeadLetterLimits()
        wanted = StreamConfig(
            name=DEADLETTER_STREAM,
            description="events that could not be processed, with the reason",
            subjects=[DEADLETTER_SUBJECTS],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            num_replicas=replicas,
            max_bytes=limits.max_bytes,
            max_msg_size=limits.max_message_bytes,
            duplicate_window=DEDUPLICATION_WINDOW_S,
        )
        await self._connection.ensure_stream("dead-letter stream", wanted)

    async def send(self, message: LedgerMessage, error: Exception, *, attempt: int) -> None:
        """Store an event as a dead letter; returns when it is durable."""
        letter = {
            **{name: value.decode(errors="replace") for name, value in _headers(message)},
            **failure_headers(error, attempt),
            DeadLetterHeader.CONSUMER.value: self._consumer,
            DeadLetterHeader.STREAM.value: self._source_stream,
            DeadLetterHeader.SUBJECT.value: message.subject,
            DeadLetterHeader.SEQUENCE.value: str(message.offset),
            "Nats-Msg-Id": f"{self._consumer}:{self._source_stream}:{message.offset}",
        }
        await self._connection.retrying(
            "dead letter",
            lambda: self._connection.jetstream.publish(
                self._subject, message.value or b"", headers=dict(letter)
            ),
        )
        self.sent += 1
        log.warning(
            "event sent to the dead letters", sequence=message.offset, subject=message.subject
        )


def failure_headers(error: Exception, attempt: int) -> dict[str, str]:
    """Return the headers that say why an event failed, at which attempt, when and where in code.

    A header is one line, so the traceback is JSON text; its end is kept, where the error is.
    """
    lines = "".join(traceback.format_exception(error))
    return {
        DeadLetterHeader.REASON.value: _reason(error),
        DeadLetterHeader.ATTEMPT.value: str(attempt),
        DeadLetterHeader.FAILED_AT.value: datetime.now(UTC).isoformat(),
        DeadLetterHeader.TRACEBACK.value: orjson.dumps(lines[-TRACEBACK_LIMIT:]).decode(),
    }


def _reason(error: Exception) -> str:
    """Return a sentence: our own errors are one already, of others the kind is half of it."""
    told = " ".join(str(error).split())
    own = isinstance(error, PoisonEventError | StoreError)
    return (told if own else f"{type(error).__name__}: {told}")[:REASON_LIMIT]


def _headers(message: LedgerMessage) -> Iterable[tuple[str, bytes]]:
    return (message.headers or {}).items()
