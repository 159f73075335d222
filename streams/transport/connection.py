"""One connection to NATS: requests with deadlines, and word of every reconnect.

A request that meets a restarting server is repeated until its deadline, then fails as
ServerUnavailableError; answers that no waiting can mend (a missing stream, a refused
compare-and-set, a wrong password or certificate) are raised at once. Only idempotent requests go
through `retrying`. Where several servers are named, one that has lost the others is left for them.
"""

import asyncio
import json
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, TypeVar

from faust.types.auth import CredentialsT
from faust.utils.urls import urllist
from nats.aio.client import Client
from nats.errors import ConnectionClosedError, NoRespondersError, SecureConnWantedError
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats.js.errors import (
    APIError,
    BadRequestError,
    NoStreamResponseError,
    NotFoundError,
    ServerError,
    ServiceUnavailableError,
)
from yarl import URL

from streams.transport.access import read_access
from streams.transport.errors import AccessRefusedError, ServerUnavailableError, TransportError

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 5.0
RECONNECT_WAIT_S = 0.25
RETRY_WAIT_S = 0.2
TTL_HEADER = "Nats-TTL"
CONNECT_DEADLINE_S = 30.0
PROBE_EVERY_S = 1.0
STRANDED_AFTER_S = 5.0

STREAM_NAME_IN_USE = 10058
WRONG_LAST_SEQUENCE = 10071
WRITE_IN_PROCESS = 10164  # of replicated streams: an earlier write of the subject is undecided
STREAM_NOT_FOUND = 10059
NO_MESSAGE_FOUND = 10037
NOT_DELETED = 10057  # with code 500, for whatever reason

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
    merely unused. And it tells no server its secrets in plain text when TLS was asked for, which
    the client does where the server offers none.
    """

    def _connect_command(self) -> bytes:
        if self._current_server.uri.scheme == "tls" and not self._server_info.get("tls_required"):
            raise SecureConnWantedError
        command: bytes = super()._connect_command()
        return command

    def drop_unsent(self) -> None:
        """Forget what was to be sent on a connection that is gone.

        The client would send it first on the next one, in front of what the old one lost.
        """
        self._pending.clear()
        self._pending_data_size = 0

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

    def __init__(self, urls: list[URL], name: str, credentials: CredentialsT | None = None) -> None:
        self._access = read_access(urls, credentials)
        self._name = name
        self._refusal: asyncio.Future[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._left_at = 0.0
        self._client: FastHeaderClient | None = None
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
        """Connect, waiting for a server that is just starting; then ServerUnavailableError.

        AccessRefusedError where a server refuses the client, or the client the server.
        """
        if self._client is not None:
            return
        client = FastHeaderClient()
        self._refusal = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(deadline_s):
                await _unless(self._refusal, self._connect(client))
        except BaseException as error:
            await client.close()
            if isinstance(error, TimeoutError):
                raise ServerUnavailableError("connect", deadline_s) from error
            raise
        finally:
            self._refusal = None
        self._client = client
        self._jetstream = client.jetstream(timeout=REQUEST_TIMEOUT_S)
        if len(self._access.servers) > 1:
            self._watch = asyncio.create_task(self._leave_stranded_servers(client))

    async def _connect(self, client: Client) -> None:
        await client.connect(
            **self._access.options(),
            name=self._name,
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT_S,
            ping_interval=5,
            max_outstanding_pings=2,
            error_cb=self._log_error,
            disconnected_cb=self._log_disconnect,
            reconnected_cb=self._reconnected,
        )

    async def close(self) -> None:
        """Close the connection; safe to call twice."""
        self._closing = True
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        client, self._client, self._jetstream = self._client, None, None
        if client is not None and not client.is_closed:
            await client.close()

    async def _leave_stranded_servers(self, client: Client) -> None:
        """Ask for an answer of JetStream now and then; go elsewhere when there is none."""
        answered_at = monotonic()
        while not client.is_closed:
            await asyncio.sleep(PROBE_EVERY_S)
            try:
                if client.is_connected:
                    await client.jetstream(timeout=PROBE_EVERY_S).account_info()
                answered_at = monotonic()
            except (*TRANSIENT, NatsError) as error:
                if monotonic() - answered_at > STRANDED_AFTER_S:
                    await self.leave_server(str(error))

    async def leave_server(self, reason: str) -> None:
        """Go to the next server, if there is one and this one was given some seconds.

        A server that a network split cut off from the others keeps its clients, and the client
        stays: it sees a connection in good health.
        """
        now = monotonic()
        if (
            self._client is not None
            and len(self._access.servers) > 1
            and now - self._left_at > STRANDED_AFTER_S
        ):
            self._left_at = now
            logger.warning("NATS does not serve (%s); going to the next server", reason)
            await self._client.force_reconnect()

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
                if isinstance(error, TimeoutError):
                    await self.leave_server(what)
                await asyncio.sleep(RETRY_WAIT_S)

    async def call(self, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Ask JetStream's API something that may be asked twice; return the whole answer.

        APIError where it refuses.
        """

        async def ask() -> dict[str, Any]:
            reply = await self.client.request(
                f"$JS.API.{name}", json.dumps(request).encode(), timeout=REQUEST_TIMEOUT_S
            )
            answer: dict[str, Any] = json.loads(reply.data)
            if "error" in answer:
                raise APIError.from_error(answer["error"])
            return answer

        return await self.retrying(name, ask)

    async def stream_document(self, stream: str, **request: object) -> dict[str, Any]:
        """Return all that the server says of a stream, its own time (`ts`) included."""
        return await self.call(f"STREAM.INFO.{stream}", request)

    async def ensure_stream(self, what: str, wanted: StreamConfig) -> None:
        """Create a stream; one of that name that is there already is left as it is."""

        async def add() -> None:
            try:
                await self.jetstream.add_stream(wanted)
            except BadRequestError as error:
                if error.err_code != STREAM_NAME_IN_USE:
                    raise

        await self.retrying(what, add)

    async def last_message(self, stream: str, subject: str) -> Stored | None:
        """Read the last message on `subject` (wildcards allowed), or None."""
        return await self._stored(stream, {"last_by_subj": subject})

    async def next_message(self, stream: str, subject: str, sequence: int = 1) -> Stored | None:
        """Read the first message on `subject` at or after `sequence`, or None."""
        return await self._stored(stream, {"seq": sequence, "next_by_subj": subject})

    async def delete(self, stream: str, sequence: int) -> None:
        """Delete a message; one that is gone already is no error."""

        async def delete() -> None:
            try:
                await self.jetstream.delete_msg(stream, sequence)
            except NotFoundError as error:
                if error.err_code != NO_MESSAGE_FOUND:
                    raise
            except ServerError as error:
                if error.err_code != NOT_DELETED or await self._holds(stream, sequence):
                    raise

        await self.retrying(f"delete a message of {stream}", delete)

    async def put_if(
        self, subject: str, payload: bytes, *, expected: int, ttl_s: float | None = None
    ) -> int | None:
        """Publish only if the subject's last sequence is `expected` (0: none).

        Returns the new sequence, or None when another writer was first. One attempt: after a
        timeout the outcome is unknown, and the caller must read before it decides.
        """
        headers = {"Nats-Expected-Last-Subject-Sequence": str(expected)}
        if ttl_s is not None:
            headers[TTL_HEADER] = f"{max(1, round(ttl_s))}s"
        try:
            ack = await self.jetstream.publish(subject, payload, headers=headers)
        except APIError as error:
            if error.err_code == WRONG_LAST_SEQUENCE:
                return None
            if error.err_code == WRITE_IN_PROCESS:
                raise NatsTimeoutError from error  # as unknown as after a timeout
            raise
        return int(ack.seq)

    async def _holds(self, stream: str, sequence: int) -> bool:
        try:
            await self.jetstream.get_msg(stream, seq=sequence)
        except NotFoundError as error:
            if error.err_code == NO_MESSAGE_FOUND:
                return False
            raise
        return True

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
            try:
                await callback()
            except TransportError as error:
                logger.warning("not done after the reconnection: %s", error)

    async def _log_error(self, error: Exception) -> None:
        reason = refusal_of(error)
        if reason and self._refusal is not None and not self._refusal.done():
            self._refusal.set_exception(AccessRefusedError(", ".join(self._access.servers), reason))
            return
        if not isinstance(error, ConnectionRefusedError):
            logger.warning("NATS: %s: %s", type(error).__name__, error)

    async def _log_disconnect(self) -> None:
        if self._client is not None:
            self._client.drop_unsent()
        if not self._closing:
            logger.warning("connection to NATS lost")


