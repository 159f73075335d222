"""HTTP for admins: the queue of payouts, and what the bank did about each.

These run under the operator's role, for the merchant whose payout it is.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from api.contract import PayoutStatus
from api.database import Unit
from api.errors import Conflict, NotFound
from api.idempotency import request_digest
from api.payouts import service
from api.payouts.model import (
    FailPayout,
    Payout,
    PayoutList,
    PayoutView,
    SendPayout,
    present,
    present_list,
)
from api.payouts.params import AUTH, ONCE, Key, Page, PayoutAdmin, PayoutPath
from api.people.auth import acting_for, identity_of, once
from api.people.model import Caller
from api.security import Mode
from api.web import answer_once, json_answer, operator_of, problems

router = APIRouter(prefix="/admin/payouts", tags=["admin"])


@router.get(
    "",
    response_model=PayoutList,
    responses=problems(*AUTH),
    summary="List payouts of all merchants",
)
async def list_payouts(
    request: Request,
    admin: PayoutAdmin,
    page: Page,
    status: Annotated[PayoutStatus | None, Query()] = None,
    mode: Annotated[Mode, Query()] = "live",
) -> Response:
    """List payouts, newest first: with `status=approved` those that wait to be sent."""
    async with operator_of(request).unit_of_work(identity_of(request, admin)) as unit:
        payouts, has_more = await service.page(unit, page, mode=mode, status=status)
    return json_answer(present_list(payouts, has_more=has_more).model_dump_json())


@router.post(
    "/{payout_id}/send",
    response_model=PayoutView,
    responses=problems(*AUTH, *ONCE, NotFound, Conflict),
    summary="Say that a payout was sent",
)
async def send_payout(
    request: Request, payout_id: PayoutPath, body: SendPayout, admin: PayoutAdmin, key: Key
) -> Response:
    """Write down by which bank transfer an approved payout is on its way."""

    async def work(unit: Unit) -> Payout:
        return await service.send(unit, payout_id, bank_reference=body.bank_reference)

    step = _Step("send payout", payout_id, body.model_dump(), work)
    return await _take(request, admin, key, step)


@router.post(
    "/{payout_id}/settle",
    response_model=PayoutView,
    responses=problems(*AUTH, *ONCE, NotFound, Conflict),
    summary="Say that a payout arrived",
)
async def settle_payout(
    request: Request, payout_id: PayoutPath, admin: PayoutAdmin, key: Key
) -> Response:
    """Book a payout that was sent: what was held for it leaves the merchant's balance."""

    async def work(unit: Unit) -> Payout:
        return await service.settle(unit, payout_id)

    return await _take(request, admin, key, _Step("settle payout", payout_id, {}, work))


@router.post(
    "/{payout_id}/fail",
    response_model=PayoutView,
    responses=problems(*AUTH, *ONCE, NotFound, Conflict),
    summary="Say that a payout failed",
)
async def fail_payout(
    request: Request, payout_id: PayoutPath, body: FailPayout, admin: PayoutAdmin, key: Key
) -> Response:
    """End a payout that will not arrive; its money is available to the merchant again."""

    async def work(unit: Unit) -> Payout:
        return await service.fail(unit, payout_id, reason=body.reason)

    step = _Step("fail payout", payout_id, body.model_dump(), work)
    return await _take(request, admin, key, step)


@dataclass(frozen=True, slots=True)
class _Step:
    """What is done about a payout, and what was asked for."""

    operation: str
    payout_id: str
    content: dict[str, Any]
    work: Callable[[Unit], Awaitable[Payout]]


async def _take(request: Request, admin: Caller, key: str, step: _Step) -> Response:
    """Take a step of a payout once, on its merchant's rows and no others."""
    operator = operator_of(request)
    async with operator.unit_of_work(identity_of(request, admin)) as unit:
        merchant_id = (await service.get(unit, step.payout_id, mode=None)).merchant_id

    async def work(unit: Unit) -> PayoutView:
        return present(await step.work(unit))

    digest = request_digest(step.operation, {"payout_id": step.payout_id, **step.content})
    identity = acting_for(request, admin, merchant_id)
    return await answer_once(operator, identity, once(admin, key, digest), work, status=200)
