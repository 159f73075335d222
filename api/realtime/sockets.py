"""The two ways a connection is served: WebSocket and server-sent events, as plain ASGI.

Both send a watcher's beginning and then what its hub puts before it. A WebSocket keeps one waiting
coroutine and no task to write: a task comes with a message and goes when nothing waits, since most
sockets are silent most of the time. A peer that takes nothing is dropped: what waits for it is
bounded, and after its farewell it has a few seconds.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from fastapi import Request
from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response

from api.database import new_id
from api.errors import FieldError, GiovangError, InvalidRequest, NotFound
from api.payments.model import PaymentId
from api.realtime.hub import Watcher
from api.realtime.model import CHATTY, TRY_AGAIN, Message
from api.realtime.protocol import EXTENSION, LiveProtocol
from api.realtime.service import Live, Permit, charge_opening, live_of, permit
from api.web import problem_answer
from infra.telemetry import get_logger

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

HIGHEST_SEQ: Final = 2**53 - 1
_FAREWELL_S: Final = 5.0
_MESSAGES_TAKEN: Final = 10
_ROUTE: Final = "/api/v1/payments/{payment_id}/ws"
_SSE_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # A token is the permission, and no cookie is: any page may listen that has one.
    (b"access-control-allow-origin", b"*"),
]
_RETRY_MS: Final = 2000
_payment_id: TypeAdapter[str] = TypeAdapter(PaymentId)
_log = get_logger("api.access")


class LiveSocket:
    """The WebSockets of payments."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket, or answer its handshake with problem+json."""
        began = time.perf_counter()
        scope.setdefault("state", {})["request_id"] = new_id("req")
        try:
            leave, after = await _judge(_handshake(scope))
            live, socket = live_of(_handshake(scope)), _Socket(receive, send, _protocol(scope))
            with live.watching(leave, wake=socket.wake) as watcher:
                await socket.begin(live, watcher, after)
                await socket.listen()
            _tell(101, began)
        except GiovangError as refusal:
            await problem_answer(_handshake(scope), refusal)(scope, receive, send)
            _tell(refusal.status, began)


def _protocol(scope: Scope) -> LiveProtocol | None:
    found = scope.get("extensions", {}).get(EXTENSION)
    return found if isinstance(found, LiveProtocol) else None


def _handshake(scope: Scope) -> Request:
    """Return the HTTP request that a WebSocket begins with, to be judged as any other."""
    return Request({**scope, "type": "http", "method": "GET"})


async def _judge(request: Request) -> tuple[Permit, int | None]:
    payment_id, token, after = _asked(request)
    await charge_opening(request)
    return await permit(request, payment_id, token), after


def _tell(status: int, began: float) -> None:
    elapsed_ms = round((time.perf_counter() - began) * 1000, 1)
    _log.info("request", method="WS", route=_ROUTE, status=status, elapsed_ms=elapsed_ms)


def _asked(request: Request) -> tuple[str, str | None, int | None]:
    """Return payment, token and number that a handshake names; raises InvalidRequest, NotFound."""
    try:
        payment_id = _payment_id.validate_python(request.path_params["payment_id"])
    except ValidationError as problem:
        raise NotFound("no payment has this id") from problem
    query = request.query_params
    errors = [
        FieldError(detail="no such parameter here", pointer=f"/query/{name[:100]}")
        for name in sorted(set(query) - {"token", "after"})[:20]
    ]
    token, after = query.get("token"), query.get("after")
    if token is not None and not 1 <= len(token) <= 100:
        errors.append(FieldError(detail="1 to 100 characters", pointer="/query/token"))
    number = 0
    if after is not None:
        is_number = after.isascii() and after.isdigit() and len(after) <= 16
        number = int(after) if is_number else -1
        if not 0 <= number <= HIGHEST_SEQ:
            errors.append(FieldError(detail="the number of an event", pointer="/query/after"))
    if errors:
        raise InvalidRequest("this address does not take what it was given", errors=errors)
    return payment_id, token, None if after is None else number


