"""Refunds: asked for and held, then sent, then booked; or given up and the money free again.

A refund of the payment takes dong from the merchant and returns its share of the tokens that the
desk took, so that the whole refund returns all of them; a refund of excess or suspense returns
tokens that were never anybody else's. Never twice, however many ask: the payment's row lock puts
them in a queue, the hold takes the money at once, and PostgreSQL counts what was asked before.
Refunds of suspense hold a platform account, so they run as the operator.
"""

from dataclasses import dataclass

from api.contract import PaymentStatus, RefundSource, RefundStatus
from api.database import Unit, new_id, refused_by
from api.errors import Conflict, FieldError, InvalidRequest, NotFound, RefundExceedsPayment
from api.ledger.model import AccountKind, Entry, EntryKind, Hold, Leg
from api.ledger.service import pending_hold, place_hold, post_entry, void_hold
from api.paging import Paging
from api.payments import refund_store, service, store
from api.payments.exceptions import choose, close_if_all_is_back
from api.payments.model import CreateRefund, Payment, Refund
from api.rates.model import minor_units
from api.security import Mode

_SETTLED = frozenset({PaymentStatus.COMPLETED, PaymentStatus.RESOLVED})
_STILL_OPEN = frozenset({PaymentStatus.CREATED, PaymentStatus.PENDING, PaymentStatus.CONFIRMING})
_TOO_MUCH = "ask for at most what earlier refunds have left"
_HELD_ON = {
    RefundSource.PAYMENT: AccountKind.MERCHANT_AVAILABLE,
    RefundSource.EXCESS: AccountKind.PAYER_EXCESS,
    RefundSource.SUSPENSE: AccountKind.SUSPENSE,
}


@dataclass(frozen=True, slots=True)
class Part:
    """What a refund returns: an amount of `asset`, sent as tokens."""

    amount_minor: int
    asset: str
    token: str
    token_minor: int


async def request_refund(
    unit: Unit, payment_id: str, body: CreateRefund, *, mode: Mode | None
) -> Refund:
    """Hold the amount and write the request down.

    Raises NotFound, InvalidRequest, Conflict where the payment has no such money,
    RefundExceedsPayment where it has not that much left, InsufficientBalance where the merchant
    has not.
    """
    payment = await service.lock(unit, payment_id, mode=mode)
    destination = body.destination or payment.payer_address
    if destination is None:
        raise _bad("destination", "nobody is known to have paid; say where to send it")
    source = RefundSource(body.source)
    if source is RefundSource.PAYMENT:
        part = await _part_of_payment(unit, payment, body)
    else:
        part = await _part_of_tokens(unit, payment, body, source)
    wanted = Refund(
        id=new_id("rfd"),
        merchant_id=payment.merchant_id,
        payment_id=payment.id,
        status=RefundStatus.REQUESTED,
        amount_minor=part.amount_minor,
        asset=part.asset,
        reason=body.reason,
        source=source,
        token=part.token,
        token_amount_minor=part.token_minor,
        destination=destination,
        signature=None,
        requested_by=unit.identity.actor,
        failure_reason=None,
        created_at=payment.created_at,
        status_at=payment.created_at,
    )
    with (
        refused_by("refunds_within_payment", RefundExceedsPayment(_TOO_MUCH)),
        refused_by("refunds_wait_for_final", Conflict("wait until the payment's money is final")),
    ):
        refund = await refund_store.add(unit, wanted)
    is_merchants = source is not RefundSource.SUSPENSE
    await place_hold(
        unit,
        Hold(
            key=f"refund:{refund.id}",
            mode=payment.mode,
            kind=_HELD_ON[source],
            asset=part.asset,
            amount_minor=part.amount_minor,
            merchant_id=payment.merchant_id if is_merchants else None,
            refund_id=refund.id,
        ),
    )
    return refund


async def _part_of_payment(unit: Unit, payment: Payment, body: CreateRefund) -> Part:
    if payment.status not in _SETTLED or payment.settled_minor == 0:
        raise Conflict(f"only a settled payment can be refunded, this one is {payment.status}")
    share = await refund_store.share(unit, payment.id)
    if share is None:
        raise Conflict("what settled this payment was reversed: the ledger keeps nothing for it")
    left = payment.settled_minor - share.returned_minor
    amount = _wanted(body, payment.currency, left)
    tokens = tokens_of_share(
        taken_minor=share.taken_minor,
        settled_minor=payment.settled_minor,
        returned_minor=share.returned_minor + amount,
        returned_token_minor=share.returned_token_minor,
    )
    if tokens <= 0:
        raise _bad("amount", "this is less than the smallest unit of the token")
    return Part(amount, payment.currency, share.token, tokens)


def tokens_of_share(
    *, taken_minor: int, settled_minor: int, returned_minor: int, returned_token_minor: int
) -> int:
    """Return the tokens to send once `returned_minor` of what was settled has gone back.

    Rounded down in sum rather than each time, so that the last refund returns what is left.
    """
    return taken_minor * returned_minor // settled_minor - returned_token_minor


