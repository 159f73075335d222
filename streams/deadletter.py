"""Dead letters: events that cannot be processed, kept with the reason instead of dropped.

A letter is the event as it was, byte for byte, with headers that say where it came from and why
it failed. It is durable before `send` returns; a stream that is full refuses letters, and with
them the acknowledgement of the event, so nothing vanishes. The same event sent twice within the
stream's deduplication window is kept once.
"""

from collections.abc import Mapping
from datetime import UTC, datetime

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError

from infra.telemetry import get_logger
from streams.contract import (
    DEADLETTER_STREAM,
    DEADLETTER_SUBJECTS,
    DeadLetterHeader,
    DeadLetterLimits,
)
from streams.transport import Connection

log = get_logger(__name__)

DEDUPLICATION_WINDOW_S = 3600.0
REASON_LIMIT = 500
STREAM_NAME_IN_USE = 10058


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

        async def add() -> None:
            try:
                await self._connection.jetstream.add_stream(wanted)
            except BadRequestError as error:
                if error.err_code != STREAM_NAME_IN_USE:
                    raise

        await self._connection.retrying("dead-letter stream", add)

    async def send(
        self,
        *,
        sequence: int,
        subject: str,
        headers: Mapping[str, bytes],
        payload: bytes | None,
        reason: str,
        attempt: int,
    ) -> None:
        """Store the event of `sequence` as a dead letter; returns when it is durable."""
        letter = {
            **{name: value.decode(errors="replace") for name, value in headers.items()},
            DeadLetterHeader.REASON.value: " ".join(reason.split())[:REASON_LIMIT],
            DeadLetterHeader.CONSUMER.value: self._consumer,
            DeadLetterHeader.STREAM.value: self._source_stream,
            DeadLetterHeader.SUBJECT.value: subject,
            DeadLetterHeader.SEQUENCE.value: str(sequence),
            DeadLetterHeader.ATTEMPT.value: str(attempt),
            DeadLetterHeader.FAILED_AT.value: datetime.now(UTC).isoformat(),
            "Nats-Msg-Id": f"{self._consumer}:{self._source_stream}:{sequence}",
        }
        await self._connection.retrying(
            "dead letter",
            lambda: self._connection.jetstream.publish(
                self._subject, payload or b"", headers=dict(letter)
            ),
        )
        self.sent += 1
        log.warning("event sent to the dead letters", sequence=sequence, subject=subject)
