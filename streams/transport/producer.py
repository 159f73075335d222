"""Faust producer on JetStream: pipelined publishes, each with a future.

Messages reach a partition in the order of `send`, once each: what has no acknowledgement when the
connection breaks is sent again in order under the same message id, which the server recognises,
and new messages wait behind it. A message the server refuses, or does not acknowledge within the
deadline, fails its future with ProducerSendError.
"""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from time import monotonic, time
from typing import Any
from uuid import uuid4

from faust.exceptions import NotReady, ProducerSendError
from faust.transport import base
from faust.types import TP, RecordMetadata, TransportT
from mode import Service
from mode.utils.times import Seconds, want_seconds
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from streams.transport import names
from streams.transport.connection import Connection
from streams.transport.errors import TransportError
from streams.transport.topics import Topics

IN_FLIGHT_LIMIT = 4000
RESEND_AFTER_S = 3.0


@dataclass(slots=True)
class _InFlight:
    """A message on its way: all that is needed to send it again."""

    tp: TP
    subject: str
    payload: bytes
    headers: dict[str, str]
    timestamp_s: float
    future: asyncio.Future[RecordMetadata]
    started_at: float
    sent_at: float


class Producer(base.Producer):  # type: ignore[misc]
    """Publishes to the topics of an app."""

    mundane_level = "debug"

    def __init__(self, transport: TransportT, *args: object, **kwargs: object) -> None:
        super().__init__(transport, *args, **kwargs)
        self.connection: Connection = transport.connect(f"{self.app.conf.id} producer")
        self.catalog = Topics(self.connection, transport.external)
        self._in_flight: dict[int, _InFlight] = {}
        self._numbers = itertools.count(1)
        self._round_robin = itertools.count()
        self._run = uuid4().hex
        self._inbox = ""
        self._acknowledgements: Subscription | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._open_gate = asyncio.Event()

    async def on_start(self) -> None:
        """Connect and listen for acknowledgements."""
        await super().on_start()
        self.connection.on_reconnect(self._resend)
        await self.connection.open()
        self._inbox = self.connection.client.new_inbox()
        self._acknowledgements = await self.connection.client.subscribe(
            f"{self._inbox}.*", cb=self._acknowledged
        )
        self._open_gate.set()

    async def on_stop(self) -> None:
        """Wait for what is in flight, then disconnect."""
        try:
            if self._in_flight:
                await self._settle()
        finally:
            await super().on_stop()
            await self.connection.close()

    async def send(  # noqa: PLR0917 - Faust's signature
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Mapping[str, Any] | list[tuple[str, Any]] | None,
        *,
        transactional_id: str | None = None,  # noqa: ARG002 - Faust's signature
    ) -> Awaitable[RecordMetadata]:
        """Publish a message; the future resolves to its topic, partition and offset."""
        if self._acknowledgements is None:
            raise NotReady("the producer is not started")
        shape = await self.catalog.load(topic)
        if shape.external:
            raise ProducerSendError(f"topic {topic!r} is somebody else's stream: read only")
        tp = TP(topic, self._partition(shape.partitions, key, partition))
        number = next(self._numbers)
        wire = names.encode_headers(key, value, timestamp, dict(headers) if headers else None) or {}
        wire["Nats-Msg-Id"] = f"{self._run}-{number}"
        now = monotonic()
        message = _InFlight(
            tp=tp,
            subject=names.message_subject(topic, tp.partition, key, compacting=shape.compacting),
            payload=value or b"",
            headers=wire,
            timestamp_s=timestamp or time(),
            future=self.loop.create_future(),
            started_at=now,
            sent_at=now,
        )
        await self._wait_for_room()
        self._in_flight[number] = message
        if len(self._in_flight) >= IN_FLIGHT_LIMIT:
            self._room.clear()
        await self._publish(number, message)
        return message.future

    async def send_and_wait(  # noqa: PLR0917 - Faust's signature
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Mapping[str, Any] | list[tuple[str, Any]] | None,
        *,
        transactional_id: str | None = None,
    ) -> RecordMetadata:
        """Publish a message and wait until the server has stored it."""
        return await (
            await self.send(
                topic,
                key,
                value,
                partition,
                timestamp,
                headers,
                transactional_id=transactional_id,
            )
        )

    async def flush(self) -> None:
        """Wait until everything buffered and in flight is stored, or has failed."""
        await self.buffer.flush()
        await self._settle()

    async def _settle(self) -> None:
        pending = [message.future for message in self._in_flight.values()]
        if pending:
            await asyncio.wait(pending, timeout=self.request_timeout)

    def _partition(self, count: int, key: bytes | None, partition: int | None) -> int:
        if partition is not None:
            if not 0 <= partition < count:
                raise ProducerSendError(f"no partition {partition} among {count}")
            return partition
        return next(self._round_robin) % count if key is None else names.partition_for(key, count)

    async def _wait_for_room(self) -> None:
        """Hold new messages back while disconnected and while too many are on their way."""
        try:
            async with asyncio.timeout(self.request_timeout):
                while not (self._room.is_set() and self._gate_is_open()):
                    await self._room.wait()
                    await self._open_gate.wait()
        except TimeoutError as error:
            raise ProducerSendError("NATS took no message before the deadline") from error

    def _gate_is_open(self) -> bool:
        if self._open_gate.is_set() and not self.connection.is_connected:
            self._open_gate.clear()
        return self._open_gate.is_set()

    async def _publish(self, number: int, message: _InFlight) -> None:
        message.sent_at = monotonic()
        await self.connection.client.publish(
            message.subject,
            message.payload,
            reply=f"{self._inbox}.{number}",
            headers=message.headers,
        )

    async def _acknowledged(self, reply: Msg) -> None:
        number = int(reply.subject.rpartition(".")[2])
        message = self._in_flight.get(number)
        if message is None:
            return
        if not reply.data:
            return  # no responders: the stream is not back yet; sent again until the deadline
        answer = json.loads(reply.data)
        error = answer.get("error")
        if error is not None and error.get("code") == 503:
            return
        self._finished(number)
        if message.future.done():
            return
        if error is not None:
            message.future.set_exception(ProducerSendError(f"{message.tp}: {error}"))
            return
        message.future.set_result(
            RecordMetadata(
                topic=message.tp.topic,
                partition=message.tp.partition,
                topic_partition=message.tp,
                offset=int(answer["seq"]),
                timestamp=message.timestamp_s,
                timestamp_type=0,
            )
        )

    def _finished(self, number: int) -> None:
        del self._in_flight[number]
        if len(self._in_flight) < IN_FLIGHT_LIMIT:
            self._room.set()

    async def _resend(self) -> None:
        """Send again, in order, all that is unacknowledged; only then let new messages pass."""
        self._open_gate.clear()
        for number, message in list(self._in_flight.items()):
            await self._publish(number, message)
        self._open_gate.set()

    @Service.task  # type: ignore[untyped-decorator]
    async def _watch_in_flight(self) -> None:
        async for _ in self.itertimer(1.0, name="in flight"):
            now = monotonic()
            for number, message in list(self._in_flight.items()):
                if now - message.started_at > self.request_timeout:
                    self._finished(number)
                    if not message.future.done():
                        message.future.set_exception(
                            ProducerSendError(f"{message.tp}: no acknowledgement in time")
                        )
            oldest = next(iter(self._in_flight.values()), None)
            if (
                oldest is not None
                and self.connection.is_connected
                and now - oldest.sent_at > RESEND_AFTER_S
            ):
                await self._resend()

    async def create_topic(
        self,
        topic: str,
        partitions: int,
        replication: int,
        *,
        config: Mapping[str, Any] | None = None,
        timeout: Seconds = 30.0,  # noqa: ASYNC109 - Faust's signature
        retention: Seconds | None = None,
        compacting: bool | None = None,
        deleting: bool | None = None,  # noqa: ARG002 - Faust's signature
        ensure_created: bool = False,  # noqa: ARG002 - Faust's signature
    ) -> None:
        """Create the stream of a declared topic."""
        async with asyncio.timeout(want_seconds(timeout)):
            await self.catalog.create(
                topic,
                partitions=partitions,
                replicas=replication,
                retention_s=want_seconds(retention) if retention else None,
                compacting=bool(compacting),
                config=config,
            )

    def key_partition(self, topic: str, key: bytes) -> TP:
        """Return the partition a key goes to; NotReady when the topic is not loaded."""
        shape = self.catalog.known(topic)
        if shape is None:
            raise NotReady(f"topic {topic!r} is not loaded")
        return TP(topic, names.partition_for(key, shape.partitions))

    def supports_headers(self) -> bool:
        """Return True: NATS messages have headers."""
        return True

    async def begin_transaction(self, transactional_id: str) -> None:
        """Refuse: exactly-once processing is not there yet."""
        raise TransportError(f"{transactional_id}: processing_guarantee must be at_least_once")
