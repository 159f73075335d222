"""The two doors of the network: HTTP for JSON-RPC, and a WebSocket one port above it.

Both listen on the configured host, loopback by default. Bodies, connections, outboxes and waits are
bounded; a client that does not read is disconnected, one that sends too much is told so. A taken
port is a `StateError` that names it.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Final

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode

from infra.localnet.errors import Json, NetworkBrokenError, StateError
from infra.localnet.rpc import Dispatcher
from infra.localnet.subscriptions import Hub, SocketSubscriptions
from infra.telemetry import get_logger

MAX_BODY_BYTES: Final = 512 * 1024
MAX_SOCKET_MESSAGE_BYTES: Final = 64 * 1024
MAX_SOCKETS: Final = 256
MAX_OUTBOX: Final = 4096
_MAX_CONCURRENT_REQUESTS: Final = 512
_BACKLOG: Final = 1024
BODY_DEADLINE_S: Final = 30.0
_START_DEADLINE_S: Final = 10.0
_SEND_DEADLINE_S: Final = 10.0
_CLOSE_DEADLINE_S: Final = 2


class _Server(uvicorn.Server):
    """uvicorn, with the process's signals left to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave SIGTERM and SIGINT to the entrypoint, which stops both doors."""
        yield


def http_door(
    host: str, port: int, dispatcher: Dispatcher
) -> contextlib.AbstractAsyncContextManager[asyncio.Task[None]]:
    """Serve JSON-RPC over HTTP while the context lasts; the task ends early only by a failure."""
    return http_server(host, port, _application(dispatcher))


@contextlib.asynccontextmanager
async def http_server(
    host: str, port: int, application: Starlette
) -> AsyncIterator[asyncio.Task[None]]:
    """Serve an application while the context lasts; the task ends early only by a failure."""
    listener = listen(host, port)
    config = uvicorn.Config(
        application,
        lifespan="off",
        access_log=False,
        log_config=None,
        limit_concurrency=_MAX_CONCURRENT_REQUESTS,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=_CLOSE_DEADLINE_S,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="localnet-http")
    try:
        async with asyncio.timeout(_START_DEADLINE_S):
            while not server.started:
                if serving.done():
                    serving.result()
                    message = "the HTTP server ended while it started"
                    raise StateError(message)
                await asyncio.sleep(0.01)
        yield serving
    finally:
        server.should_exit = True
        await serving
        listener.close()


@contextlib.asynccontextmanager
async def websocket_door(host: str, port: int, hub: Hub) -> AsyncIterator[None]:
    """Serve subscriptions over WebSocket while the context lasts."""
    door = _WebsocketDoor(hub)
    listener = listen(host, port)
    server = await serve(
        door.handle,
        sock=listener,
        max_size=MAX_SOCKET_MESSAGE_BYTES,
        max_queue=64,
        compression=None,
        close_timeout=_CLOSE_DEADLINE_S,
    )
    try:
        yield
    finally:
        server.close(close_connections=True)
        await server.wait_closed()


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; a taken port is a StateError that names it."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Named as TCP, because asyncio switches Nagle's algorithm off only where it can tell.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        message = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise StateError(message) from error
    return listener


def _application(dispatcher: Dispatcher) -> Starlette:
    async def answer(request: Request) -> Response:
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":
            text = (
                "Supplied content type is not allowed. Content-Type: application/json is required"
            )
            return PlainTextResponse(text, status_code=415)
        try:
            async with asyncio.timeout(BODY_DEADLINE_S):
                body = await read_body(request)
        except ClientDisconnect:
            return Response(status_code=400)
        except TimeoutError:
            return PlainTextResponse("Request body took too long", status_code=408)
        if body is None:
            return PlainTextResponse(
                f"Request body too large; max {MAX_BODY_BYTES} bytes", status_code=413
            )
        try:
            content = dispatcher.answer(body)
        except NetworkBrokenError:
            return PlainTextResponse("the network is restarting", status_code=503)
        return Response(content or b"", media_type="application/json")

    async def health(_request: Request) -> Response:
        return PlainTextResponse("ok")

    return Starlette(
        routes=[
            Route("/", answer, methods=["POST"]),
            Route("/health", health, methods=["GET"]),
        ],
        middleware=[
            Middleware(
                CORSMiddleware,
                allow_origins=["*"],
                allow_methods=["POST", "GET"],
                allow_headers=["*"],
                max_age=86400,
            )
        ],
    )


async def read_body(request: Request) -> bytes | None:
    """Return the body of a request, or None where it is longer than any that is read."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            return None
    return bytes(body)


class _Outbox:
    """The bounded queue of one socket; overflowing it ends the socket."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue(MAX_OUTBOX)
        self.overflowed = asyncio.Event()

    def put(self, message: dict[str, Json]) -> None:
        self.put_raw(orjson.dumps(message))

    def put_raw(self, message: bytes) -> None:
        try:
            self.queue.put_nowait(message)
        except asyncio.QueueFull:
            self.overflowed.set()


class _WebsocketDoor:
    """Accepts sockets and moves their messages."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._sockets = 0
        self._log = get_logger(__name__)

    async def handle(self, connection: ServerConnection) -> None:
        """Serve one socket until it closes, falls behind, or the server stops."""
        if self._sockets >= MAX_SOCKETS:
            await connection.close(CloseCode.TRY_AGAIN_LATER, "too many connections")
            return
        self._sockets += 1
        outbox = _Outbox()
        subscriptions = SocketSubscriptions(self._hub, outbox)
        tasks = [
            asyncio.create_task(self._receive(connection, subscriptions, outbox)),
            asyncio.create_task(self._send(connection, outbox)),
            asyncio.create_task(outbox.overflowed.wait()),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            if outbox.overflowed.is_set():
                await connection.close(CloseCode.TRY_AGAIN_LATER, "the client does not keep up")
        except ConnectionClosed:
            self._log.debug("socket closed")
        except TimeoutError:
            connection.transport.abort()
        finally:
            self._sockets -= 1
            subscriptions.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(
        self, connection: ServerConnection, subscriptions: SocketSubscriptions, outbox: _Outbox
    ) -> None:
        dispatcher = Dispatcher(subscriptions.methods())
        async for message in connection:
            answer = dispatcher.answer(message)
            if answer is not None:
                outbox.put_raw(answer)
            subscriptions.settle()

    @staticmethod
    async def _send(connection: ServerConnection, outbox: _Outbox) -> None:
        while True:
            message = await outbox.queue.get()
            async with asyncio.timeout(_SEND_DEADLINE_S):
                await connection.send(message.decode())
