"""The way back of money that came too little, too late, in another token, or for nobody.

Such money waits in suspense, and what waits there for a payment is what the ledger says. It is
accepted as the payment by its merchant (here), goes back to its payer (`refunds`), or, where it
named no payment, is assigned to one or returned by an admin (here). Each is one unit of work behind
the payment's row lock: of many who ask at once one acts, the others get a Conflict.
"""

from dataclasses import dataclass

from api.audit import service as audit
from api.chain import store as chain_store
from api.chain.model import Receipt, TokenAccount, Transfer
from api.contract import VND, Asset, PaymentStatus, RefundSource
from api.database import Unit
from api.errors import Conflict, FieldError, InvalidRequest, NotFound
from api.ledger.model import AccountKind, Entry, EntryKind, Leg
from api.ledger.service import place_hold, post_entry
from api.paging import Paging
from api.payments import losses, service, store
from api.payments.decision import escrow_hold, fee_now, settled_entry, settled_status, walk
from api.payments.model import AcceptMoney, AssignTransfer, Payment, ReturnTransfer, Waiting
from api.payments.settlement import take, walk_along
from api.rates.model import Quote, rate_string, token_amount_minor, worth_minor
from api.rates.service import Rates
from api.security import Mode
from api.settings import ChainSettings

_ACCEPTABLE = frozenset(
    {
        PaymentStatus.CREATED,
        PaymentStatus.PENDING,
        PaymentStatus.EXPIRED,
        PaymentStatus.FAILED,
    }
)


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What waiting tokens are accepted for: `used_minor` settle it, the rest is the payer's."""

    settled_minor: int
    used_minor: int
    excess_minor: int


def acceptance(payment: Payment, token: Asset, token_minor: int, quote: Quote) -> Acceptance:
    """Return what tokens are accepted for at a quote: their worth, never more than was asked."""
    worth = worth_minor(token_minor, payment.currency, token, quote.value)
    if worth <= payment.amount_minor:
        return Acceptance(worth, token_minor, 0)
    used = token_amount_minor(payment.amount_minor, payment.currency, token, quote.value)
    return Acceptance(payment.amount_minor, used, token_minor - used)


async def accept(
    unit: Unit, payment_id: str, body: AcceptMoney, *, mode: Mode, rates: Rates
) -> Payment:
    """Take what waits for a payment as its money, at the current quote.

    Raises NotFound, InvalidRequest where two tokens wait and none is named, RateUnavailable, and
    Conflict where nothing waits, it is worth nothing, or the payment cannot take it.
    """
    payment = await service.lock(unit, payment_id, mode=mode)
    if payment.status not in _ACCEPTABLE:
        raise Conflict(f"a payment that is {payment.status} cannot take the money that waits")
    kept = await store.waiting(unit, payment.id)
    found = choose(kept, RefundSource.SUSPENSE, body.asset)
    if found is None:
        raise Conflict("no money waits for this payment")
    token = Asset(found.token)
    quote = await rates.quote(token, VND)
    accepted = acceptance(payment, token, found.amount_minor, quote)
    if accepted.settled_minor == 0:
        raise Conflict("what waits is worth less than one dong")
    terms = await store.terms(unit, payment.merchant_id)
    fee = fee_now(payment, accepted.settled_minor, terms)
    is_right_token = found.token == payment.asset
    way = walk(PaymentStatus(payment.status), settled_status(payment))
    await store.accept(
        unit,
        payment.id,
        status=await walk_along(unit, payment, way),
        received_minor=found.amount_minor if is_right_token else payment.received_minor,
        settled_minor=accepted.settled_minor,
        fee_minor=fee,
    )
    came = [Leg(AccountKind.SUSPENSE, token.value, found.amount_minor)]
    if accepted.excess_minor:
        excess = AccountKind.PAYER_EXCESS
        came.append(Leg(excess, token.value, -accepted.excess_minor, payment.merchant_id))
    entry = settled_entry(
        payment,
        came,
        settled_minor=accepted.settled_minor,
        fee=fee,
        mid=quote.mid,
        quoted=quote.value,
        description=f"accepted at {rate_string(quote.value)} ({quote.source})",
        losses=await losses.count(unit, payment.id),
    )
    await post_entry(unit, entry)
    await losses.recover(unit, payment, credited_minor=accepted.settled_minor - fee)
    if payment.is_escrow:
        await place_hold(unit, escrow_hold(payment, accepted.settled_minor))
    return await service.get(unit, payment.id)


