"""Escrow: money that is the shop's only once the payer, time or an admin says so.

Each step is one function in one unit of work that locks the payment first, so of many who ask at
once one acts and the others find the step made. Where asking again for the same step is harmless
(delivered, released) the payment is returned as it stands; what the state forbids is a Conflict.

The whole amount lies in `escrow_liability_pool` under a hold. Release and resolution end the hold
by one entry; the fee is taken then, on what the shop gets. `deliver` and `dispute` book nothing and
run as the API; `release` and `resolve` run as the operator or the watcher.
"""

from api.contract import Asset, PaymentStatus
from api.database import Unit, new_id
from api.errors import Conflict, FieldError, InvalidRequest
from api.ledger.model import AccountKind, Entry, EntryKind, Leg
from api.ledger.service import pending_hold, post_entry
from api.paging import Paging
from api.payments import dispute_store, refund_store, service, store
from api.payments.decision import fee_minor
from api.payments.model import Dispute, Payment, ResolveDispute, merchant_part
from api.security import Mode

TIMER = "timer"
PAYER = "payer"
_RELEASABLE = frozenset({PaymentStatus.ESCROW_HELD, PaymentStatus.AWAITING_RELEASE})


async def deliver(unit: Unit, payment_id: str, *, mode: Mode) -> Payment:
    """Note that the merchant delivered: the money is released when its days of escrow are over.

    Raises NotFound, Conflict where the payment is not held in escrow.
    """
    payment = await _locked(unit, payment_id, mode)
    if payment.status == PaymentStatus.AWAITING_RELEASE:
        return payment
    if payment.status != PaymentStatus.ESCROW_HELD:
        raise Conflict(f"only a payment held in escrow is delivered, this one is {payment.status}")
    await _await_release(unit, payment)
    return await service.get(unit, payment_id)


async def release(unit: Unit, payment_id: str, *, released_by: str) -> Payment:
    """Give the shop its money; `released_by` is `payer`, or `timer` once the date has come.

    Raises NotFound, Conflict where there is nothing to release or, for the timer, not yet.
    """
    payment = await _locked(unit, payment_id, None)
    if payment.escrow_released_at is not None:
        return payment
    if payment.status not in _RELEASABLE:
        raise Conflict(f"only a payment held in escrow is released, this one is {payment.status}")
    if released_by == TIMER:
        due_at = payment.escrow_release_due_at
        if due_at is None or due_at > await unit.now():
            raise Conflict("the date of release has not come")
    if payment.status == PaymentStatus.ESCROW_HELD:
        await _await_release(unit, payment)
    terms = await store.terms(unit, payment.merchant_id)
    fee = fee_minor(payment.settled_minor, terms.fee_bps)
    hold_id = await pending_hold(unit, payment.id)
    await store.release(unit, payment.id, released_by=released_by, fee_minor=fee)
    await post_entry(unit, released_entry(payment, fee=fee), posts_hold=hold_id)
    return await service.get(unit, payment_id)


async def dispute(
    unit: Unit, payment_id: str, *, opened_by: str, reason: str, mode: Mode | None = None
) -> Payment:
    """Stop the release until an admin decides; raises NotFound, Conflict."""
    payment = await _locked(unit, payment_id, mode)
    if payment.status not in _RELEASABLE:
        raise Conflict(f"only a payment held in escrow is disputed, this one is {payment.status}")
    await store.move(unit, payment.id, was=payment.status, status=PaymentStatus.DISPUTED)
    await dispute_store.add(
        unit, dispute_id=new_id("dsp"), payment=payment, opened_by=opened_by, reason=reason
    )
    return await service.get(unit, payment_id)


async def open_disputes(unit: Unit, paging: Paging, *, mode: Mode) -> tuple[list[Dispute], bool]:
    """Return a page of disputes that wait for an admin, oldest first, and whether more follow."""
    found = await dispute_store.page(
        unit,
        mode=mode,
        cursor=paging.cursor,
        backward=paging.is_backward,
        limit=paging.limit + 1,
    )
    return paging.cut(found)


