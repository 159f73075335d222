"""HTTP for merchants: by admins for all of them, by its own people for one."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from api.errors import Conflict, NotFound
from api.merchants import service
from api.merchants.model import (
    MerchantBody,
    MerchantChange,
    MerchantId,
    MerchantList,
    MerchantView,
)
from api.paging import Paging, by_id
from api.people import service as people
from api.people.auth import acting_for, admin_with, caller_with, identity_of, sessions_of
from api.people.model import (
    Caller,
    KeyBody,
    KeyId,
    KeyList,
    KeyView,
    NewKeyView,
    StaffBody,
    StaffId,
    StaffList,
    StaffView,
)
from api.web import database_of, json_answer, operator_of, problems

router = APIRouter(prefix="/api/v1", tags=["merchants"])
MerchantPath = Annotated[MerchantId, Path(examples=["mer_01jz8w5k6h7m9n0p2q3r4s5t6v"])]
MerchantAdmin = Annotated[Caller, Depends(admin_with("merchants:write"))]
KeyAdmin = Annotated[Caller, Depends(admin_with("keys:write"))]
StaffAdmin = Annotated[Caller, Depends(admin_with("staff:write"))]


@router.get("/merchant", response_model=MerchantView, summary="Read your merchant")
async def get_own(
    request: Request, caller: Annotated[Caller, Depends(caller_with("merchants:read"))]
) -> Response:
    """Return who you call for and its settings."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        merchant = await service.get_merchant(unit)
    return json_answer(service.present(merchant).model_dump_json())


@router.patch("/merchant", response_model=MerchantView, summary="Change your settings")
async def change_own(
    request: Request,
    body: MerchantChange,
    caller: Annotated[Caller, Depends(caller_with("merchants:write"))],
) -> Response:
    """Change the settings that are an owner's to change. The fee is agreed with us."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        merchant = await service.change_merchant(unit, body)
    return json_answer(service.present(merchant).model_dump_json())


@router.get("/merchants", response_model=MerchantList, summary="List merchants")
async def list_merchants(
    request: Request,
    caller: Annotated[Caller, Depends(admin_with("merchants:read"))],
    page: Annotated[Paging, Depends(by_id("mer"))],
) -> Response:
    """List merchants, newest first; page on with the id of the last one you got."""
    async with operator_of(request).unit_of_work(identity_of(request, caller)) as unit:
        view = await service.list_merchants(unit, page)
    return json_answer(view.model_dump_json())


@router.put(
    "/merchants/{merchant_id}", response_model=MerchantView, summary="Create or change a merchant"
)
async def put_merchant(
    request: Request, merchant_id: MerchantPath, body: MerchantBody, caller: MerchantAdmin
) -> Response:
    """Make the merchant of this id what the body says. Sending it again changes nothing."""
    identity = acting_for(request, caller, merchant_id)
    async with database_of(request).unit_of_work(identity) as unit:
        merchant = await service.put_merchant(unit, body)
    return json_answer(service.present(merchant).model_dump_json())


@router.post(
    "/merchants/{merchant_id}/api-keys",
    status_code=201,
    response_model=NewKeyView,
    responses=problems(NotFound),
    summary="Issue an API key for a merchant",
)
async def issue_key(
    request: Request, merchant_id: MerchantPath, body: KeyBody, caller: KeyAdmin
) -> Response:
    """Issue a key. It is shown in this answer and never again."""
    identity = acting_for(request, caller, merchant_id)
    async with database_of(request).unit_of_work(identity) as unit:
        view = await people.issue_key(unit, body)
    return json_answer(view.model_dump_json(), status=201)


@router.get(
    "/merchants/{merchant_id}/api-keys",
    response_model=KeyList,
    responses=problems(NotFound),
    summary="List a merchant's API keys",
)
async def list_keys(
    request: Request,
    merchant_id: MerchantPath,
    caller: KeyAdmin,
    page: Annotated[Paging, Depends(by_id("key"))],
) -> Response:
    """List a merchant's keys, newest first, revoked ones too."""
    identity = acting_for(request, caller, merchant_id)
    async with database_of(request).unit_of_work(identity) as unit:
        await service.get_merchant(unit)
        view = await people.list_keys(unit, page)
    return json_answer(view.model_dump_json())


@router.delete(
    "/merchants/{merchant_id}/api-keys/{key_id}",
    response_model=KeyView,
    responses=problems(NotFound),
    summary="Revoke a merchant's API key",
)
async def revoke_key(
    request: Request,
    merchant_id: MerchantPath,
    key_id: Annotated[KeyId, Path(examples=["key_01jz8w5k6h7m9n0p2q3r4s5t6v"])],
    caller: KeyAdmin,
) -> Response:
    """Revoke a key: from now on it opens nothing."""
    identity = acting_for(request, caller, merchant_id)
    async with database_of(request).unit_of_work(identity) as unit:
        view = await people.revoke_key(unit, key_id)
    return json_answer(view.model_dump_json())


@router.put(
    "/merchants/{merchant_id}/staff",
    response_model=StaffView,
    responses=problems(NotFound, Conflict),
    summary="Let a person sign in for a merchant",
)
async def put_staff(
    request: Request, merchant_id: MerchantPath, body: StaffBody, caller: StaffAdmin
) -> Response:
    """Create a member of staff, or set their password and role."""
    identity = acting_for(request, caller, merchant_id)
    async with database_of(request).unit_of_work(identity) as unit:
        view, ended = await people.put_staff(unit, body)
    await sessions_of(request).announce(ended)
    return json_answer(view.model_dump_json())


@router.get(
    "/merchants/{merchant_id}/staff",
    response_model=StaffList,
    responses=problems(NotFound),
    summary="List a merchant's staff",
)
async def list_staff(
    request: Request,
    merchant_id: MerchantPath,
    caller: StaffAdmin,
    page: Annotated[Paging, Depends(by_id("stf"))],
) -> Response:
    """List a merchant's staff, newest first."""
    identity = acting_for(request, caller, merchant_id)
    async with database_of(request).unit_of_work(identity) as unit:
        await service.get_merchant(unit)
        view = await people.list_staff(unit, page)
    return json_answer(view.model_dump_json())


@router.delete(
    "/merchants/{merchant_id}/staff/{staff_id}",
    status_code=204,
    responses=problems(NotFound),
    summary="Remove a merchant's member of staff",
)
async def remove_staff(
    request: Request,
    merchant_id: MerchantPath,
    staff_id: Annotated[StaffId, Path(examples=["stf_01jz8w5k6h7m9n0p2q3r4s5t6v"])],
    caller: StaffAdmin,
) -> Response:
    """Remove a person and end their sessions."""
    identity = acting_for(request, caller, merchant_id)
    async with database_of(request).unit_of_work(identity) as unit:
        ended = await people.remove_staff(unit, staff_id)
    await sessions_of(request).announce(ended)
    return Response(status_code=204)