def choose(kept: list[Waiting], source: RefundSource, asset: str | None) -> Waiting | None:
    """Return what waits at a source, of the token named or of the only one; None where nothing is.

    Raises InvalidRequest where two tokens wait and none is named.
    """
    found = [one for one in kept if one.source == source and one.token == (asset or one.token)]
    if len(found) > 1:
        error = FieldError(detail="two tokens wait, name one", pointer="/asset")
        raise InvalidRequest("1 field is not valid", errors=[error])
    return found[0] if found else None


async def close_if_all_is_back(unit: Unit, payment: Payment) -> None:
    """Note that an exception ended where nothing is kept aside for the payment any more."""
    if payment.exception is None or payment.exception_outcome is not None:
        return
    if not await store.waiting(unit, payment.id, sent_only=True):
        await store.close_exception(unit, payment.id, "refunded")


# Money that names nobody.


async def unassigned(unit: Unit, paging: Paging) -> tuple[list[Transfer], bool]:
    """Return a page of receipts that are no payment's, newest first, and whether more follow."""
    cursor = None if paging.cursor is None else _transfer_key(paging.cursor)
    found = await chain_store.unassigned(
        unit, cursor=cursor, newer=paging.is_backward, limit=paging.limit + 1
    )
    return paging.cut(found)


async def assign(
    unit: Unit, transfer_id: str, body: AssignTransfer, *, settings: ChainSettings
) -> Transfer:
    """Make a receipt that names nobody a payment's, and treat it as if it had named it.

    Raises NotFound, Conflict where it is somebody's already or was returned.
    """
    payment = await service.lock(unit, body.payment_id)
    transfer = await _nobodys(unit, transfer_id)
    token = settings.asset(transfer.mint)
    receipt = Receipt(
        signature=transfer.signature,
        account=TokenAccount(
            transfer.token_account, settings.collection_wallet, transfer.mint, token
        ),
        amount_minor=transfer.amount_minor,
        payer_address=transfer.payer_address or "",
        keys=(),
        slot=transfer.slot,
        block_time=transfer.block_time,
        is_assigned=True,
    )
    await chain_store.assign(unit, transfer, payment.id)
    # Into the payment's books and out of nobody's, which may be of the other mode. In this order,
    # so that the merchant's event counter is locked before any account, as everywhere.
    await take(unit, payment, receipt, grace_s=settings.expiry_grace_s)
    description = f"{transfer.signature} to {payment.id}"
    await _leave_suspense(unit, EntryKind.TRANSFER_ASSIGNED, transfer, token, description)
    await audit.record(
        unit,
        action="transfer.assigned",
        subject_type="transfer",
        subject_id=transfer.signature,
        after={"payment_id": payment.id, "reason": body.reason},
    )
    return await chain_store.get(unit, transfer.signature, transfer.token_account)


async def give_back(
    unit: Unit, transfer_id: str, body: ReturnTransfer, *, settings: ChainSettings
) -> Transfer:
    """Note that a receipt that names nobody went back to its sender.

    Raises NotFound, Conflict where it is somebody's already or was returned.
    """
    transfer = await _nobodys(unit, transfer_id)
    token = settings.asset(transfer.mint)
    await _leave_suspense(unit, EntryKind.TRANSFER_RETURNED, transfer, token, body.signature)
    await audit.record(
        unit,
        action="transfer.returned",
        subject_type="transfer",
        subject_id=transfer.signature,
        after={"signature": body.signature, "reason": body.reason},
    )
    return transfer


async def _nobodys(unit: Unit, transfer_id: str) -> Transfer:
    signature, token_account = _transfer_key(transfer_id)
    transfer = await chain_store.lock(unit, signature, token_account)
    if transfer is None:
        raise NotFound("no transfer has this id")
    if transfer.payment_id is not None:
        raise Conflict(f"this transfer is {transfer.payment_id}'s")
    if transfer.commitment != "finalized":
        raise Conflict("wait until the transfer is final")
    if await chain_store.was_returned(unit, transfer):
        raise Conflict("this transfer went back to its sender")
    return transfer


async def _leave_suspense(
    unit: Unit, kind: EntryKind, transfer: Transfer, token: Asset, description: str
) -> None:
    entry = Entry(
        kind=kind,
        key=f"{kind.value}:{transfer.signature}:{transfer.token_account}",
        mode=await chain_store.books_of(unit, transfer),
        legs=(
            Leg(AccountKind.SUSPENSE, token.value, transfer.amount_minor),
            Leg(AccountKind.CRYPTO_POOL, token.value, -transfer.amount_minor),
        ),
        description=description,
    )
    await post_entry(unit, entry)


def _transfer_key(transfer_id: str) -> tuple[str, str]:
    signature, _, token_account = transfer_id.partition(":")
    return signature, token_account
