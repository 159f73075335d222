"""Admin endpoints for merchants, and signing in."""

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Path, Request, Response

from api.database import Identity
from api.errors import Conflict, NotAuthenticated, NotFound
from api.merchants import service
from api.merchants.auth import admin
from api.merchants.model import (
    KeyBody,
    KeyView,
    LoginBody,
    MerchantBody,
    MerchantId,
    MerchantView,
    SessionView,
    StaffBody,
    StaffView,
)
from api.security import SessionSigner
from api.web import database_of, json_answer, problems, request_id_of

router = APIRouter(prefix="/api/v1", tags=["merchants"])
MerchantPath = Annotated[MerchantId, Path(examples=["mer_01jz8w5k6h7m9n0p2q3r4s5t6v"])]
Admin = Annotated[str, Depends(admin)]


def _identity(request: Request, actor: str, merchant_id: str) -> Identity:
    return Identity(actor, merchant_id, request_id_of(request))


@router.put(
    "/merchants/{merchant_id}",
    response_model=MerchantView,
    responses=problems(NotAuthenticated),
    summary="Create or change a merchant",
)
async def put_merchant(
    request: Request, merchant_id: MerchantPath, body: MerchantBody, actor: Admin
) -> Response:
    """Make the merchant of this id what the body says. Sending it again changes nothing."""
    identity = _identity(request, actor, merchant_id)
    async with database_of(request).unit_of_work(identity) as unit:
        merchant = await service.put_merchant(unit, body)
    view = MerchantView.model_validate(merchant, from_attributes=True)
    return json_answer(view.model_dump_json())


@router.post(
    "/merchants/{merchant_id}/api-keys",
    status_code=201,
    response_model=KeyView,
    responses=problems(NotAuthenticated, NotFound),
    summary="Issue an API key",
)
async def issue_key(
    request: Request, merchant_id: MerchantPath, body: KeyBody, actor: Admin
) -> Response:
    """Issue a key. It is shown in this answer and never again."""
    identity = _identity(request, actor, merchant_id)
    async with database_of(request).unit_of_work(identity) as unit:
        view = await service.issue_key(unit, body)
    return json_answer(view.model_dump_json(), status=201)


@router.put(
    "/merchants/{merchant_id}/staff",
    response_model=StaffView,
    responses=problems(NotAuthenticated, NotFound, Conflict),
    summary="Let a person sign in",
)
async def put_staff(
    request: Request, merchant_id: MerchantPath, body: StaffBody, actor: Admin
) -> Response:
    """Create a member of staff, or set their password and role."""
    identity = _identity(request, actor, merchant_id)
    async with database_of(request).unit_of_work(identity) as unit:
        view = await service.put_staff(unit, body)
    return json_answer(view.model_dump_json())


@router.post(
    "/sessions",
    status_code=201,
    response_model=SessionView,
    responses=problems(NotAuthenticated),
    tags=["sessions"],
    summary="Sign in",
)
async def sign_in(request: Request, body: LoginBody) -> Response:
    """Exchange email and password for a session of eight hours."""
    view = await service.sign_in(
        database_of(request),
        cast("SessionSigner", request.app.state.signer),
        body,
        request_id=request_id_of(request),
    )
    return json_answer(view.model_dump_json(), status=201)
