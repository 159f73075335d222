"""HTTP for the ledger: a merchant's balances and statements; reversals and proof for admins."""

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request, Response

from api.errors import Conflict, InsufficientBalance, NotAuthenticated, NotFound, NotPermitted
from api.ledger import service
from api.ledger.model import AccountKind
from api.ledger.views import (
    AnyAsset,
    BalanceView,
    EntryId,
    EntryView,
    LineId,
    MerchantAccount,
    ReverseEntry,
    StatementView,
    TrialBalanceView,
    present_balances,
    present_entry,
    present_line,
    present_trial_balance,
)
from api.paging import DEFAULT_PER_PAGE, MOST_PER_PAGE
from api.people.auth import admin_with, caller_with, identity_of
from api.people.model import Caller
from api.security import Mode
from api.web import Moment, database_of, json_answer, operator_of, problems

router = APIRouter(prefix="/api/v1", tags=["balance"])
Reader = Annotated[Caller, Depends(caller_with("balance:read"))]
BooksReader = Annotated[Caller, Depends(admin_with("balance:read"))]
Corrector = Annotated[Caller, Depends(admin_with("payments:write"))]
EntryPath = Annotated[EntryId, Path(examples=["ent_01jz8w5k6h7m9n0p2q3r4s5t6v"])]

_AUTH = (NotAuthenticated, NotPermitted)


@router.get(
    "/balance",
    response_model=BalanceView,
    responses=problems(*_AUTH),
    summary="Read the balance",
)
async def get_balance(request: Request, caller: Reader, at: Moment = None) -> Response:
    """Return what is yours, now or at a past moment: in all, held, free, and waiting in escrow."""
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        balances = await service.balances(unit, caller.mode, at=at)
    return json_answer(present_balances(balances, mode=caller.mode, at=at).model_dump_json())


@router.get(
    "/balance/statement",
    response_model=StatementView,
    responses=problems(*_AUTH),
    summary="Read the statement of an account",
)
async def get_statement(
    *,
    request: Request,
    caller: Reader,
    account: Annotated[MerchantAccount, Query()] = "merchant_available",
    asset: Annotated[AnyAsset, Query()] = "VND",
    since: Moment = None,
    until: Moment = None,
    limit: Annotated[int, Query(ge=1, le=MOST_PER_PAGE)] = DEFAULT_PER_PAGE,
    starting_after: Annotated[LineId | None, Query()] = None,
) -> Response:
    """List movements on one of your accounts, oldest first, each with the balance after it.

    The window is from `since` up to and without `until`; page on with the id of the last line.
    """
    async with database_of(request).unit_of_work(identity_of(request, caller)) as unit:
        lines = await service.statement(
            unit,
            caller.mode,
            kind=AccountKind(account),
            asset=asset,
            since=since,
            until=until,
            after=None if starting_after is None else _place(starting_after),
            limit=limit + 1,
        )
    view = StatementView(
        mode=caller.mode,
        account=account,
        asset=asset,
        data=[present_line(line, asset) for line in lines[:limit]],
        has_more=len(lines) > limit,
    )
    return json_answer(view.model_dump_json())


def _place(line_id: str) -> tuple[str, int]:
    entry_id, _, seq = line_id.partition(".")
    return entry_id, int(seq)


@router.post(
    "/admin/entries/{entry_id}/reverse",
    response_model=EntryView,
    responses=problems(*_AUTH, NotFound, Conflict, InsufficientBalance),
    tags=["admin"],
    summary="Reverse an entry",
)
async def reverse_entry(
    request: Request, entry_id: EntryPath, body: ReverseEntry, admin: Corrector
) -> Response:
    """Undo an entry by its mirror image and return that; sent again, it is the same one.

    Statuses stay: what the entry was for must be put right beside it.
    """
    async with operator_of(request).unit_of_work(identity_of(request, admin)) as unit:
        reversal_id = await service.reverse_entry(
            unit, entry_id, key=f"reversal:{entry_id}", reason=body.reason
        )
        reversal = await service.get_entry(unit, reversal_id)
    return json_answer(present_entry(reversal).model_dump_json())


@router.get(
    "/admin/trial-balance",
    response_model=TrialBalanceView,
    responses=problems(*_AUTH),
    tags=["admin"],
    summary="Prove that the books balance",
)
async def get_trial_balance(
    request: Request, admin: BooksReader, mode: Annotated[Mode, Query()] = "live"
) -> Response:
    """Return what all accounts of a mode stand at, by asset and kind; each asset sums to zero."""
    async with operator_of(request).unit_of_work(identity_of(request, admin)) as unit:
        lines = await service.trial_balance(unit, mode)
    return json_answer(present_trial_balance(lines, mode=mode).model_dump_json())