async def _part_of_tokens(
    unit: Unit, payment: Payment, body: CreateRefund, source: RefundSource
) -> Part:
    if source is RefundSource.SUSPENSE and payment.status in _STILL_OPEN:
        raise Conflict(f"the payment is {payment.status}: what waits may still become its money")
    found = choose(await store.waiting(unit, payment.id), source, body.asset)
    if found is None:
        raise Conflict(f"nothing is left to return from {body.source}")
    amount = _wanted(body, found.token, found.amount_minor)
    return Part(amount, found.token, found.token, amount)


def _wanted(body: CreateRefund, asset: str, left: int) -> int:
    """Return the amount asked for in minor units, all that is left without one."""
    if body.amount is None:
        wanted: int | None = left
    else:
        wanted = minor_units(body.amount, asset)
    if wanted is None:
        raise _bad("amount", f"{asset} has no such fraction")
    if wanted == 0 and body.amount is not None:
        raise _bad("amount", "more than nothing")
    if wanted > left or wanted == 0:
        raise RefundExceedsPayment(_TOO_MUCH)
    return wanted


def _bad(field: str, detail: str) -> InvalidRequest:
    error = FieldError(detail=detail, pointer=f"/{field}")
    return InvalidRequest("1 field is not valid", errors=[error])


async def complete(unit: Unit, refund_id: str, signature: str) -> Refund:
    """Book a refund that was sent; with the same signature again it is returned as it stands.

    Raises NotFound, Conflict where it ended otherwise or the signature sent another refund.
    """
    payment, refund = await _locked(unit, refund_id)
    if refund.status == RefundStatus.COMPLETED and refund.signature == signature:
        return refund
    if refund.status != RefundStatus.REQUESTED:
        raise Conflict(f"this refund is {refund.status}")
    hold_id = await pending_hold(unit, refund.id)
    taken = Conflict("this chain transaction has sent another refund")
    with refused_by("refunds_signature_key", taken):
        done = await refund_store.complete(unit, refund.id, signature)
    if done is None:
        raise RuntimeError("a locked refund changed")
    await post_entry(unit, completed_entry(payment, done), posts_hold=hold_id)
    if refund.source != RefundSource.PAYMENT:
        await close_if_all_is_back(unit, payment)
    return done


async def fail(unit: Unit, refund_id: str, reason: str) -> Refund:
    """Give up on a refund; its money is free again.

    Raises NotFound, Conflict where it ended already.
    """
    _, refund = await _locked(unit, refund_id)
    failed = await refund_store.fail(unit, refund.id, reason)
    if failed is None:
        raise Conflict(f"this refund is {refund.status}")
    await void_hold(unit, refund.id)
    return failed


async def _locked(unit: Unit, refund_id: str) -> tuple[Payment, Refund]:
    """Return and lock a refund and, first, its payment; raises NotFound."""
    payment_id = await refund_store.payment_of(unit, refund_id)
    if payment_id is None:
        raise NotFound("no refund has this id")
    payment = await service.lock(unit, payment_id)
    return payment, await refund_store.lock(unit, refund_id)


def completed_entry(payment: Payment, refund: Refund) -> Entry:
    """Return the entry by which tokens leave the pool and a refund's promise ends."""
    token, tokens, merchant_id = refund.token, refund.token_amount_minor, refund.merchant_id
    if refund.source == RefundSource.PAYMENT:
        legs = [
            Leg(AccountKind.MERCHANT_AVAILABLE, refund.asset, refund.amount_minor, merchant_id),
            Leg(AccountKind.LIQUIDITY, refund.asset, -refund.amount_minor),
            Leg(AccountKind.LIQUIDITY, token, tokens),
        ]
    elif refund.source == RefundSource.EXCESS:
        legs = [Leg(AccountKind.PAYER_EXCESS, token, tokens, merchant_id)]
    else:
        legs = [Leg(AccountKind.SUSPENSE, token, tokens)]
    legs.append(Leg(AccountKind.CRYPTO_POOL, token, -tokens))
    return Entry(
        kind=EntryKind.REFUND_COMPLETED,
        key=f"refund_completed:{refund.id}",
        mode=payment.mode,
        merchant_id=merchant_id,
        payment_id=payment.id,
        refund_id=refund.id,
        legs=tuple(leg for leg in legs if leg.amount_minor),
        description=refund.signature or "",
    )


async def get(unit: Unit, refund_id: str, *, mode: str) -> Refund:
    """Return a refund; raises NotFound, also for another merchant's or the other mode's."""
    refund = await refund_store.get(unit, refund_id, mode=mode)
    if refund is None:
        raise NotFound("no refund has this id")
    return refund


async def page(
    unit: Unit, paging: Paging, *, mode: str, status: str | None, payment_id: str | None
) -> tuple[list[Refund], bool]:
    """Return a page of refunds, newest first, and whether more follow in the direction asked."""
    found = await refund_store.page(
        unit,
        mode=mode,
        status=status,
        payment_id=payment_id,
        cursor=paging.cursor,
        newer=paging.is_backward,
        limit=paging.limit + 1,
    )
    return paging.cut(found)
