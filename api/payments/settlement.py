"""What a receipt does to a payment: shown, booked, and taken back where the chain took it back.

`decision` says what a receipt means; here it is applied in one unit of work: the receipt's row,
each status as a change of its own, and balanced entries. What is booked is booked at finalized, or
at confirmed where `confirmation` allows it for this payment; then finalized only marks the receipt
final, and a receipt that vanishes is undone (`losses`).

Lock order, here as everywhere: payment, its merchant's event counter, then accounts.
"""

from datetime import timedelta

from api.audit import service as audit
from api.chain import store as chain_store
from api.chain.model import Commitment, KnownTransfer, Receipt
from api.contract import PaymentStatus, RefundSource
from api.database import Unit
from api.ledger.service import place_hold, post_entry
from api.payments import confirmation, losses, store
from api.payments.decision import (
    OPEN,
    UNPAID,
    decide,
    entries,
    escrow_hold,
    fee_now,
    is_late,
    settles_for,
    suspended_entry,
    walk,
)
from api.payments.model import Payment


async def settle(
    unit: Unit,
    receipt: Receipt,
    *,
    grace_s: int,
    commitment: Commitment = Commitment.FINALIZED,
) -> str | None:
    """Record and book a receipt, once; return its payment's id, if it names one.

    Finalized, or confirmed where `confirmation` says that this is enough: then the same receipt at
    finalized is only marked final. Called again for the same receipt it changes nothing. At
    confirmed, what is not simply a payment's money is shown and waits (see `see`).
    """
    payment = await _named_payment(unit, receipt)
    payment_id = None if payment is None else payment.id
    if commitment is Commitment.CONFIRMED:
        if payment is not None and await _settle_early(unit, payment, receipt, grace_s=grace_s):
            return payment_id
        return await see(unit, receipt, grace_s=grace_s)
    news = await chain_store.finalize(unit, receipt, payment_id)
    if news is None:
        return payment_id
    if payment is None:
        await post_entry(unit, suspended_entry(receipt, None, receipt.amount_minor))
    elif not news.was_booked:
        await take(unit, payment, receipt, grace_s=grace_s)
    elif news.was_minor != receipt.amount_minor or is_late(
        payment.expires_at, receipt.block_time, grace_s
    ):
        # A fork put it elsewhere: after the payment's end, or where it brought another amount.
        await _book_anew(unit, payment, receipt.signature, [receipt], grace_s=grace_s)
    return payment_id


async def _settle_early(unit: Unit, payment: Payment, receipt: Receipt, *, grace_s: int) -> bool:
    """Book a confirmed receipt where policy allows it; say whether it is booked."""
    if await confirmation.books_at(unit, payment) is not Commitment.CONFIRMED:
        return False
    terms = await store.terms(unit, payment.merchant_id)
    decision = decide(
        payment, receipt, held_minor=0, grace_s=grace_s, tolerance_bps=terms.tolerance_bps
    )
    if not decision.settled_minor or decision.exception is not None:
        return False
    await chain_store.see(unit, receipt, payment.id)
    if await chain_store.book_early(unit, receipt):
        await take(unit, payment, receipt, grace_s=grace_s)
    return True


async def set_aside(unit: Unit, receipt: Receipt, *, reason: str) -> None:
    """Book a finalized receipt as nobody's, for an admin to assign: its payment cannot take it."""
    news = await chain_store.finalize(unit, receipt, None)
    if news is not None and not news.was_booked:
        await post_entry(unit, suspended_entry(receipt, None, receipt.amount_minor))
    await audit.record(
        unit,
        action="transfer.set_aside",
        subject_type="transfer",
        subject_id=receipt.signature,
        after={"token_account": receipt.account.address, "reason": reason},
    )


async def take(unit: Unit, payment: Payment, receipt: Receipt, *, grace_s: int) -> None:
    """Book a receipt as this payment's, which the unit of work has locked.

    The caller makes sure that it does so once.
    """
    terms = await store.terms(unit, payment.merchant_id)
    held_minor = 0
    if payment.status in UNPAID and payment.received_minor:
        # The ledger's word, not the payment's: what came before may have been reversed.
        held_minor = sum(
            kept.amount_minor
            for kept in await store.waiting(unit, payment.id)
            if kept.source == RefundSource.SUSPENSE and kept.token == payment.asset
        )
    decision = decide(
        payment,
        receipt,
        held_minor=held_minor,
        grace_s=grace_s,
        tolerance_bps=terms.tolerance_bps,
    )
    settles = decision.settled_minor > 0
    fee = fee_now(payment, decision.settled_minor, terms)
    last = await walk_along(unit, payment, decision.path)
    if last == PaymentStatus.CONFIRMING and not await _is_covered(unit, payment, grace_s=grace_s):
        # What was seen in time came late, or with less.
        last = PaymentStatus.PENDING
    await store.receive(
        unit,
        payment.id,
        status=last,
        exception=decision.exception,
        received_minor=decision.received_minor,
        payer_address=receipt.payer_address or None,
        settled_minor=decision.settled_minor if settles else payment.settled_minor,
        fee_minor=fee if settles else payment.fee_minor,
    )
    # An open payment has lost nothing. One that lost may be complete again by what came beside, and
    # what else came is booked anew too.
    lost = 0 if payment.status in OPEN else await losses.count(unit, payment.id)
    for entry in entries(payment, receipt, decision, fee=fee, losses=lost):
        await post_entry(unit, entry)
    if settles and payment.status == PaymentStatus.FAILED:
        await losses.recover(unit, payment, credited_minor=decision.settled_minor - fee)
    if settles and payment.is_escrow:
        await place_hold(unit, escrow_hold(payment, decision.settled_minor))


