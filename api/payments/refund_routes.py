"""HTTP for refunds."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from api.contract import RefundSource, RefundStatus
from api.database import Unit
from api.errors import Conflict, InsufficientBalance, NotFound, RefundExceedsPayment
from api.idempotency import request_digest
from api.paging import Paging, by_id
from api.payments import refunds
from api.payments.model import CreateRefund, PaymentId, RefundId
from api.payments.params import AUTH, ONCE, Key, PaymentPath, Refunder, RefundReader
from api.payments.views import RefundList, RefundView, present_refund
from api.people.auth import identity_of, once
from api.web import answer_once, database_of, json_answer, operator_of, problems

router = APIRouter(tags=["refunds"])


@router.post(
    "/payments/{payment_id}/refunds",
    status_code=201,
    response_model=RefundView,
    responses=problems(*AUTH, *ONCE, NotFound, Conflict, RefundExceedsPayment, InsufficientBalance),
    summary="Request a refund",
)
async def request_refund(
    request: Request, payment_id: PaymentPath, body: CreateRefund, caller: Refunder, key: Key
) -> Response:
    """Hold money for its payer: of the payment, of what came too much, or of what waits."""

    async def work(unit: Unit) -> RefundView:
        return present_refund(
            await refunds.request_refund(unit, payment_id, body, mode=caller.mode)
        )

    # What waits in suspense is on an account of the platform, which only the operator may hold.
    is_suspense = RefundSource(body.source) is RefundSource.SUSPENSE
    database = operator_of(request) if is_suspense else database_of(request)
    digest = request_digest("request refund", {"payment_id": payment_id, **body.model_dump()})
    identity = identity_of(request, caller)
    return await answer_once(database, identity, once(caller, key, digest), work, status=201)


@router.get(
    "/refunds",
    response_model=RefundList,
    responses=problems(*AUTH),
    summary="List refunds",
)
async def list_refunds(
    *,
    request: Request,
    caller: RefundReader,
    paging: Annotated[Paging, Depends(by_id("rfd"))],
    status: Annotated[RefundStatus | None, Query()] = None,
    payment_id: Annotated[PaymentId | None, Query()] = None,
) -> Response:
    """List your refunds, newest first; page on with the id of the last one you got."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        found, has_more = await refunds.page(
            unit, paging, mode=caller.mode, status=status, payment_id=payment_id
        )
    view = RefundList(data=[present_refund(refund) for refund in found], has_more=has_more)
    return json_answer(view.model_dump_json())


@router.get(
    "/refunds/{refund_id}",
    response_model=RefundView,
    responses=problems(*AUTH, NotFound),
    summary="Read a refund",
)
async def get_refund(
    request: Request,
    refund_id: Annotated[RefundId, Path(examples=["rfd_01jz8w5k6h7m9n0p2q3r4s5t6v"])],
    caller: RefundReader,
) -> Response:
    """Return a refund of yours as it stands."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        refund = await refunds.get(unit, refund_id, mode=caller.mode)
    return json_answer(present_refund(refund).model_dump_json())
