"""HTTP plumbing that every slice's routes share: context of a request, limits, and error answers.

One middleware gives each request its id, refuses bodies over the limit, sets safe headers and
writes one access line, which holds no query, header or body. Errors become problem+json in
`install_error_handlers` and nowhere else.
"""

import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Annotated, Any, cast

import psycopg
import structlog
from fastapi import FastAPI, Header, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, StringConstraints
from starlette.exceptions import HTTPException

from api import idempotency
from api.database import Database, Identity, Unit, new_id
from api.errors import (
    PROBLEM_JSON,
    BodyTooLarge,
    FieldError,
    GiovangError,
    IdempotencyKeyMissing,
    InvalidRequest,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
)
from infra.telemetry import get_logger

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = get_logger("api.access")

# Text that people wrote: no control characters, which PostgreSQL, logs and terminals disagree on.
Text = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]*$")]


class Strict(BaseModel):
    """A request body: exact types, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class RequestContext:
    """The ASGI middleware around everything: id, size limit, safe headers, access line."""

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
        received = 0

        async def limited_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise HTTPException(BodyTooLarge.status)
            return message

        async def signed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        try:
            await self._app(scope, limited_receive, signed_send)
        finally:
            _log.info(
                "request",
                method=scope["method"],
                route=_route(scope),
                status=status,
                elapsed_ms=round((time.perf_counter() - began) * 1000, 1),
            )
            structlog.contextvars.unbind_contextvars("request_id")


def _route(scope: Scope) -> str:
    """Return the template of the address rather than the address, which may name a payment."""
    route = scope.get("route")
    return str(getattr(route, "path", "unknown"))


def request_id_of(request: Request) -> str:
    """Return the id of this request."""
    return cast("str", request.state.request_id)


def database_of(request: Request) -> Database:
    """Return the pool that this process serves requests with."""
    return cast("Database", request.app.state.database)


async def idempotency_key(
    idempotency_key: Annotated[
        str | None,
        Header(
            description="Your own name for this request, 1 to 255 visible ASCII characters. Sent "
            "again, the request has no second effect and gets the first answer.",
            examples=["order-1042-attempt-1"],
        ),
    ] = None,
) -> str:
    """Return the request's key, with or without the quotes of the IETF draft."""
    if idempotency_key is None:
        raise IdempotencyKeyMissing("send a header Idempotency-Key that is unique to this request")
    key = idempotency_key
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not 1 <= len(key) <= 255 or not all("!" <= character <= "~" for character in key):
        raise InvalidRequest(
            "the Idempotency-Key is not valid",
            errors=[
                FieldError(
                    detail="1 to 255 visible ASCII characters", pointer="/header/idempotency-key"
                )
            ],
        )
    return key


def json_answer(body: str, *, status: int = 200, replayed: bool = False) -> Response:
    """Answer with JSON that is already text, marked where it is the replay of an earlier one."""
    headers = {"Idempotent-Replayed": "true"} if replayed else None
    return Response(body, status_code=status, headers=headers, media_type="application/json")


async def answer_once(
    database: Database,
    identity: Identity,
    request: idempotency.Request,
    work: Callable[[Unit], Awaitable[BaseModel]],
    *,
    status: int,
) -> Response:
    """Do the work and keep its answer in one unit of work, or replay the answer already kept."""
    async with database.unit_of_work(identity) as unit:
        kept = await idempotency.claim(unit, request)
        if kept is not None:
            return json_answer(kept.body, status=kept.status, replayed=True)
        body = (await work(unit)).model_dump_json()
        await idempotency.keep(unit, request, status=status, body=body)
    return json_answer(body, status=status)


def problems(*errors: type[GiovangError]) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of these errors, by status."""
    described: dict[int | str, dict[str, Any]] = {}
    every: tuple[type[GiovangError], ...] = (*errors, InvalidRequest)
    for error in every:
        example = error("what to do about it").problem(
            instance="/api/v1/…", request_id="req_01jz8w5k6h7m9n0p2q3r4s5t6v"
        )
        answer = described.setdefault(
            error.status,
            {
                "description": error.title,
                "content": {
                    PROBLEM_JSON: {
                        "schema": {"$ref": "#/components/schemas/Problem"},
                        "examples": {},
                    }
                },
            },
        )
        answer["content"][PROBLEM_JSON]["examples"][error.code] = {"value": example}
    return described


def install_error_handlers(app: FastAPI) -> None:
    """Map every exception to its one answer."""
    app.add_exception_handler(GiovangError, _refusal)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _framework_refusal)
    app.add_exception_handler(Exception, _defect)


def problem_answer(request: Request, error: GiovangError) -> Response:
    """Return the problem+json of an error."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="giovang"'
    return JSONResponse(
        error.problem(instance=request.url.path, request_id=request_id_of(request)),
        status_code=error.status,
        headers=headers,
        media_type=PROBLEM_JSON,
    )


async def _refusal(request: Request, error: Exception) -> Response:
    return problem_answer(request, cast("GiovangError", error))


async def _invalid(request: Request, error: Exception) -> Response:
    found = cast("RequestValidationError", error).errors()
    if any(item["type"] == "json_invalid" for item in found):
        return problem_answer(request, MalformedRequest("the body is not valid JSON"))
    fields = [FieldError(detail=item["msg"], pointer=_pointer(item["loc"])) for item in found]
    noun = "field is" if len(fields) == 1 else "fields are"
    return problem_answer(request, InvalidRequest(f"{len(fields)} {noun} not valid", errors=fields))


def _pointer(location: tuple[str | int, ...]) -> str:
    parts = location[1:] if location and location[0] == "body" else location
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in parts)


async def _framework_refusal(request: Request, error: Exception) -> Response:
    status = cast("HTTPException", error).status_code
    known: dict[int, GiovangError] = {
        400: MalformedRequest("the body cannot be read"),
        404: NotFound("nothing is served at this address"),
        405: MethodNotAllowed("see /docs for what this address takes"),
        413: BodyTooLarge("no valid request is that long"),
    }
    return problem_answer(request, known.get(status) or GiovangError("see the server's log"))


async def _defect(request: Request, error: Exception) -> Response:
    # The frames and the kind of error, never its message: that may quote a row.
    _log.error(
        "unexpected error",
        error=type(error).__qualname__,
        constraint=error.diag.constraint_name if isinstance(error, psycopg.Error) else None,
        frames=traceback.format_tb(error.__traceback__)[-8:],
    )
    return problem_answer(request, GiovangError("the log names this request id"))