class _Socket:
    """A WebSocket and its watcher."""

    __slots__ = (
        "_aborted",
        "_farewell",
        "_protocol",
        "_receive",
        "_send",
        "_serving",
        "_watcher",
        "_writing",
    )

    def __init__(self, receive: Receive, send: Send, protocol: LiveProtocol | None = None) -> None:
        self._protocol = protocol
        self._receive = receive
        self._send = send
        self._watcher: Watcher | None = None
        self._serving = asyncio.current_task()
        self._writing: asyncio.Task[None] | None = None
        self._farewell: asyncio.TimerHandle | None = None
        self._aborted = False

    async def begin(self, live: Live, watcher: Watcher, after: int | None) -> None:
        """Accept the socket and send the watcher's beginning.

        Raises what `join` raises as long as the socket is not accepted; closes it after that.
        """
        async with aclosing(live.hub.join(watcher, after)) as pages:
            first = await anext(pages, ())
            await self._send({"type": "websocket.accept"})
            try:
                await self._send_all(first)
                async for page in pages:
                    await self._send_all(page)
            except GiovangError:
                watcher.end(TRY_AGAIN)
            except (OSError, RuntimeError):
                return
        self._watcher = watcher
        self.wake()

    async def listen(self) -> None:
        """Return when the peer is gone, or was sent away."""
        began, taken = time.monotonic(), 0
        try:
            while (await self._receive())["type"] != "websocket.disconnect":
                taken += 1
                if taken > _MESSAGES_TAKEN + time.monotonic() - began and self._watcher:
                    self._watcher.end(CHATTY)
        except asyncio.CancelledError:
            if not self._aborted or self._serving is None or self._serving.uncancel():
                raise
        finally:
            if self._farewell is not None:
                self._farewell.cancel()
            if self._writing is not None:
                self._writing.cancel()

    def wake(self) -> None:
        """Write what waits, unless it is being written; called by the watcher."""
        if self._watcher is None:
            return
        protocol = self._protocol
        if protocol is not None and self._writing is None and self._watcher.farewell is None:
            while protocol.takes_more:
                message = self._watcher.take()
                if message is None:
                    return
                protocol.write_frame(message.frame)
        if self._watcher.farewell is not None and self._farewell is None:
            self._farewell = asyncio.get_running_loop().call_later(_FAREWELL_S, self._abort)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(self._watcher))

    async def _write(self, watcher: Watcher) -> None:
        try:
            while (message := watcher.take()) is not None:
                await self._send({"type": "websocket.send", "text": message.text})
            if watcher.farewell is not None:
                code, reason = watcher.farewell
                await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except (OSError, RuntimeError) as gone:
            # The peer left, or the server closes the socket itself: `listen` hears of it.
            _log.debug("live socket gone", problem=type(gone).__name__)
        finally:
            self._writing = None

    async def _send_all(self, messages: Sequence[Message]) -> None:
        for message in messages:
            await self._send({"type": "websocket.send", "text": message.text})

    def _abort(self) -> None:
        """End a socket whose peer does not even take its farewell."""
        if self._serving is not None:
            self._aborted = True
            self._serving.cancel()


class EventStream(Response):
    """Server-sent events of one payment, for as long as its reader stays."""

    media_type = "text/event-stream"

    def __init__(self, request: Request, leave: Permit, after: int | None) -> None:
        super().__init__()
        self._request = request
        self._leave = leave
        self._after = after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the beginning and then every message, until either side ends it."""
        live, something, is_answered = live_of(self._request), asyncio.Event(), False
        try:
            with live.watching(self._leave, wake=something.set) as watcher:
                async with aclosing(live.hub.join(watcher, self._after)) as pages:
                    first = await anext(pages, ())
                    start = {"type": "http.response.start", "status": 200}
                    await send({**start, "headers": list(_SSE_HEADERS)})
                    is_answered = True
                    await _send_part(send, b"retry: %d\n\n" % _RETRY_MS)
                    await self._send_page(send, first)
                    async for page in pages:
                        await self._send_page(send, page)
                await _serve(watcher, something, receive, send)
        except GiovangError as refusal:
            if is_answered:
                await _send_part(send, b"", more=False)
            else:
                await problem_answer(self._request, refusal)(scope, receive, send)

    @staticmethod
    async def _send_page(send: Send, page: Sequence[Message]) -> None:
        if page:
            await _send_part(send, b"".join(message.sse for message in page))


async def _serve(watcher: Watcher, something: asyncio.Event, receive: Receive, send: Send) -> None:
    """Send what comes until the reader leaves or the watcher is sent away."""

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    left = asyncio.create_task(leave())
    left.add_done_callback(lambda _: something.set())
    try:
        while not left.done():
            while (message := watcher.take()) is not None:
                await _send_part(send, message.sse)
            if watcher.farewell is not None:
                code, reason = watcher.farewell
                end = json.dumps({"type": "end", "code": code, "reason": reason})
                await _send_part(send, f"event: end\ndata: {end}\n\n".encode(), more=False)
                return
            await something.wait()
            something.clear()
    finally:
        left.cancel()


async def _send_part(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})
