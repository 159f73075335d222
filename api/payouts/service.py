"""Payouts: one person asks, another approves what exactly was asked, then money moves.

The amount is held from the request on, in the unit of work of the request, so of many requests at
once those that would overdraw are refused; there is no moment at which the balance is read and
trusted. An approval is of one revision: whoever amends a payout makes a new one. Each step locks
the payout's row first, so of many who take it at once one acts, and the others get a Conflict.
"""

from datetime import timedelta

from api.contract import PayoutStatus
from api.database import Unit, new_id, refused_by
from api.errors import Conflict, NotFound, NotPermitted
from api.ledger.model import AccountKind, Entry, EntryKind, Hold, Leg
from api.ledger.service import pending_hold, place_hold, post_entry, void_hold
from api.paging import Paging
from api.payouts import store
from api.payouts.model import AmendPayout, CreatePayout, Payout
from api.security import Mode


async def request_payout(
    unit: Unit, body: CreatePayout, *, mode: Mode, request_days: int
) -> Payout:
    """Hold the amount and write the request down, in the name of the unit's actor.

    Nobody's approval within `request_days` cancels it. Raises InsufficientBalance.
    """
    payout = await store.add(
        unit,
        payout_id=new_id("pyo"),
        mode=mode,
        amount_minor=int(body.amount),
        asset=body.asset,
        destination=body.destination,
    )
    await _hold(unit, payout, mode=mode, request_days=request_days)
    return payout


async def amend(
    unit: Unit, payout_id: str, body: AmendPayout, *, mode: Mode, request_days: int
) -> Payout:
    """Change what was asked for, as the next revision, which the unit's actor asks for.

    The amount of the old terms is given back, that of the new ones held. Terms that are the same
    change nothing. Raises NotFound, InsufficientBalance, and Conflict where the payout was
    approved or ended, or is not at `body.revision` any more.
    """
    payout = await _lock(unit, payout_id, mode=mode)
    _demand(payout, PayoutStatus.REQUESTED)
    if body.revision is not None:
        _demand_revision(payout, body.revision)
    amount_minor = payout.amount_minor if body.amount is None else int(body.amount)
    destination = payout.destination if body.destination is None else body.destination
    if (amount_minor, destination) == (payout.amount_minor, payout.destination):
        return payout
    amended = await store.amend(unit, payout_id, amount_minor=amount_minor, destination=destination)
    await void_hold(unit, payout_id)
    await _hold(unit, amended, mode=mode, request_days=request_days)
    return amended


async def approve(unit: Unit, payout_id: str, *, mode: Mode | None, revision: int) -> Payout:
    """Approve a payout at the revision that was read, in the name of the unit's actor, a person.

    An admin approves in either mode: None. Raises NotFound, NotPermitted where the actor asked for
    it, Conflict where the payout is not requested any more or the revision moved on.
    """
    payout = await _lock(unit, payout_id, mode=mode)
    _demand(payout, PayoutStatus.REQUESTED)
    _demand_revision(payout, revision)
    if payout.requested_by == unit.identity.actor:
        raise NotPermitted("who asked for a payout does not approve it: ask another person")
    with refused_by("payouts_second_person", NotPermitted("a person approves, never a key")):
        return await store.approve(unit, payout_id)


async def cancel(unit: Unit, payout_id: str, *, mode: Mode) -> Payout:
    """Take a request back before it is sent, and its money; raises NotFound, Conflict."""
    payout = await _lock(unit, payout_id, mode=mode)
    _demand(payout, PayoutStatus.REQUESTED, PayoutStatus.APPROVED)
    cancelled = await store.move(unit, payout_id, PayoutStatus.CANCELLED)
    await void_hold(unit, payout_id)
    return cancelled


