"""The two doors of a troubled node: HTTP for JSON-RPC, and a WebSocket one port above it.

Notifications of the network are passed on missing, doubled or late, as the node's faults have it.
Bodies, sockets, waits and what waits to be sent are bounded; a socket ends when either side does.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import orjson
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed, WebSocketException
from websockets.frames import CloseCode

from infra.localnet.server import (
    BODY_DEADLINE_S,
    MAX_SOCKET_MESSAGE_BYTES,
    http_server,
    listen,
    read_body,
)
from infra.localnet.trouble_faults import Faults
from infra.localnet.trouble_node import TroubledNode

_LONGEST_SILENCE_S: Final = 30.0
_MOST_LATE: Final = 4096
_CONNECT_DEADLINE_S: Final = 5.0
_CLOSE_DEADLINE_S: Final = 2


@contextlib.asynccontextmanager
async def doors(
    host: str,
    port: int,
    node: TroubledNode,
    faults: Faults,
    upstream_ws: str,
    *,
    silence_s: float = _LONGEST_SILENCE_S,
) -> AsyncIterator[asyncio.Task[None]]:
    """Serve a node at `port` and `port` + 1; the task ends early only by a failure."""
    sockets = _Sockets(faults, upstream_ws)
    leaving = asyncio.Event()
    async with (
        http_server(host, port, _application(node, silence_s, leaving)) as serving,
        serve(
            sockets.handle,
            sock=listen(host, port + 1),
            max_size=MAX_SOCKET_MESSAGE_BYTES,
            compression=None,
            close_timeout=_CLOSE_DEADLINE_S,
        ),
    ):
        try:
            yield serving
        finally:
            # Who waits for an answer that never comes would hold up the end.
            leaving.set()


def _application(node: TroubledNode, silence_s: float, leaving: asyncio.Event) -> Starlette:
    async def answer(request: Request) -> Response:
        try:
            async with asyncio.timeout(BODY_DEADLINE_S):
                body = await read_body(request)
        except (ClientDisconnect, TimeoutError):
            return Response(status_code=400)
        if body is None:
            return PlainTextResponse("Request body too large", status_code=413)
        reply = await node.answer(body)
        if reply.body is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(silence_s):
                    await leaving.wait()
            return PlainTextResponse("no answer", status_code=504)
        if reply.delay_ms:
            await asyncio.sleep(reply.delay_ms / 1000)
        return Response(reply.body, reply.status, media_type="application/json")

    async def health(_request: Request) -> Response:
        return PlainTextResponse("ok")

    return Starlette(
        routes=[
            Route("/", answer, methods=["POST"]),
            Route("/health", health, methods=["GET"]),
        ]
    )


class _Sockets:
    """Passes messages between callers and the network's own WebSocket."""

    def __init__(self, faults: Faults, upstream_ws: str) -> None:
        self._faults = faults
        self._upstream_ws = upstream_ws

    async def handle(self, caller: ServerConnection) -> None:
        """Serve one socket until either side ends it."""
        try:
            async with (
                connect(
                    self._upstream_ws,
                    open_timeout=_CONNECT_DEADLINE_S,
                    close_timeout=_CLOSE_DEADLINE_S,
                    compression=None,
                ) as network,
                asyncio.TaskGroup() as tasks,
            ):
                tasks.create_task(self._ask(caller, network))
                await self._tell(network, caller, tasks)
                await caller.close(CloseCode.GOING_AWAY, "the network hung up")
        except* (ConnectionClosed, WebSocketException, OSError, TimeoutError):
            await caller.close(CloseCode.TRY_AGAIN_LATER, "the line is broken")

    @staticmethod
    async def _ask(caller: ServerConnection, network: ClientConnection) -> None:
        async for message in caller:
            await network.send(message)
        await network.close()

    async def _tell(
        self, network: ClientConnection, caller: ServerConnection, tasks: asyncio.TaskGroup
    ) -> None:
        late: set[asyncio.Task[None]] = set()
        async for message in network:
            if "method" not in orjson.loads(message):
                await caller.send(message)  # the answer to a subscription
                continue
            news = self._faults.of_news()
            for _ in range(news.copies):
                if news.delay_ms and len(late) < _MOST_LATE:
                    task = tasks.create_task(_tell_late(caller, message, news.delay_ms))
                    late.add(task)
                    task.add_done_callback(late.discard)
                else:
                    await caller.send(message)


async def _tell_late(caller: ServerConnection, message: str | bytes, delay_ms: int) -> None:
    await asyncio.sleep(delay_ms / 1000)
    with contextlib.suppress(ConnectionClosed):
        await caller.send(message)
