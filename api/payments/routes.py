"""HTTP for payments and refunds."""

from typing import Annotated, cast

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from api.contract import VND, Asset, PaymentStatus
from api.database import Unit
from api.errors import (
    Conflict,
    IdempotencyKeyInProgress,
    IdempotencyKeyMissing,
    IdempotencyKeyReused,
    InsufficientBalance,
    NotAuthenticated,
    NotFound,
    NotPermitted,
    RateUnavailable,
    RefundExceedsPayment,
)
from api.idempotency import Request as IdempotentRequest
from api.idempotency import request_digest
from api.merchants.auth import holder_with, identity_of
from api.merchants.model import KeyHolder
from api.payments import refunds, service
from api.payments.model import (
    CreatePayment,
    CreateRefund,
    PaymentId,
    PaymentList,
    PaymentView,
    RefundView,
    present,
    present_refund,
)
from api.rates.service import Rates
from api.settings import ApiSettings
from api.web import answer_once, database_of, idempotency_key, json_answer, problems

router = APIRouter(prefix="/api/v1", tags=["payments"])
Reader = Annotated[KeyHolder, Depends(holder_with("payments:read"))]
Writer = Annotated[KeyHolder, Depends(holder_with("payments:write"))]
Refunder = Annotated[KeyHolder, Depends(holder_with("refunds:write"))]
Key = Annotated[str, Depends(idempotency_key)]
PaymentPath = Annotated[PaymentId, Path(examples=["pay_01jz8w5k6h7m9n0p2q3r4s5t6v"])]

_AUTH = (NotAuthenticated, NotPermitted)
_ONCE = (IdempotencyKeyMissing, IdempotencyKeyInProgress, IdempotencyKeyReused)


def _settings(request: Request) -> ApiSettings:
    return cast("ApiSettings", request.app.state.settings)


@router.post(
    "/payments",
    status_code=201,
    response_model=PaymentView,
    responses=problems(*_AUTH, *_ONCE, RateUnavailable),
    summary="Create a payment",
)
async def create_payment(
    request: Request, body: CreatePayment, holder: Writer, key: Key
) -> Response:
    """Lock a quote and get what a payer needs: a Solana Pay link and a page to show it."""
    settings = _settings(request)

    async def work(unit: Unit) -> PaymentView:
        rates = cast("Rates", request.app.state.rates)
        payment = await service.create(
            unit,
            body,
            mode=holder.mode,
            rate=await rates.current(Asset(body.asset), VND),
            chain=settings,
        )
        return present(payment, merchant_name=holder.merchant_name, public_url=settings.public_url)

    once = IdempotentRequest(key, request_digest("create payment", body.model_dump()))
    identity = identity_of(request, holder)
    return await answer_once(database_of(request), identity, once, work, status=201)


@router.get(
    "/payments/{payment_id}",
    response_model=PaymentView,
    responses=problems(*_AUTH, NotFound),
    summary="Read a payment",
)
async def get_payment(request: Request, payment_id: PaymentPath, holder: Reader) -> Response:
    """Return a payment of yours as it stands."""
    async with database_of(request).unit_of_work(identity_of(request, holder)) as unit:
        payment = await service.get(unit, payment_id, mode=holder.mode)
    view = present(
        payment, merchant_name=holder.merchant_name, public_url=_settings(request).public_url
    )
    return json_answer(view.model_dump_json())


@router.get(
    "/payments",
    response_model=PaymentList,
    responses=problems(*_AUTH),
    summary="List payments",
)
async def list_payments(
    *,
    request: Request,
    holder: Reader,
    limit: Annotated[int, Query(ge=1, le=service.MOST_PER_PAGE)] = 20,
    starting_after: Annotated[PaymentId | None, Query()] = None,
    ending_before: Annotated[PaymentId | None, Query()] = None,
    status: Annotated[PaymentStatus | None, Query()] = None,
) -> Response:
    """List your payments, newest first; page on with the id of the last one you got."""
    async with database_of(request).unit_of_work(identity_of(request, holder)) as unit:
        payments, has_more = await service.page(
            unit,
            mode=holder.mode,
            status=status,
            limit=limit,
            starting_after=starting_after,
            ending_before=ending_before,
        )
    public_url = _settings(request).public_url
    view = PaymentList(
        data=[
            present(payment, merchant_name=holder.merchant_name, public_url=public_url)
            for payment in payments
        ],
        has_more=has_more,
    )
    return json_answer(view.model_dump_json())


@router.post(
    "/payments/{payment_id}/refunds",
    status_code=201,
    response_model=RefundView,
    responses=problems(
        *_AUTH, *_ONCE, NotFound, Conflict, RefundExceedsPayment, InsufficientBalance
    ),
    tags=["refunds"],
    summary="Request a refund",
)
async def request_refund(
    request: Request, payment_id: PaymentPath, body: CreateRefund, holder: Refunder, key: Key
) -> Response:
    """Reserve the whole or a part of a completed payment for its payer."""

    async def work(unit: Unit) -> RefundView:
        return present_refund(
            await refunds.request_refund(unit, payment_id, body, mode=holder.mode)
        )

    content = {"payment_id": payment_id, **body.model_dump()}
    once = IdempotentRequest(key, request_digest("request refund", content))
    identity = identity_of(request, holder)
    return await answer_once(database_of(request), identity, once, work, status=201)
