"""HTTP for people: signing in, sessions, second factors, and admins."""

import hashlib
from typing import Annotated, Final, cast

from fastapi import APIRouter, Depends, Path, Request, Response

from api.errors import Conflict, NotFound, NotPermitted
from api.paging import Paging, by_id
from api.people import admins, signing_in
from api.people.auth import admin_with, any_session, identity_of, sessions_of
from api.people.model import (
    AdminBody,
    AdminId,
    AdminList,
    AdminLoginBody,
    AdminView,
    Caller,
    CodeBody,
    LoginBody,
    SessionView,
    TotpView,
)
from api.security import Sealer, SessionClaims
from api.web import (
    client_bucket,
    database_of,
    json_answer,
    limiter_of,
    operator_of,
    problems,
    request_id_of,
    settings_of,
    spend,
)

SIGN_IN_POLICY: Final = "sign_in"

router = APIRouter(prefix="/api/v1", tags=["sessions"])
AnySession = Annotated[SessionClaims, Depends(any_session(second_factor=False))]
AdminOfAdmins = Annotated[Caller, Depends(admin_with("admins:write"))]
AdminPath = Annotated[AdminId, Path(examples=["adm_01jz8w5k6h7m9n0p2q3r4s5t6v"])]


def _sealer(request: Request) -> Sealer:
    return cast("Sealer", request.app.state.sealer)


async def _limit_attempts(request: Request, *whose: str) -> None:
    """Spend a token of the client's address and of each name; raises TooManyRequests.

    Names are hashed, so that Redis knows no address of anybody.
    """
    buckets = [client_bucket(request)]
    buckets += [hashlib.sha256(name.lower().encode()).hexdigest()[:32] for name in whose]
    for bucket in buckets:
        taken = await limiter_of(request).take(
            f"sign-in:{bucket}",
            per_minute=settings_of(request).sign_in_limit_per_minute,
            policy=SIGN_IN_POLICY,
        )
        spend(request, taken)


@router.post("/sessions", status_code=201, response_model=SessionView, summary="Sign in")
async def sign_in(request: Request, body: LoginBody) -> Response:
    """Exchange email and password for a session of an hour, to be rotated for up to twelve."""
    await _limit_attempts(request, body.email)
    view = await signing_in.staff(
        sessions_of(request), database_of(request), body, request_id=request_id_of(request)
    )
    return json_answer(view.model_dump_json(), status=201)


@router.post(
    "/sessions/rotate", status_code=201, response_model=SessionView, summary="Rotate a session"
)
async def rotate(request: Request, session: AnySession) -> Response:
    """Exchange a session for its successor; to send the old one again ends them all."""
    view = await sessions_of(request).rotate(session, request_id=request_id_of(request))
    return json_answer(view.model_dump_json(), status=201)


@router.delete("/sessions/current", status_code=204, summary="Sign out")
async def sign_out(request: Request, session: AnySession) -> Response:
    """End the session of this request."""
    await sessions_of(request).sign_out(session, request_id=request_id_of(request))
    return Response(status_code=204)


@router.post(
    "/admin/sessions", status_code=201, response_model=SessionView, summary="Sign in as an admin"
)
async def sign_in_admin(request: Request, body: AdminLoginBody) -> Response:
    """Exchange email, password and a current code for a session; each code works once."""
    await _limit_attempts(request, body.email)
    view = await signing_in.admin(
        sessions_of(request),
        _sealer(request),
        operator_of(request),
        body,
        request_id=request_id_of(request),
    )
    return json_answer(view.model_dump_json(), status=201)


@router.post(
    "/admin/second-factor",
    status_code=201,
    response_model=TotpView,
    responses=problems(NotPermitted, Conflict),
    summary="Enrol a second factor",
)
async def enrol(request: Request, session: AnySession) -> Response:
    """Get the address that authenticator apps scan. It is shown in this answer and never again."""
    _demand_admin(session)
    view = await signing_in.enrol(
        _sealer(request), operator_of(request), session, request_id=request_id_of(request)
    )
    return json_answer(view.model_dump_json(), status=201)


@router.post(
    "/admin/second-factor/confirmation",
    status_code=201,
    response_model=SessionView,
    responses=problems(NotPermitted, Conflict),
    summary="Confirm a second factor",
)
async def confirm(request: Request, body: CodeBody, session: AnySession) -> Response:
    """Confirm the second factor by its current code and get a session with an admin's rights."""
    _demand_admin(session)
    await _limit_attempts(request, session.person_id)
    view = await signing_in.confirm(
        sessions_of(request),
        _sealer(request),
        operator_of(request),
        session,
        body,
        request_id=request_id_of(request),
    )
    return json_answer(view.model_dump_json(), status=201)


def _demand_admin(session: SessionClaims) -> None:
    if session.kind != "admin":
        raise NotPermitted("second factors are for admins")


@router.put(
    "/admins/{admin_id}",
    response_model=AdminView,
    responses=problems(Conflict),
    tags=["admins"],
    summary="Create or change an admin",
)
async def put_admin(
    request: Request, admin_id: AdminPath, body: AdminBody, caller: AdminOfAdmins
) -> Response:
    """Make the admin of this id what the body says. Sending it again changes nothing."""
    async with operator_of(request).unit_of_work(identity_of(request, caller)) as unit:
        view, ended = await admins.put(unit, admin_id, body)
    await sessions_of(request).announce(ended)
    return json_answer(view.model_dump_json())


@router.get("/admins", response_model=AdminList, tags=["admins"], summary="List admins")
async def list_admins(
    request: Request,
    caller: AdminOfAdmins,
    page: Annotated[Paging, Depends(by_id("adm"))],
) -> Response:
    """List admins, newest first; page on with the id of the last one you got."""
    async with operator_of(request).unit_of_work(identity_of(request, caller)) as unit:
        view = await admins.page(unit, page)
    return json_answer(view.model_dump_json())


@router.delete(
    "/admins/{admin_id}/second-factor",
    response_model=AdminView,
    responses=problems(NotFound, Conflict),
    tags=["admins"],
    summary="Take a lost second factor away",
)
async def take_second_factor(
    request: Request, admin_id: AdminPath, caller: AdminOfAdmins
) -> Response:
    """End an admin's sessions and second factor; they enrol a new one when they sign in next."""
    async with operator_of(request).unit_of_work(identity_of(request, caller)) as unit:
        view, ended = await admins.take_second_factor(unit, admin_id)
    await sessions_of(request).announce(ended)
    return json_answer(view.model_dump_json())
