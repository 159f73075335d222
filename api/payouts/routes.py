"""HTTP for payouts: a merchant's programs and people ask, other people of theirs approve."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.contract import PayoutStatus
from api.database import Unit
from api.errors import Conflict, InsufficientBalance, NotFound
from api.idempotency import request_digest
from api.payouts import admin_routes, service
from api.payouts.model import (
    AmendPayout,
    ApprovePayout,
    CreatePayout,
    PayoutList,
    PayoutView,
    present,
    present_list,
)
from api.payouts.params import AUTH, ONCE, Approver, Key, Page, PayoutPath, Reader, Writer
from api.people.auth import acting_for, database_for, identity_of, once
from api.web import answer_once, database_of, json_answer, problems, settings_of

router = APIRouter(prefix="/api/v1", tags=["payouts"])


@router.post(
    "/payouts",
    status_code=201,
    response_model=PayoutView,
    responses=problems(*AUTH, *ONCE, InsufficientBalance),
    summary="Request a payout",
)
async def request_payout(
    request: Request, body: CreatePayout, caller: Writer, key: Key
) -> Response:
    """Hold a part of your available balance for a transfer to you, until a person approves it."""

    async def work(unit: Unit) -> PayoutView:
        days = settings_of(request).payout_request_days
        payout = await service.request_payout(unit, body, mode=caller.mode, request_days=days)
        return present(payout)

    digest = request_digest("request payout", body.model_dump())
    identity = identity_of(request, caller)
    kept = once(caller, key, digest)
    return await answer_once(database_of(request), identity, kept, work, status=201)


@router.get(
    "/payouts", response_model=PayoutList, responses=problems(*AUTH), summary="List payouts"
)
async def list_payouts(
    request: Request,
    caller: Reader,
    page: Page,
    status: Annotated[PayoutStatus | None, Query()] = None,
) -> Response:
    """List your payouts, newest first; page on with the id of the last one you got."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        payouts, has_more = await service.page(unit, page, mode=caller.mode, status=status)
    return json_answer(present_list(payouts, has_more=has_more).model_dump_json())


@router.get(
    "/payouts/{payout_id}",
    response_model=PayoutView,
    responses=problems(*AUTH, NotFound),
    summary="Read a payout",
)
async def get_payout(request: Request, payout_id: PayoutPath, caller: Reader) -> Response:
    """Return a payout of yours as it stands."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        payout = await service.get(unit, payout_id, mode=caller.mode)
    return json_answer(present(payout).model_dump_json())


@router.patch(
    "/payouts/{payout_id}",
    response_model=PayoutView,
    responses=problems(*AUTH, *ONCE, NotFound, Conflict, InsufficientBalance),
    summary="Amend a payout",
)
async def amend_payout(
    request: Request, payout_id: PayoutPath, body: AmendPayout, caller: Writer, key: Key
) -> Response:
    """Change amount or destination of a payout that nobody approved yet: its next revision."""

    async def work(unit: Unit) -> PayoutView:
        days = settings_of(request).payout_request_days
        payout = await service.amend(unit, payout_id, body, mode=caller.mode, request_days=days)
        return present(payout)

    digest = request_digest("amend payout", {"payout_id": payout_id, **body.model_dump()})
    identity = identity_of(request, caller)
    kept = once(caller, key, digest)
    return await answer_once(database_of(request), identity, kept, work, status=200)


@router.post(
    "/payouts/{payout_id}/approve",
    response_model=PayoutView,
    responses=problems(*AUTH, *ONCE, NotFound, Conflict),
    summary="Approve a payout",
)
async def approve_payout(
    request: Request, payout_id: PayoutPath, body: ApprovePayout, caller: Approver, key: Key
) -> Response:
    """Approve the revision you read. This takes a person, and not the one who asked for it."""
    database, identity = database_for(request, caller), identity_of(request, caller)
    mode = None if caller.kind == "admin" else caller.mode
    if identity.merchant_id is None:
        async with database.unit_of_work(identity) as unit:
            merchant_id = (await service.get(unit, payout_id, mode=None)).merchant_id
        identity = acting_for(request, caller, merchant_id)

    async def work(unit: Unit) -> PayoutView:
        return present(await service.approve(unit, payout_id, mode=mode, revision=body.revision))

    digest = request_digest("approve payout", {"payout_id": payout_id, **body.model_dump()})
    return await answer_once(database, identity, once(caller, key, digest), work, status=200)


@router.post(
    "/payouts/{payout_id}/cancel",
    response_model=PayoutView,
    responses=problems(*AUTH, *ONCE, NotFound, Conflict),
    summary="Cancel a payout",
)
async def cancel_payout(
    request: Request, payout_id: PayoutPath, caller: Writer, key: Key
) -> Response:
    """Take back a payout that was not sent yet; its money is available again."""

    async def work(unit: Unit) -> PayoutView:
        return present(await service.cancel(unit, payout_id, mode=caller.mode))

    digest = request_digest("cancel payout", {"payout_id": payout_id})
    identity = identity_of(request, caller)
    kept = once(caller, key, digest)
    return await answer_once(database_of(request), identity, kept, work, status=200)


router.include_router(admin_routes.router)
