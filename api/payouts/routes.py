"""HTTP for payouts and the balance."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from api.database import Unit
from api.errors import (
    IdempotencyKeyInProgress,
    IdempotencyKeyMissing,
    IdempotencyKeyReused,
    InsufficientBalance,
    NotAuthenticated,
    NotPermitted,
)
from api.idempotency import Request as IdempotentRequest
from api.idempotency import request_digest
from api.ledger import service as ledger
from api.merchants.auth import holder_with, identity_of
from api.merchants.model import KeyHolder
from api.payouts import service
from api.payouts.model import BalanceView, CreatePayout, PayoutView, present, present_balances
from api.web import answer_once, database_of, idempotency_key, json_answer, problems

router = APIRouter(prefix="/api/v1", tags=["payouts"])


@router.post(
    "/payouts",
    status_code=201,
    response_model=PayoutView,
    responses=problems(
        NotAuthenticated,
        NotPermitted,
        IdempotencyKeyMissing,
        IdempotencyKeyInProgress,
        IdempotencyKeyReused,
        InsufficientBalance,
    ),
    summary="Request a payout",
)
async def request_payout(
    request: Request,
    body: CreatePayout,
    holder: Annotated[KeyHolder, Depends(holder_with("payouts:write"))],
    key: Annotated[str, Depends(idempotency_key)],
) -> Response:
    """Reserve a part of your available balance for a transfer to you."""

    async def work(unit: Unit) -> PayoutView:
        return present(await service.request_payout(unit, body))

    once = IdempotentRequest(key, request_digest("request payout", body.model_dump()))
    identity = identity_of(request, holder)
    return await answer_once(database_of(request), identity, once, work, status=201)


@router.get(
    "/balance",
    response_model=BalanceView,
    responses=problems(NotAuthenticated, NotPermitted),
    summary="Read the balance",
)
async def get_balance(
    request: Request, holder: Annotated[KeyHolder, Depends(holder_with("balance:read"))]
) -> Response:
    """Return what is yours: available, reserved for payouts and refunds, owed to payers."""
    async with database_of(request).unit_of_work(identity_of(request, holder)) as unit:
        view = present_balances(await ledger.balances(unit))
    return json_answer(view.model_dump_json())