async def send(unit: Unit, payout_id: str, *, bank_reference: str) -> Payout:
    """Write down that the bank was told to pay; from now on only the bank can stop it.

    Raises NotFound, Conflict where the payout is not approved.
    """
    payout = await _lock(unit, payout_id, mode=None)
    _demand(payout, PayoutStatus.APPROVED)
    return await store.send(unit, payout_id, bank_reference=bank_reference)


async def settle(unit: Unit, payout_id: str) -> Payout:
    """Book that a payout arrived: what was held leaves the merchant's balance, and our dong.

    Raises NotFound, Conflict where the payout is not sent.
    """
    payout = await _lock(unit, payout_id, mode=None)
    _demand(payout, PayoutStatus.SENT)
    settled = await store.move(unit, payout_id, PayoutStatus.SETTLED)
    held = await pending_hold(unit, payout_id)
    entry = Entry(
        kind=EntryKind.PAYOUT_COMPLETED,
        key=f"payout_completed:{payout_id}",
        mode=payout.mode,
        merchant_id=payout.merchant_id,
        payout_id=payout_id,
        legs=(
            Leg(
                AccountKind.MERCHANT_AVAILABLE,
                payout.asset,
                payout.amount_minor,
                payout.merchant_id,
            ),
            Leg(AccountKind.LIQUIDITY, payout.asset, -payout.amount_minor),
        ),
        description=payout.bank_reference or "",
    )
    await post_entry(unit, entry, posts_hold=held)
    return settled


async def fail(unit: Unit, payout_id: str, *, reason: str) -> Payout:
    """End a payout that will not arrive and give its money back; raises NotFound, Conflict."""
    payout = await _lock(unit, payout_id, mode=None)
    _demand(payout, PayoutStatus.REQUESTED, PayoutStatus.APPROVED, PayoutStatus.SENT)
    failed = await store.fail(unit, payout_id, reason=reason)
    await void_hold(unit, payout_id)
    return failed


async def get(unit: Unit, payout_id: str, *, mode: Mode | None) -> Payout:
    """Return a payout that the unit may see, in a mode or in either; raises NotFound."""
    return _found(await store.get(unit, payout_id), mode)


async def page(
    unit: Unit, paging: Paging, *, mode: Mode, status: PayoutStatus | None
) -> tuple[list[Payout], bool]:
    """Return a page of payouts, newest first: of the unit's merchant, or of all without one."""
    merchant_id = unit.identity.merchant_id
    return await store.page(unit, paging, merchant_id=merchant_id, mode=mode, status=status)


async def expire_payouts(unit: Unit, limit: int) -> int:
    """Cancel up to `limit` requests that nobody approved in time, and give their money back.

    Returns how many; under the watcher's role.
    """
    return await store.expire(unit, limit=limit)


async def _lock(unit: Unit, payout_id: str, *, mode: Mode | None) -> Payout:
    return _found(await store.lock(unit, payout_id), mode)


def _found(payout: Payout | None, mode: Mode | None) -> Payout:
    if payout is None or mode not in {None, payout.mode}:
        raise NotFound("no payout has this id")
    return payout


def _demand(payout: Payout, *statuses: PayoutStatus) -> None:
    if payout.status not in statuses:
        wanted = " or ".join(statuses)
        raise Conflict(f"this takes a payout that is {wanted}, and this one is {payout.status}")


def _demand_revision(payout: Payout, revision: int) -> None:
    if payout.revision != revision:
        raise Conflict(f"the payout is at revision {payout.revision} now: read it again")


async def _hold(unit: Unit, payout: Payout, *, mode: Mode, request_days: int) -> None:
    """Hold what this revision of a payout will take."""
    await place_hold(
        unit,
        Hold(
            key=f"payout:{payout.id}:{payout.revision}",
            mode=mode,
            kind=AccountKind.MERCHANT_AVAILABLE,
            asset=payout.asset,
            amount_minor=payout.amount_minor,
            merchant_id=payout.merchant_id,
            payout_id=payout.id,
            expires_at=await unit.now() + timedelta(days=request_days),
        ),
    )