async def walk_along(unit: Unit, payment: Payment, path: tuple[PaymentStatus, ...]) -> str:
    """Make every step of the path but the last, and return that last status for the caller to set.

    So the last change can carry what was received. Without a path that is the status it has.
    """
    was = payment.status
    for status in path[:-1]:
        await store.move(unit, payment.id, was=was, status=status)
        was = status
    return path[-1] if path else payment.status


async def see(unit: Unit, receipt: Receipt, *, grace_s: int) -> str | None:
    """Record a confirmed receipt and show it on its payment; nothing is booked yet.

    A payment becomes confirming when what was seen covers it, and pending before that. Returns the
    payment's id, if the receipt names one.
    """
    payment = await _named_payment(unit, receipt)
    news = await chain_store.see(unit, receipt, None if payment is None else payment.id)
    if payment is None or not news or payment.status not in OPEN:
        return None if payment is None else payment.id
    late = is_late(payment.expires_at, receipt.block_time, grace_s)
    if late or receipt.account.asset != payment.asset:
        return payment.id
    covered = await _is_covered(unit, payment, grace_s=grace_s)
    to = PaymentStatus.CONFIRMING if covered else PaymentStatus.PENDING
    was = PaymentStatus(payment.status)
    for status in walk(was, to):
        await store.move(unit, payment.id, was=was, status=status)
        was = status
    return payment.id


async def vanish(unit: Unit, transfer: KnownTransfer, *, grace_s: int) -> None:
    """Take back a confirmed receipt that a reorganisation removed.

    The rule: a confirming payment returns to pending when what is left no longer covers it, and one
    that was booked fails. Should the same chain transaction land again, it is seen again.
    """
    payment = None
    if transfer.payment_id is not None:
        payment = await store.lock(unit, transfer.payment_id)
    was_booked = await chain_store.drop(unit, transfer)
    if was_booked is None or payment is None:
        return
    if was_booked:
        await _book_anew(unit, payment, transfer.signature, [], grace_s=grace_s)
    elif payment.status == PaymentStatus.CONFIRMING and not await _is_covered(
        unit, payment, grace_s=grace_s
    ):
        await store.move(
            unit, payment.id, was=PaymentStatus.CONFIRMING, status=PaymentStatus.PENDING
        )


async def _book_anew(
    unit: Unit, payment: Payment, signature: str, landed: list[Receipt], *, grace_s: int
) -> None:
    """Undo what a lost receipt did, and decide again about what else came for its payment.

    What came beside it was the payer's excess, and may be what pays the payment now. `landed` is
    what the lost receipt became elsewhere on the chain, if it is final there.
    """
    others = await losses.take_back(unit, payment, signature)
    for receipt in sorted((*others, *landed), key=lambda one: (one.slot, one.signature)):
        now = await store.lock(unit, payment.id)
        if now is None:
            raise RuntimeError("a locked payment is missing")
        await take(unit, now, receipt, grace_s=grace_s)


async def _is_covered(unit: Unit, payment: Payment, *, grace_s: int) -> bool:
    """Say whether what is on its way in time, with what arrived, would settle the payment."""
    seen_minor = await chain_store.seen_minor(
        unit,
        payment_id=payment.id,
        mint=payment.mint,
        until=payment.expires_at + timedelta(seconds=grace_s),
    )
    terms = await store.terms(unit, payment.merchant_id)
    return settles_for(payment, seen_minor, terms.tolerance_bps) > 0


async def _named_payment(unit: Unit, receipt: Receipt) -> Payment | None:
    """Return and lock the payment whose reference the receipt carries.

    Two references in one chain transaction name none: one amount cannot pay two payments, and who
    is paid is then a person's decision.
    """
    payments = await store.lock_referenced(unit, receipt.keys)
    return payments[0] if len(payments) == 1 else None
