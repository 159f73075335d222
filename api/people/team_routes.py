"""HTTP by which a merchant's owners look after their own API keys and staff."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from api.errors import Conflict, NotFound
from api.paging import Paging, by_id
from api.people import service
from api.people.auth import caller_with, identity_of, sessions_of
from api.people.model import (
    Caller,
    KeyBody,
    KeyId,
    KeyList,
    KeyView,
    NewKeyView,
    StaffBody,
    StaffChange,
    StaffId,
    StaffList,
    StaffView,
)
from api.web import database_of, json_answer, problems

router = APIRouter(prefix="/api/v1")
KeyMaker = Annotated[Caller, Depends(caller_with("keys:write"))]
Owner = Annotated[Caller, Depends(caller_with("staff:write"))]
KeyPath = Annotated[KeyId, Path(examples=["key_01jz8w5k6h7m9n0p2q3r4s5t6v"])]
StaffPath = Annotated[StaffId, Path(examples=["stf_01jz8w5k6h7m9n0p2q3r4s5t6v"])]


@router.post(
    "/api-keys",
    status_code=201,
    response_model=NewKeyView,
    tags=["api keys"],
    summary="Issue an API key",
)
async def issue_key(request: Request, body: KeyBody, caller: KeyMaker) -> Response:
    """Issue a key of yours. It is shown in this answer and never again."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        view = await service.issue_key(unit, body)
    return json_answer(view.model_dump_json(), status=201)


@router.get("/api-keys", response_model=KeyList, tags=["api keys"], summary="List API keys")
async def list_keys(
    request: Request,
    caller: KeyMaker,
    page: Annotated[Paging, Depends(by_id("key"))],
) -> Response:
    """List your keys of both modes, newest first, revoked ones too."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        view = await service.list_keys(unit, page)
    return json_answer(view.model_dump_json())


@router.delete(
    "/api-keys/{key_id}",
    response_model=KeyView,
    responses=problems(NotFound),
    tags=["api keys"],
    summary="Revoke an API key",
)
async def revoke_key(request: Request, key_id: KeyPath, caller: KeyMaker) -> Response:
    """Revoke a key of yours: from now on it opens nothing."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        view = await service.revoke_key(unit, key_id)
    return json_answer(view.model_dump_json())


@router.post(
    "/staff",
    status_code=201,
    response_model=StaffView,
    responses=problems(Conflict),
    tags=["staff"],
    summary="Add a member of staff",
)
async def add_staff(request: Request, body: StaffBody, caller: Owner) -> Response:
    """Let a person sign in for you, who signs in for nobody yet."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        view = await service.add_staff(unit, body)
    return json_answer(view.model_dump_json(), status=201)


@router.get("/staff", response_model=StaffList, tags=["staff"], summary="List staff")
async def list_staff(
    request: Request,
    caller: Owner,
    page: Annotated[Paging, Depends(by_id("stf"))],
) -> Response:
    """List your staff, newest first."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        view = await service.list_staff(unit, page)
    return json_answer(view.model_dump_json())


@router.patch(
    "/staff/{staff_id}",
    response_model=StaffView,
    responses=problems(NotFound, Conflict),
    tags=["staff"],
    summary="Change a member of staff",
)
async def change_staff(
    request: Request, staff_id: StaffPath, body: StaffChange, caller: Owner
) -> Response:
    """Change role or password of one of your staff, and end their sessions."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        view, ended = await service.change_staff(unit, staff_id, body)
    await sessions_of(request).announce(ended)
    return json_answer(view.model_dump_json())


@router.delete(
    "/staff/{staff_id}",
    status_code=204,
    responses=problems(NotFound, Conflict),
    tags=["staff"],
    summary="Remove a member of staff",
)
async def remove_staff(request: Request, staff_id: StaffPath, caller: Owner) -> Response:
    """Remove one of your staff and end their sessions."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        ended = await service.remove_staff(unit, staff_id)
    await sessions_of(request).announce(ended)
    return Response(status_code=204)
