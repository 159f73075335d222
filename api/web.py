"""HTTP plumbing that every slice's routes share: what a request carries, and error answers.

What the application holds for all requests is reached by the functions here and nowhere else.
Errors become problem+json in `problem_answer` and nowhere else.
"""

import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from typing import Annotated, Any, cast, get_origin

import psycopg
from fastapi import FastAPI, Query, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, StringConstraints
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from api import idempotency
from api.database import Database, Identity, Unit
from api.errors import (
    PROBLEM_JSON,
    BodyTooLarge,
    FieldError,
    GiovangError,
    IdempotencyKeyMissing,
    InvalidRequest,
    MalformedRequest,
    MethodNotAllowed,
    NotAuthenticated,
    NotFound,
)
from api.ratelimit import RateLimiter, Taken, address_bucket
from api.security import PayerLinks, SessionClaims
from api.settings import ApiSettings
from api.wording import DONG, sentence, worded, written_out
from infra.telemetry import get_logger

_log = get_logger(__name__)

# Text that people wrote: no control characters, which PostgreSQL, logs and terminals disagree on.
PLAIN = worded(r"^[^\x00-\x1f\x7f]*$", "text without line breaks and other control characters")
Text = Annotated[str, StringConstraints(pattern=PLAIN)]
# Thirteen digits fit numeric(15, 2) in the warehouse.
DongAmount = Annotated[
    str,
    StringConstraints(pattern=worded(r"^[1-9][0-9]{0,12}$", f"whole dong, more than 0, {DONG}")),
]
Country = Annotated[
    str,
    StringConstraints(pattern=worded(r"^[A-Z]{2}$", 'a country of ISO 3166, such as "VN"')),
]
Moment = Annotated[
    AwareDatetime | None,
    BeforeValidator(written_out),
    Query(examples=["2026-01-31T00:00:00+07:00"]),
]


class Strict(BaseModel):
    """A request body: exact types, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


def request_id_of(request: Request) -> str:
    """Return the id of this request."""
    return cast("str", request.state.request_id)


def settings_of(request: Request) -> ApiSettings:
    """Return what the process was told by its environment."""
    return cast("ApiSettings", request.app.state.settings)


def links_of(request: Request) -> PayerLinks:
    """Return who signs the codes and tokens of payers."""
    return PayerLinks(settings_of(request).sealing_key.get_secret_value())


def limiter_of(request: Request) -> RateLimiter:
    """Return the process's rate limiter."""
    return cast("RateLimiter", request.app.state.limiter)


def presented_token(request: Request) -> str | None:
    """Return what the request's Authorization header bears, or None."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def bearer_of(request: Request) -> str:
    """Return what the request's Authorization header bears; raises NotAuthenticated."""
    token = presented_token(request)
    if token is None:
        raise NotAuthenticated("send the header Authorization: Bearer and a key or a session")
    return token


def remember_session(request: Request, session: SessionClaims) -> None:
    """Keep what the request's token says, once it is proved to be ours."""
    request.state.session = session


def proved_session(request: Request) -> SessionClaims | None:
    """Return what the request's token says, where it was proved already."""
    return cast("SessionClaims | None", getattr(request.state, "session", None))


def spent(scope: MutableMapping[str, Any]) -> Sequence[Taken]:
    """Return which buckets the request has spent tokens of."""
    return cast("Sequence[Taken]", scope["state"].get("spent", ()))


def spend(request: Request, taken: Taken) -> None:
    """Note a token for the answer's headers; raises TooManyRequests where there was none."""
    others = [one for one in spent(request.scope) if one.policy != taken.policy]
    request.state.spent = [*others, taken]
    taken.raise_if_refused()


def client_bucket(request: Request) -> str:
    """Return the bucket of the request's client address."""
    return address_bucket("" if request.client is None else request.client.host)


async def charge_address(request: Request) -> None:
    """Spend a token of the client's address, for a caller who is not who they said."""
    per_minute = settings_of(request).rate_limit_per_minute
    spend(request, await limiter_of(request).take(client_bucket(request), per_minute=per_minute))


def database_of(request: Request) -> Database:
    """Return the pool that this process serves requests with."""
    return cast("Database", request.app.state.database)


def operator_of(request: Request) -> Database:
    """Return the pool that moves money and serves admins; its role may write entries."""
    return cast("Database", request.app.state.operator)


async def only_known_queries(request: Request) -> None:
    """Refuse what the address does not know, and what is said twice where once is heard.

    A filter misspelt must not widen what is counted, nor one of two be passed over.
    """
    if not request.scope["query_string"]:
        return
    known = dict(_queries(request.scope["route"].dependant))
    given = Counter(name for name, _ in request.query_params.multi_items())
    wrong = {
        name: "give this parameter once" if name in known else "no such parameter here"
        for name, times in given.items()
        if name not in known or (times > 1 and not known[name])
    }
    if wrong:
        raise InvalidRequest(
            "this address does not take every parameter it was given",
            errors=[
                FieldError(detail=detail, pointer=f"/query/{name[:100]}")
                for name, detail in sorted(wrong.items())[:20]
            ],
        )


def _queries(dependant: Dependant) -> Iterator[tuple[str, bool]]:
    """Return the query parameters that a route takes, by itself or what it needs.

    Each with whether it may be given more than once.
    """
    for field in dependant.query_params:
        yield field.alias, get_origin(field.field_info.annotation) in {list, Sequence}
    for dependency in dependant.dependencies:
        yield from _queries(dependency)


async def idempotency_key(request: Request) -> str:
    """Return the request's key, with or without the quotes of the IETF draft."""
    key = request.headers.get("idempotency-key")
    if key is None:
        raise IdempotencyKeyMissing("send a header Idempotency-Key that is unique to this request")
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
    async with database.unit_of_work(identity, claiming=request.claiming) as unit:
        kept = await idempotency.claim(unit, request)
        if kept is not None:
            return json_answer(kept.body, status=kept.status, replayed=kept.replayed)
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


async def refusal_answer(request: Request, refusal: Exception) -> Response:
    """Return the one answer to what a route raised: a refusal, ours or the framework's."""
    if isinstance(refusal, RequestValidationError):
        return await _invalid(request, refusal)
    if isinstance(refusal, HTTPException):
        return await _framework_refusal(request, refusal)
    return await _refusal(request, refusal)


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
    fields = [FieldError(detail=sentence(item), pointer=_pointer(item["loc"])) for item in found]
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
    answer = problem_answer(request, known.get(status) or GiovangError("see the server's log"))
    if status == 405:
        answer.headers["Allow"] = ", ".join(sorted(_methods_at(request)))
    return answer


def _methods_at(request: Request) -> set[str]:
    """Return the methods that the request's address takes; its routes have one or a few each."""
    return {
        method
        for context in iter_route_contexts(request.app.routes)
        if isinstance(context.original_route, APIRoute)
        and compile_path(context.path or "")[0].match(request.url.path)
        for method in context.original_route.methods or ()
    }


async def _defect(request: Request, error: Exception) -> Response:
    # The frames and the kind of error, never its message: that may quote a row.
    _log.error(
        "unexpected error",
        error=type(error).__qualname__,
        constraint=error.diag.constraint_name if isinstance(error, psycopg.Error) else None,
        frames=traceback.format_tb(error.__traceback__)[-8:],
    )
    return problem_answer(request, GiovangError("the log names this request id"))
