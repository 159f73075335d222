"""One connection to NATS: requests with deadlines, and word of every reconnect.

A request that meets a restarting server is repeated until its deadline, then fails as
ServerUnavailableError; answers that no waiting can mend (a missing stream, a refused
compare-and-set) are raised at once. Only idempotent requests go through `retrying`.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

from nats.aio.client import Client
from nats.errors import ConnectionClosedError, NoRespondersError
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import JetStreamContext
from nats.js.errors import (
    APIError,
    NoStreamResponseError,
    NotFoundError,
    ServerError,
    ServiceUnavailableError,
)
from yarl import URL

from streams.transport.errors import ServerUnavailableError

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 5.0
RECONNECT_WAIT_S = 0.25
RETRY_WAIT_S = 0.2
CONNECT_DEADLINE_S = 30.0

WRONG_LAST_SEQUENCE = 10071
STREAM_NOT_FOUND = 10059
NO_MESSAGE_FOUND = 10037

TRANSIENT = (
    ServiceUnavailableError,
    ServerError,
    NoStreamResponseError,
    NoRespondersError,
    NatsTimeoutError,
    ConnectionClosedError,
    asyncio.TimeoutError,
    ConnectionError,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stored:
    """A message read back from a stream: its sequence and payload."""

    sequence: int
    data: bytes


class FastHeaderClient(Client):  # type: ignore[misc]
    """The NATS client with its header parsing made cheap: it took 40 % of a reader's time.

    Gives what the client's own gives; should the client one day parse them elsewhere, this is
    merely unused.
    """

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        parsed: dict[str, str] = {}
        for line in raw.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            name = name.strip()
            if colon and name.isascii() and len(name.split()) <= 1:
                parsed[name.decode()] = value.strip().decode("utf-8", "replace")
        return parsed


class Connection:
    """A named NATS connection with JetStream, reconnecting for as long as the process lives."""

    def __init__(self, urls: list[URL], name: str) -> None:
        self._servers = [server_address(url) for url in urls]
        self._name = name
        self._client: Client | None = None
        self._jetstream: JetStreamContext | None = None
        self._on_reconnect: list[Callable[[], Awaitable[None]]] = []
        self._closing = False

    @property
    def client(self) -> Client:
        """The NATS client; RuntimeError before `open`."""
        if self._client is None:
            raise RuntimeError(f"connection {self._name!r} is not open")
        return self._client

    @property
    def jetstream(self) -> JetStreamContext:
        """The JetStream context; RuntimeError before `open`."""
        if self._jetstream is None:
            raise RuntimeError(f"connection {self._name!r} is not open")
        return self._jetstream

    @property
    def is_connected(self) -> bool:
        """True while the socket to a server is up."""
        return self._client is not None and self._client.is_connected

    def on_reconnect(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Have `callback` awaited after every reconnect, in order of registration."""
        self._on_reconnect.append(callback)

    async def open(self, deadline_s: float = CONNECT_DEADLINE_S) -> None:
        """Connect, waiting for a server that is just starting; then ServerUnavailableError."""
        if self._client is not None:
            return
        try:
            async with asyncio.timeout(deadline_s):
                client = FastHeaderClient()
                await client.connect(
                    servers=self._servers,
                    name=self._name,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=RECONNECT_WAIT_S,
                    ping_interval=5,
                    max_outstanding_pings=2,
                    error_cb=self._log_error,
                    disconnected_cb=self._log_disconnect,
                    reconnected_cb=self._reconnected,
                )
                self._client = client
        except TimeoutError as error:
            raise ServerUnavailableError("connect", deadline_s) from error
        self._jetstream = self._client.jetstream(timeout=REQUEST_TIMEOUT_S)

    async def close(self) -> None:
        """Close the connection; safe to call twice."""
        self._closing = True
        client, self._client, self._jetstream = self._client, None, None
        if client is not None and not client.is_closed:
            await client.close()

    async def retrying(
        self, what: str, request: Callable[[], Awaitable[T]], deadline_s: float = 15.0
    ) -> T:
        """Repeat an idempotent request over outages until `deadline_s` has passed."""
        give_up_at = monotonic() + deadline_s
        while True:
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    return await request()
            except TRANSIENT as error:
                if monotonic() >= give_up_at:
                    raise ServerUnavailableError(what, deadline_s) from error
                logger.info("%s: %s; trying again", what, type(error).__name__)
                await asyncio.sleep(RETRY_WAIT_S)

    async def last_message(self, stream: str, subject: str) -> Stored | None:
        """Read the last message on `subject` (wildcards allowed), or None."""
        return await self._stored(stream, {"last_by_subj": subject})

    async def next_message(self, stream: str, subject: str, sequence: int = 1) -> Stored | None:
        """Read the first message on `subject` at or after `sequence`, or None."""
        return await self._stored(stream, {"seq": sequence, "next_by_subj": subject})

    async def put_if(
        self, subject: str, payload: bytes, *, expected: int, ttl_s: float | None = None
    ) -> int | None:
        """Publish only if the subject's last sequence is `expected` (0: none).

        Returns the new sequence, or None when another writer was first. One attempt: after a
        timeout the outcome is unknown, and the caller must read before it decides.
        """
        headers = {"Nats-Expected-Last-Subject-Sequence": str(expected)}
        if ttl_s is not None:
            headers["Nats-TTL"] = f"{max(1, round(ttl_s))}s"
        try:
            ack = await self.jetstream.publish(subject, payload, headers=headers)
        except APIError as error:
            if error.err_code == WRONG_LAST_SEQUENCE:
                return None
            raise
        return int(ack.seq)

    async def _stored(self, stream: str, query: Mapping[str, Any]) -> Stored | None:
        jetstream = self.jetstream

        async def read() -> Stored | None:
            try:
                if "last_by_subj" in query:
                    found = await jetstream.get_last_msg(stream, query["last_by_subj"])
                else:
                    found = await jetstream.get_msg(
                        stream, seq=query["seq"], subject=query["next_by_subj"], next=True
                    )
            except NotFoundError as error:
                if error.err_code == NO_MESSAGE_FOUND:
                    return None
                raise
            return Stored(int(found.seq or 0), found.data or b"")

        return await self.retrying(f"read {stream}", read)

    async def _reconnected(self) -> None:
        logger.info("reconnected to NATS")
        for callback in self._on_reconnect:
            await callback()

    async def _log_error(self, error: Exception) -> None:
        if not isinstance(error, ConnectionRefusedError):
            logger.warning("NATS: %s: %s", type(error).__name__, error)

    async def _log_disconnect(self) -> None:
        if not self._closing:
            logger.warning("connection to NATS lost")


@asynccontextmanager
async def connected(url: str, name: str, deadline_s: float) -> AsyncIterator[Connection]:
    """Connect for the length of a block; ServerUnavailableError where nothing answers in time."""
    connection = Connection([URL(url)], name)
    try:
        await connection.open(deadline_s)
        yield connection
    finally:
        await connection.close()


def server_address(url: URL) -> str:
    """Return what the NATS client needs of a broker URL: scheme, credentials, host and port."""
    return str(url.with_path("").with_query(None).with_fragment(None))


def is_missing_stream(error: NatsError) -> bool:
    """Tell whether an error says that the stream does not exist."""
    return isinstance(error, NotFoundError) and error.err_code == STREAM_NOT_FOUND
