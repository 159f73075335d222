"""HTTP for payments: create, read, list, change; deliver, dispute, accept."""

from collections.abc import Sequence
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Query, Request, Response

from api.chain import store as chain_store
from api.chain import watch_store
from api.contract import PaymentException, PaymentStatus
from api.database import Unit
from api.errors import Conflict, NotFound, RateUnavailable
from api.idempotency import request_digest
from api.paging import Paging, by_id
from api.payments import (
    admin_routes,
    chain_routes,
    dispute_store,
    escrow,
    event_routes,
    event_store,
    exceptions,
    policy_routes,
    refund_routes,
    refund_store,
    service,
)
from api.payments.events import MOST_OF_A_PAYMENT, present_event
from api.payments.model import (
    AcceptMoney,
    AssetName,
    ChangePayment,
    CreatePayment,
    OpenDispute,
    OrderId,
    Payment,
)
from api.payments.params import AUTH, ONCE, Disputer, Key, PaymentPath, Reader, Writer
from api.payments.store import Filters
from api.payments.views import (
    ExpandedPayment,
    Expansion,
    ListExpansion,
    PaymentList,
    PaymentView,
    present,
    present_dispute,
    present_refund,
    present_stray,
    present_transfer,
    without,
)
from api.people.auth import identity_of, once
from api.people.model import Caller
from api.rates.service import Rates
from api.web import (
    Moment,
    answer_once,
    database_of,
    json_answer,
    operator_of,
    problems,
    settings_of,
)

router = APIRouter(prefix="/api/v1", tags=["payments"])
Page = Annotated[Paging, Depends(by_id("pay"))]


def _present(request: Request, caller: Caller, payment: Payment) -> PaymentView:
    public_url = settings_of(request).public_url
    return present(payment, merchant_name=caller.merchant_name, public_url=public_url)


def _filters(
    *,
    status: Annotated[PaymentStatus | None, Query()] = None,
    exception: Annotated[PaymentException | None, Query()] = None,
    order_id: Annotated[OrderId | None, Query()] = None,
    asset: Annotated[AssetName | None, Query()] = None,
    escrow: Annotated[bool | None, Query()] = None,
    created_gt: Moment = None,
    created_gte: Moment = None,
    created_lt: Moment = None,
    created_lte: Moment = None,
) -> Filters:
    return Filters(
        status=status,
        exception=exception,
        order_id=order_id,
        asset=asset,
        escrow=escrow,
        created_gt=created_gt,
        created_gte=created_gte,
        created_lt=created_lt,
        created_lte=created_lte,
    )


@router.post(
    "/payments",
    status_code=201,
    response_model=PaymentView,
    responses=problems(*AUTH, *ONCE, RateUnavailable),
    summary="Create a payment",
)
async def create_payment(
    request: Request, body: CreatePayment, caller: Writer, key: Key
) -> Response:
    """Lock a quote and get what a payer needs: a Solana Pay link and a page to show it."""
    answer = await service.create_once(
        database_of(request),
        identity_of(request, caller),
        once(caller, key, request_digest("create payment", body.model_dump())),
        body,
        mode=caller.mode,
        rates=cast("Rates", request.app.state.rates),
        chain=settings_of(request),
        shown=lambda payment: _present(request, caller, payment),
    )
    return json_answer(answer.body, status=answer.status, replayed=answer.replayed)


@router.get(
    "/payments/{payment_id}",
    response_model=ExpandedPayment,
    responses=problems(*AUTH, NotFound),
    summary="Read a payment",
)
async def get_payment(
    request: Request,
    payment_id: PaymentPath,
    caller: Reader,
    expand: Annotated[Sequence[Expansion], Query(alias="expand[]", max_length=5)] = (),
) -> Response:
    """Return a payment of yours as it stands, with the parts asked for by `expand[]`."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        payment = await service.get(unit, payment_id, mode=caller.mode)
        parts = await _parts(unit, request, caller, [payment_id], expand)
    parts = await _with_transfers(request, caller, parts, expand)
    view = _expanded(request, caller, payment, parts)
    return json_answer(view.model_dump_json(exclude=without(expand)))


@router.get(
    "/payments",
    response_model=PaymentList,
    responses=problems(*AUTH),
    summary="List payments",
)
async def list_payments(
    *,
    request: Request,
    caller: Reader,
    paging: Page,
    filters: Annotated[Filters, Depends(_filters)],
    expand: Annotated[
        Sequence[ListExpansion],
        Query(alias="expand[]", max_length=5, description="Events are with one payment only"),
    ] = (),
) -> Response:
    """List your payments, newest first; page on with the id of the last one you got."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        payments, has_more = await service.page(unit, paging, filters, mode=caller.mode)
        ids = [payment.id for payment in payments]
        parts = await _parts(unit, request, caller, ids, expand)
    parts = await _with_transfers(request, caller, parts, expand)
    view = PaymentList(
        data=[_expanded(request, caller, payment, parts) for payment in payments],
        has_more=has_more,
    )
    return json_answer(view.model_dump_json(exclude={"data": {"__all__": without(expand)}}))


Parts = dict[str, dict[str, Any]]


