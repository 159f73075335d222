"""The ASGI middleware around everything: id, rate limit, what a body may be, headers, access line.

A request gets its id, spends a token of its caller's bucket, and has its body read and judged
before any route sees it; what is refused here is answered here, as problem+json. The access line
holds no query, header or body. Every answer of the API says how much of its limit is left.
"""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, cast

import structlog
from fastapi import Request
from starlette.exceptions import HTTPException

from api import strict_json
from api.database import new_id
from api.errors import BodyTooLarge, GiovangError, NotAuthenticated, NotFound, UnsupportedMedia
from api.ratelimit import rate_headers
from api.security import KEY_PREFIXES, SessionSigner, api_key_digest
from api.web import (
    charge_address,
    limiter_of,
    presented_token,
    problem_answer,
    remember_session,
    settings_of,
    spend,
    spent,
)
from infra.telemetry import get_logger

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_API: Final = "/api/v1"
_BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_CLIENT_LEFT: Final = 499
_log = get_logger("api.access")


class _ClientLeft(Exception):  # noqa: N818 - not an error: there is nobody to answer
    """The client went away before its request was whole."""


class Gate:
    """The middleware; `max_body_bytes` is the longest body that any route reads."""

    def __init__(self, app: App, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        request_id = new_id("req")
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.bind_contextvars(request_id=request_id)
        status = 500

        async def signed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                    *rate_headers(spent(scope)),
                ]
            await send(message)

        try:
            if scope["path"].startswith(_API):
                await self._serve_api(scope, receive, signed_send)
            else:
                await self._app(scope, self._limited(receive), signed_send)
        except _ClientLeft:
            status = _CLIENT_LEFT
        finally:
            _log.info(
                "request",
                method=scope["method"],
                route=_route(scope),
                status=status,
                elapsed_ms=round((time.perf_counter() - began) * 1000, 1),
            )
            structlog.contextvars.unbind_contextvars("request_id")

    async def _serve_api(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        try:
            await _spend_of_caller(request)
            if scope["path"].endswith("/"):
                raise NotFound("nothing is served at this address; none ends with a slash")
            if scope["method"] not in _BODILESS:
                body = await self._body(request, receive)
                receive = _replayed(body, receive)
        except GiovangError as refusal:
            await problem_answer(request, refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _body(self, request: Request, receive: Receive) -> bytes:
        """Return the whole body; raises what is wrong with it, the length first."""
        announced = request.headers.get("content-length", "")
        if announced.isdecimal() and int(announced) > self._max_body_bytes:
            raise BodyTooLarge("no valid request is that long")
        parts: list[bytes] = []
        received, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _ClientLeft
            parts.append(message.get("body", b""))
            received += len(parts[-1])
            if received > self._max_body_bytes:
                raise BodyTooLarge("no valid request is that long")
            more = message.get("more_body", False)
        body = b"".join(parts)
        if body:
            media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if media_type != "application/json":
                raise UnsupportedMedia("send the header Content-Type: application/json")
            strict_json.check(body)
        return body

    def _limited(self, receive: Receive) -> Receive:
        """Return `receive` that stops at the longest body, for what is not of the API."""
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise HTTPException(BodyTooLarge.status)
            return message

        return limited


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body already read, and then what follows it."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _spend_of_caller(request: Request) -> None:
    """Take a token of whoever calls; raises TooManyRequests.

    A key is taken at its word, since its bucket is named by its digest; one that turns out unknown
    is charged to its address. A person is proved first, or they could empty another's bucket.
    """
    token = presented_token(request)
    bucket = None
    if token is not None and token.startswith(KEY_PREFIXES):
        bucket = f"key:{api_key_digest(token).hex()[:32]}"
    elif token is not None and token.count(".") == 2:
        signer = cast("SessionSigner", request.app.state.signer)
        try:
            session = signer.prove(token)
        except NotAuthenticated:
            bucket = None
        else:
            remember_session(request, session)
            bucket = f"person:{session.person_id}"
    if bucket is None:
        await charge_address(request)
        return
    per_minute = settings_of(request).rate_limit_per_minute
    spend(request, await limiter_of(request).take(bucket, per_minute=per_minute))


def _route(scope: Scope) -> str:
    """Return the template of the address rather than the address, which may name a payment."""
    route = scope.get("route")
    return str(getattr(route, "path", "unknown"))
