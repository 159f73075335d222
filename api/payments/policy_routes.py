"""HTTP for confirmation policies: admins set them, merchants read those that are for them."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from api.errors import NotFound
from api.paging import Paging, by_id
from api.payments import confirmation
from api.payments.params import AUTH, PaymentAdmin, Reader
from api.payments.policy_model import PolicyId, PolicyList, PolicyView, SetPolicy, present_policy
from api.people.auth import identity_of
from api.web import database_of, json_answer, operator_of, problems

router = APIRouter()
Page = Annotated[Paging, Depends(by_id("cfp"))]


@router.get(
    "/confirmation-policies",
    response_model=PolicyList,
    responses=problems(*AUTH),
    tags=["payments"],
    summary="List the confirmation policies for your payments",
)
async def list_my_policies(request: Request, caller: Reader, page: Page) -> Response:
    """List your own policies and those for all merchants; without any, money is booked final."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        found, has_more = await confirmation.policies(unit, page, mode=caller.mode)
    view = PolicyList(data=[present_policy(policy) for policy in found], has_more=has_more)
    return json_answer(view.model_dump_json())


@router.get(
    "/admin/confirmation-policies",
    response_model=PolicyList,
    responses=problems(*AUTH),
    tags=["admin"],
    summary="List all confirmation policies",
)
async def list_policies(request: Request, admin: PaymentAdmin, page: Page) -> Response:
    """List the policies of all merchants, newest first."""
    async with operator_of(request).unit_of_work(identity_of(request, admin)) as unit:
        found, has_more = await confirmation.policies(unit, page)
    view = PolicyList(data=[present_policy(policy) for policy in found], has_more=has_more)
    return json_answer(view.model_dump_json())


@router.put(
    "/admin/confirmation-policies",
    response_model=PolicyView,
    responses=problems(*AUTH, NotFound),
    tags=["admin"],
    summary="Set a confirmation policy",
)
async def set_policy(request: Request, body: SetPolicy, admin: PaymentAdmin) -> Response:
    """Say at which commitment payments of a band are booked; the same band again is changed."""
    async with operator_of(request).unit_of_work(identity_of(request, admin)) as unit:
        policy = await confirmation.set_policy(unit, body)
    return json_answer(present_policy(policy).model_dump_json())


@router.delete(
    "/admin/confirmation-policies/{policy_id}",
    status_code=204,
    responses=problems(*AUTH, NotFound),
    tags=["admin"],
    summary="Remove a confirmation policy",
)
async def remove_policy(
    request: Request,
    policy_id: Annotated[PolicyId, Path(examples=["cfp_01jz8w5k6h7m9n0p2q3r4s5t6v"])],
    admin: PaymentAdmin,
) -> Response:
    """Remove a policy; the next that fits decides, and without one money is booked final."""
    async with operator_of(request).unit_of_work(identity_of(request, admin)) as unit:
        await confirmation.remove_policy(unit, policy_id)
    return Response(status_code=204)