async def _parts(
    unit: Unit, request: Request, caller: Caller, ids: list[str], expand: Sequence[str]
) -> Parts:
    """Return the parts asked for, of all these payments, by one statement for each part."""
    parts: Parts = {payment_id: {} for payment_id in ids}
    if "refunds" in expand:
        _spread(parts, "refunds")
        for refund in await refund_store.of_payments(unit, ids):
            parts[refund.payment_id]["refunds"].append(present_refund(refund))
    if "dispute" in expand:
        for dispute in await dispute_store.of_payments(unit, ids):
            parts[dispute.payment_id]["dispute"] = present_dispute(dispute)
    if "strays" in expand:
        _spread(parts, "strays")
        for stray in await watch_store.strays_of(unit, ids):
            parts[stray.payment_id]["strays"].append(present_stray(stray))
    if "events" in expand:
        _spread(parts, "events")
        public_url = settings_of(request).public_url
        for event in await event_store.of_payments(unit, ids, limit=MOST_OF_A_PAYMENT):
            view = present_event(event, merchant_name=caller.merchant_name, public_url=public_url)
            parts[event.payment_id or ""]["events"].append(view)
    return parts


async def _with_transfers(
    request: Request, caller: Caller, parts: Parts, expand: Sequence[str]
) -> Parts:
    """Add what came for these payments; receipts are the platform's, so the operator reads them."""
    if "transfers" in expand:
        _spread(parts, "transfers")
        async with operator_of(request).unit_of_work(identity_of(request, caller)) as unit:
            for transfer in await chain_store.transfers_of(unit, list(parts)):
                shown = present_transfer(transfer, settings_of(request))
                parts[transfer.payment_id or ""]["transfers"].append(shown)
    return parts


def _spread(parts: Parts, name: str) -> None:
    for part in parts.values():
        part[name] = []


def _expanded(request: Request, caller: Caller, payment: Payment, parts: Parts) -> ExpandedPayment:
    view = _present(request, caller, payment)
    return ExpandedPayment.model_construct(**dict(view), **parts[payment.id])


@router.patch(
    "/payments/{payment_id}",
    response_model=PaymentView,
    responses=problems(*AUTH, NotFound),
    summary="Change a payment's texts",
)
async def change_payment(
    request: Request, payment_id: PaymentPath, body: ChangePayment, caller: Writer
) -> Response:
    """Change your own words about a payment. What is absent stays, `null` removes."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        payment = await service.change(unit, payment_id, body, mode=caller.mode)
    return json_answer(_present(request, caller, payment).model_dump_json())


@router.post(
    "/payments/{payment_id}/deliver",
    response_model=PaymentView,
    responses=problems(*AUTH, *ONCE, NotFound, Conflict),
    tags=["escrow"],
    summary="Say that you delivered",
)
async def deliver(request: Request, payment_id: PaymentPath, caller: Writer, key: Key) -> Response:
    """Start the days after which an escrow payment is released without its payer."""

    async def work(unit: Unit) -> PaymentView:
        payment = await escrow.deliver(unit, payment_id, mode=caller.mode)
        return _present(request, caller, payment)

    digest = request_digest("deliver", {"payment_id": payment_id})
    identity = identity_of(request, caller)
    return await answer_once(
        database_of(request), identity, once(caller, key, digest), work, status=200
    )


@router.post(
    "/payments/{payment_id}/dispute",
    response_model=PaymentView,
    responses=problems(*AUTH, *ONCE, NotFound, Conflict),
    tags=["escrow"],
    summary="Dispute an escrow payment",
)
async def dispute(
    request: Request, payment_id: PaymentPath, body: OpenDispute, caller: Disputer, key: Key
) -> Response:
    """Stop the release of an escrow payment until an admin decides."""

    async def work(unit: Unit) -> PaymentView:
        payment = await escrow.dispute(
            unit, payment_id, opened_by=caller.actor, reason=body.reason, mode=caller.mode
        )
        return _present(request, caller, payment)

    digest = request_digest("dispute", {"payment_id": payment_id, **body.model_dump()})
    identity = identity_of(request, caller)
    return await answer_once(
        database_of(request), identity, once(caller, key, digest), work, status=200
    )


@router.post(
    "/payments/{payment_id}/accept",
    response_model=PaymentView,
    responses=problems(*AUTH, *ONCE, NotFound, Conflict, RateUnavailable),
    tags=["exceptions"],
    summary="Accept money that came otherwise",
)
async def accept(
    request: Request, payment_id: PaymentPath, body: AcceptMoney, caller: Writer, key: Key
) -> Response:
    """Take what came too little, too late or in another token as the payment's money.

    You are credited what it is worth at the current quote, at most the payment's amount.
    """

    async def work(unit: Unit) -> PaymentView:
        rates = cast("Rates", request.app.state.rates)
        payment = await exceptions.accept(unit, payment_id, body, mode=caller.mode, rates=rates)
        return _present(request, caller, payment)

    digest = request_digest("accept", {"payment_id": payment_id, **body.model_dump()})
    identity = identity_of(request, caller)
    return await answer_once(
        operator_of(request), identity, once(caller, key, digest), work, status=200
    )


for more in (refund_routes, event_routes, policy_routes, admin_routes, chain_routes):
    router.include_router(more.router)
