"""The one writer of the ledger stream.

A batch is fenced by the sequence this publisher knows to be the last, and the next batch waits for
its acknowledgement. Many messages go out as one JetStream atomic batch, of which all is stored or
nothing. On a stream without replicas a few go out as a chain, which is sooner durable: each is
stored only right behind the one before it, so what is stored is the beginning of the chain. Two
publishers can therefore never interleave. Nothing is tried twice: after any refusal, silence or
lost connection the process ends, and the next one resumes from what the stream holds.
"""

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any, Final

import nats
import orjson
from nats.aio.client import Client
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import StreamInfo
from nats.js.errors import NotFoundError

from ingest import contract
from ingest.checkpoint import METADATA_ORIGIN, METADATA_SYSTEM, StreamState
from ingest.contract import EventId
from ingest.envelope import Message
from ingest.errors import Fenced, PublishFailed, ResumeRefused

MAX_BATCH_MESSAGES: Final = 1000
"""The server's limit for one atomic batch."""
MAX_BATCH_BYTES: Final = 8 * 1024**2
"""Payload bytes of one batch; the server holds a batch in memory until it is whole."""
CHAIN_MESSAGES: Final = 10
"""So many are sooner durable one by one, for about 0.4 ms each, than in an atomic batch, for which
the server makes a store of its own, in 5 to 7 ms, and removes it again. Never to a stream with
replicas: a chain that is refused halts it (seen of NATS 2.15)."""
CONNECT_TIMEOUT_S: Final = 10.0
ACK_TIMEOUT_S: Final = 15.0
CLOSE_TIMEOUT_S: Final = 2.0
_NOBODY_LISTENS: Final = "503"
_WRONG_LAST_SEQUENCE: Final = frozenset({10070, 10071})
_PENDING_BYTES: Final = 4 * MAX_BATCH_BYTES

HEADER_BATCH_ID: Final = "Nats-Batch-Id"
HEADER_BATCH_SEQUENCE: Final = "Nats-Batch-Sequence"
HEADER_BATCH_COMMIT: Final = "Nats-Batch-Commit"
HEADER_FENCE: Final = "Nats-Expected-Last-Sequence"
HEADER_LINK: Final = "Nats-Msg-Id"
HEADER_BEHIND: Final = "Nats-Expected-Last-Msg-Id"
_VERSION_LINE: Final = b"NATS/1.0\r\n"


async def connect(url: str, name: str) -> Client:
    """Connect once, without reconnecting later; `PublishFailed` where nothing answers in time."""

    async def quiet(_: Exception) -> None:
        """Leave the telling of a lost connection to the call that meets it."""

    try:
        return await asyncio.wait_for(
            nats.connect(
                url,
                name=name,
                allow_reconnect=False,
                connect_timeout=int(CONNECT_TIMEOUT_S),
                error_cb=quiet,
                pending_size=_PENDING_BYTES,
            ),
            CONNECT_TIMEOUT_S,
        )
    except (OSError, TimeoutError, NatsError) as error:
        why = str(error) or type(error).__name__
        raise PublishFailed(f"NATS does not answer: {why}") from error


async def stream_info(jetstream: JetStreamContext, stream: str) -> StreamInfo | None:
    """Return the stream's configuration and state, or None where it is missing."""
    try:
        return await jetstream.stream_info(stream)
    except NotFoundError:
        return None
    except (NatsError, TimeoutError) as error:
        raise PublishFailed(f"JetStream does not answer about stream {stream}: {error}") from error


async def stream_state(jetstream: JetStreamContext, stream: str) -> StreamState | None:
    """Read what the stream holds last, or None where the stream is missing."""
    info = await stream_info(jetstream, stream)
    if info is None:
        return None
    metadata = info.config.metadata or {}
    origin = metadata.get(METADATA_ORIGIN)
    last_id = None
    if info.state.messages:
        last_id = await _last_id(jetstream, stream, info.state.last_seq)
    return StreamState(
        last_sequence=info.state.last_seq,
        messages=info.state.messages,
        last_id=last_id,
        system=metadata.get(METADATA_SYSTEM),
        origin=None if origin is None else int(origin),
        replicas=info.config.num_replicas or 1,
    )


async def _last_id(jetstream: JetStreamContext, stream: str, sequence: int) -> EventId:
    try:
        message = await jetstream.get_msg(stream, sequence)
    except (NatsError, TimeoutError) as error:
        raise ResumeRefused(
            f"the stream's last event, sequence {sequence}, cannot be read: {error!r}"
        ) from error
    try:
        return EventId.parse((message.headers or {}).get(contract.HEADER_EVENT_ID, ""))
    except ValueError as error:
        raise ResumeRefused(f"the stream's last message {sequence} is not ours: {error}") from error


class BatchWindow:
    """Collects messages up to the limits of one batch."""

    def __init__(self, messages: int = MAX_BATCH_MESSAGES, size: int = MAX_BATCH_BYTES) -> None:
        self._limit = messages
        self._size = size
        self._messages: list[Message] = []
        self._bytes = 0

    def add(self, message: Message) -> list[Message] | None:
        """Add a message; return the batch before it when that one is full."""
        full = None
        if self._messages and (
            len(self._messages) >= self._limit or self._bytes + len(message.payload) > self._size
        ):
            full = self.take()
        self._messages.append(message)
        self._bytes += len(message.payload)
        return full

    def take(self) -> list[Message]:
        """Return what was collected and begin anew."""
        taken, self._messages, self._bytes = self._messages, [], 0
        return taken


