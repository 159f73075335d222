"""Faust producer on JetStream: pipelined publishes, each with a future.

Messages reach a partition in the order of `send`, once each. When the connection breaks, or a
topic's stream stops acknowledging because its leader is gone, new messages wait; the oldest one
without an acknowledgement is sent again, alone, under the same message id, which the server
recognises; only once that is stored are those behind it sent again, in order. A message the server
refuses, or does not acknowledge within the deadline, fails its future with ProducerSendError.
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
from faust.types import TP, FutureMessage, RecordMetadata, TransportT
from mode import Service
from mode.utils.times import Seconds, want_seconds
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from streams.transport import names
from streams.transport.changes import Changes
from streams.transport.connection import STRANDED_AFTER_S, Connection
from streams.transport.errors import TransportError
from streams.transport.topics import Topics

IN_FLIGHT_LIMIT = 4000
STALLED_AFTER_S = 2.0
PROBE_EVERY_S = 0.5
DUPLICATE_IN_PROCESS = 10158
HEADER_FRAME_BYTES = len(b"NATS/1.0\r\n\r\n")


@dataclass(slots=True)
class _InFlight:
    """A message on its way: all that is needed to send it again."""

    tp: TP
    key: bytes | None
    is_placed: bool
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
        self.catalog = Topics(self.connection, transport.external, transport.changelogs())
        self.changes = Changes(self.app)
        self._in_flight: dict[int, _InFlight] = {}
        self._numbers = itertools.count(1)
        self._round_robin = itertools.count()
        self._run = uuid4().hex
        self._inbox = ""
        self._acknowledgements: Subscription | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._open_gate = asyncio.Event()
        self._acknowledged_at: dict[str, float] = {}
        # Topics in doubt, each with the number of the message that was sent again alone, or 0.
        self._probes: dict[str, int] = {}
        self._asked_for: set[str] = set()

    async def on_start(self) -> None:
        """Connect and listen for acknowledgements."""
        await super().on_start()
        self.connection.on_reconnect(self._doubt_everything)
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
        if shape.is_changelog:
            raise ProducerSendError(f"changelog {topic!r} is written by changing its table only")
        await self._wait_for_room()
        # Nothing is awaited from here to the message's place among those on their way: a topic that
        # lies elsewhere meanwhile moves it with them.
        shape = self.catalog.known(topic) or shape
        tp = TP(topic, self._partition(shape.partitions, key, partition))
        number = next(self._numbers)
        wire = names.encode_headers(key, value, timestamp, dict(headers) if headers else None) or {}
        wire["Nats-Msg-Id"] = f"{self._run}-{number}"
        self._refuse_too_large(tp, wire, value)
        now = monotonic()
        message = _InFlight(
            tp=tp,
            key=key,
            is_placed=partition is not None,
            subject=shape.subject(tp.partition, key),
            payload=value or b"",
            headers=wire,
            timestamp_s=timestamp or time(),
            future=self.loop.create_future(),
            started_at=now,
            sent_at=now,
        )
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

    def send_soon(self, fut: FutureMessage) -> None:
        """Publish in the background; a table's change waits for the commit of its event."""
        shape = self.catalog.known(fut.message.channel.get_topic_name())
        if shape is not None and shape.is_changelog:
            self._refuse_too_large(TP(shape.topic, fut.message.partition), {}, fut.message.value)
            self.changes.add(shape, fut)
        else:
            super().send_soon(fut)

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

    def _refuse_too_large(self, tp: TP, headers: Mapping[str, str], value: bytes | None) -> None:
        """Raise ProducerSendError for what the server would answer by ending the connection."""
        limit = self.connection.client.max_payload
        size = len(value or b"") + HEADER_FRAME_BYTES
        size += sum(len(name) + len(text.encode()) + 4 for name, text in headers.items())
        if size > limit:
            raise ProducerSendError(f"{tp}: {size} bytes are more than the server's {limit}")

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
        topic = message.tp.topic
        # No data means no responders.
        answer = json.loads(reply.data) if reply.data else {"error": {"code": 503}}
        error = answer.get("error")
        if error is not None and (
            error.get("code") == 503 or error.get("err_code") == DUPLICATE_IN_PROCESS
        ):
            self._doubt(topic)
            if error.get("code") == 503 and topic not in self._asked_for:
                self._asked_for.add(topic)
                self.add_future(self._place_anew(topic))
            return
        self._finished(number)
        self._acknowledged_at[topic] = monotonic()
        if self._probes.get(topic) == number:
            await self._send_the_rest(topic)
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

    async def _place_anew(self, topic: str) -> None:
        """Ask how a topic lies that nothing takes: with more partitions it has other subjects.

        What nobody took is not stored, so a key's messages move together, and in order.
        """
        try:
            shape = await self.catalog.learn(topic)
        except TransportError as error:
            self.log.info("not found where %r lies: %s", topic, error)
            return
        finally:
            self._asked_for.discard(topic)
        for message in self._in_flight.values():
            if message.tp.topic == topic:
                chosen = message.tp.partition if message.is_placed or message.key is None else None
                partition = self._partition(shape.partitions, message.key, chosen)
                message.tp = TP(topic, partition)
                message.subject = shape.subject(partition, message.key)

    def _finished(self, number: int) -> None:
        del self._in_flight[number]
        if len(self._in_flight) < IN_FLIGHT_LIMIT:
            self._room.set()

    def _doubt(self, topic: str) -> None:
        """Let no new message pass until the oldest one of `topic` is known to be stored."""
        self._open_gate.clear()
        self._probes.setdefault(topic, 0)

    async def _doubt_everything(self) -> None:
        """Begin anew on a new connection; what was sent on the old one may be lost."""
        self._open_gate.clear()
        self._probes = {message.tp.topic: 0 for message in self._in_flight.values()}
        await self._probe(monotonic())

    async def _probe(self, now: float) -> None:
        """Find topics that acknowledge nothing, and send the oldest message of each again."""
        oldest: dict[str, tuple[int, _InFlight]] = {}
        for number, message in self._in_flight.items():
            oldest.setdefault(message.tp.topic, (number, message))
        self._probes = {topic: sent for topic, sent in self._probes.items() if topic in oldest}
        for topic, (number, message) in oldest.items():
            if number not in self._in_flight:
                continue  # acknowledged while another was sent
            heard_at = max(message.sent_at, self._acknowledged_at.get(topic, 0.0))
            if topic not in self._probes and now - heard_at > STALLED_AFTER_S:
                self._doubt(topic)
            if topic in self._probes and (
                self._probes[topic] != number or now - message.sent_at > PROBE_EVERY_S
            ):
                self._probes[topic] = number
                await self._publish(number, message)
            waits_since = max(message.started_at, self._acknowledged_at.get(topic, 0.0))
            if topic in self._probes and now - waits_since > STRANDED_AFTER_S:
                await self.connection.leave_server(f"{topic!r} acknowledges nothing")
        if not self._probes:
            self._open_gate.set()

    async def _send_the_rest(self, topic: str) -> None:
        """Send again, in order, what lies behind a probe that was stored."""
        for number, message in list(self._in_flight.items()):
            if message.tp.topic == topic:
                await self._publish(number, message)
        self._probes.pop(topic, None)
        if not self._probes:
            self._open_gate.set()

    @Service.task  # type: ignore[untyped-decorator]
    async def _watch_in_flight(self) -> None:
        async for _ in self.itertimer(PROBE_EVERY_S / 2, name="in flight"):
            now = monotonic()
            for number, message in list(self._in_flight.items()):
                if now - message.started_at <= self.request_timeout:
                    break
                self._finished(number)
                if not message.future.done():
                    message.future.set_exception(
                        ProducerSendError(f"{message.tp}: no acknowledgement in time")
                    )
            if self.connection.is_connected:
                await self._probe(now)

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