@asynccontextmanager
async def connected(url: str, name: str, deadline_s: float) -> AsyncIterator[Connection]:
    """Connect for the length of a block; ServerUnavailableError where nothing answers in time.

    `url` may name several servers, parted as Faust parts them, by `;` or `,`.
    """
    connection = Connection(urllist(url), name)
    try:
        await connection.open(deadline_s)
        yield connection
    finally:
        await connection.close()


async def _unless(refusal: asyncio.Future[None], work: Coroutine[Any, Any, None]) -> None:
    """Wait for `work`, or raise what `refusal` brings first."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait((task, refusal), return_when=asyncio.FIRST_COMPLETED)
        (refusal if refusal.done() else task).result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def refusal_of(error: Exception) -> str | None:
    """Say why server and client do not accept each other; None for any other error."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message}): check ca= of the URL"
    if isinstance(error, ssl.SSLError):
        return f"no TLS with it ({error.reason}): check cert= and key= of the URL"
    if isinstance(error, SecureConnWantedError):
        return "it offers no TLS: use nats:// without ca=, or turn TLS on in the server"
    if "authorization violation" in str(error).lower():
        return "it refuses the user, password, token or key: check those of the URL"
    return None


def is_missing_stream(error: NatsError) -> bool:
    """Tell whether an error says that the stream does not exist."""
    return isinstance(error, NotFoundError) and error.err_code == STREAM_NOT_FOUND