def wire_form(
    messages: Sequence[Message],
    *,
    is_chain: bool,
    batch_id: str,
    fence: int,
    reply: str,
    max_payload: int,
) -> bytes:
    """Return a batch as the NATS protocol writes it: fenced by `fence`, answered to `reply`.

    The first message carries the fence. Of a chain every message asks for an answer, of an atomic
    batch (which one message never is) the first and the last. `PublishFailed` for a message larger
    than the server takes.
    """
    count = len(messages)
    answer = f" {reply} "
    wire: list[bytes] = []
    for number, message in enumerate(messages, 1):
        lines = ""
        if number == 1:
            lines = f"{HEADER_FENCE}: {fence}\r\n"
        elif is_chain:
            lines = f"{HEADER_BEHIND}: {batch_id}.{number - 1}\r\n"
        if not is_chain:
            lines += f"{HEADER_BATCH_ID}: {batch_id}\r\n{HEADER_BATCH_SEQUENCE}: {number}\r\n"
            if number == count:
                lines += f"{HEADER_BATCH_COMMIT}: 1\r\n"
        elif number < count:
            lines += f"{HEADER_LINK}: {batch_id}.{number}\r\n"
        size = len(_VERSION_LINE) + len(message.headers) + len(lines) + 2
        total = size + len(message.payload)
        if total > max_payload:
            raise PublishFailed(
                f"event {message.event_id} has {total} bytes, NATS takes {max_payload}"
            )
        asks = answer if is_chain or number in (1, count) else " "
        wire += (
            f"HPUB {message.subject}{asks}{size} {total}\r\n".encode(),
            _VERSION_LINE,
            message.headers,
            f"{lines}\r\n".encode(),
            message.payload,
            b"\r\n",
        )
    return b"".join(wire)


def read_ack(answer: bytes, *, stream: str, fence: int, count: int) -> int:
    """Return the stream sequence of a batch's last message from the server's answer.

    Raises `Fenced` or `PublishFailed` where the answer is a refusal or not about this batch.
    """
    try:
        document: dict[str, Any] = orjson.loads(answer)
        error = document.get("error")
        if error is not None:
            told = f"{error.get('description')}, code {error.get('err_code')}"
            if error.get("err_code") in _WRONG_LAST_SEQUENCE:
                raise Fenced(fence, told)
            raise PublishFailed(f"JetStream refused a batch of {count} events: {told}")
        sequence: int = document["seq"]
        stored: int = document.get("count", 1)
    except (orjson.JSONDecodeError, KeyError, AttributeError) as broken:
        raise PublishFailed("JetStream's acknowledgement cannot be read") from broken
    if document.get("stream") != stream or stored != count or sequence != fence + count:
        raise PublishFailed(
            f"JetStream acknowledged {stored} events up to sequence {sequence} of "
            f"{document.get('stream')}; {count} after {fence} of {stream} were sent"
        )
    return sequence


class LedgerPublisher:
    """Publishes batches, one in flight. Belongs to one event loop.

    `sequence` is that of the stream's last message as this publisher knows it: the fence.
    `replicas` is how many the stream has.
    """

    def __init__(self, client: Client, stream: str, sequence: int, replicas: int) -> None:
        self._client = client
        self._stream = stream
        self.sequence = sequence
        self._longest_chain = CHAIN_MESSAGES if replicas == 1 else 1
        self._inbox = client.new_inbox()
        self._answers: Subscription | None = None
        self._broken: PublishFailed | None = None

    async def open(self) -> None:
        """Subscribe to the server's answers."""
        self._answers = await self._client.subscribe(self._inbox)
        await self._client.flush(int(ACK_TIMEOUT_S))

    async def publish(self, messages: Sequence[Message]) -> None:
        """Store all messages in order, right after the last one; return once the server said so.

        After an error this publisher refuses to go on: how many are stored is then unknown.
        """
        if self._broken is not None:
            raise self._broken
        try:
            async with asyncio.timeout(ACK_TIMEOUT_S):
                self.sequence = await self._send(messages)
        except PublishFailed as error:
            self._broken = error
            raise
        except (NatsError, OSError, TimeoutError) as error:
            told = "no acknowledgement in time" if isinstance(error, TimeoutError) else repr(error)
            self._broken = PublishFailed(
                f"a batch of {len(messages)} events after sequence {self.sequence}: {told}"
            )
            raise self._broken from error

    async def _send(self, messages: Sequence[Message]) -> int:
        count = len(messages)
        is_chain = count <= self._longest_chain
        wire = wire_form(
            messages,
            is_chain=is_chain,
            batch_id=uuid.uuid4().hex,
            fence=self.sequence,
            reply=self._inbox,
            max_payload=self._client.max_payload,
        )
        # nats-py's `publish` takes one message at a time, which costs more than all the rest of
        # capture's Python together; a batch is one command, so it is handed over as one.
        await self._client._send_command(wire)  # noqa: SLF001
        await self._client.flush(int(ACK_TIMEOUT_S))
        if is_chain:
            last = self.sequence
            for _ in messages:
                last = read_ack(await self._answer(), stream=self._stream, fence=last, count=1)
            return last
        # The first message of an atomic batch is answered by an empty message, or by a refusal.
        opened = await self._answer()
        if opened:
            read_ack(opened, stream=self._stream, fence=self.sequence, count=count)
        answer = await self._answer()
        return read_ack(answer, stream=self._stream, fence=self.sequence, count=count)

    async def _answer(self) -> bytes:
        assert self._answers is not None, "open() comes first"  # noqa: S101
        answer = await self._answers.next_msg(ACK_TIMEOUT_S)
        if (answer.headers or {}).get("Status") == _NOBODY_LISTENS:
            raise PublishFailed(f"stream {self._stream} is gone: nothing takes its subjects")
        data: bytes = answer.data
        return data