async def resolve(unit: Unit, payment_id: str, body: ResolveDispute) -> Payment:
    """Divide what escrow holds as an admin decided; the payer's part waits as excess to go back.

    Raises NotFound, InvalidRequest where the parts make no sense, Conflict where nothing is
    disputed.
    """
    payment = await _locked(unit, payment_id, None)
    if payment.status != PaymentStatus.DISPUTED:
        raise Conflict(f"only a disputed payment is resolved, this one is {payment.status}")
    part = merchant_part(payment.settled_minor, body)
    if part is None:
        raise _bad_part("for a split alone, less than what escrow holds")
    share = await refund_store.share(unit, payment.id)
    if share is None:
        raise RuntimeError("a disputed payment was settled by tokens")
    payer_minor = payment.settled_minor - part
    token_minor = share.taken_minor * payer_minor // payment.settled_minor
    if payer_minor and not token_minor:
        raise _bad_part("what is left for the payer is less than the smallest unit of the token")
    terms = await store.terms(unit, payment.merchant_id)
    fee = fee_minor(part, terms.fee_bps)
    hold_id = await pending_hold(unit, payment.id)
    await dispute_store.resolve(
        unit,
        payment.id,
        outcome=body.outcome,
        merchant_minor=part,
        resolved_by=unit.identity.actor,
        reason=body.reason,
    )
    await store.resolve(unit, payment.id, settled_minor=part, fee_minor=fee)
    entry = resolved_entry(
        payment, part, fee=fee, token=Asset(share.token), token_minor=token_minor
    )
    await post_entry(unit, entry, posts_hold=hold_id)
    return await service.get(unit, payment_id)


def released_entry(payment: Payment, *, fee: int) -> Entry:
    """Return the entry by which escrow pays the shop, less the fee."""
    currency, merchant_id = payment.currency, payment.merchant_id
    legs = (
        Leg(AccountKind.ESCROW_LIABILITY_POOL, currency, payment.settled_minor, merchant_id),
        Leg(AccountKind.MERCHANT_AVAILABLE, currency, fee - payment.settled_minor, merchant_id),
        Leg(AccountKind.FEE_REVENUE, currency, -fee),
    )
    return _ending(EntryKind.ESCROW_RELEASED, payment, legs)


def resolved_entry(
    payment: Payment, merchant_minor: int, *, fee: int, token: Asset, token_minor: int
) -> Entry:
    """Return the entry by which escrow pays the shop its part and the desk gives back the rest."""
    currency, merchant_id = payment.currency, payment.merchant_id
    payer_minor = payment.settled_minor - merchant_minor
    legs = (
        Leg(AccountKind.ESCROW_LIABILITY_POOL, currency, payment.settled_minor, merchant_id),
        Leg(AccountKind.MERCHANT_AVAILABLE, currency, fee - merchant_minor, merchant_id),
        Leg(AccountKind.FEE_REVENUE, currency, -fee),
        Leg(AccountKind.LIQUIDITY, currency, -payer_minor),
        Leg(AccountKind.LIQUIDITY, token.value, token_minor),
        Leg(AccountKind.PAYER_EXCESS, token.value, -token_minor, merchant_id),
    )
    return _ending(EntryKind.ESCROW_RESOLVED, payment, legs)


def _ending(kind: EntryKind, payment: Payment, legs: tuple[Leg, ...]) -> Entry:
    return Entry(
        kind=kind,
        key=f"{kind.value}:{payment.id}",
        mode=payment.mode,
        merchant_id=payment.merchant_id,
        payment_id=payment.id,
        legs=tuple(leg for leg in legs if leg.amount_minor),
    )


async def _await_release(unit: Unit, payment: Payment) -> None:
    terms = await store.terms(unit, payment.merchant_id)
    await store.await_release(unit, payment.id, days=terms.escrow_days)


async def _locked(unit: Unit, payment_id: str, mode: Mode | None) -> Payment:
    payment = await service.lock(unit, payment_id, mode=mode)
    if not payment.is_escrow:
        raise Conflict("this payment is not one with escrow")
    return payment


def _bad_part(detail: str) -> InvalidRequest:
    return InvalidRequest(
        "1 field is not valid", errors=[FieldError(detail=detail, pointer="/merchant_amount")]
    )
