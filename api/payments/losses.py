"""Money that was booked at confirmed and then vanished: undone, and nobody's account overdrawn.

The entry that completed the payment is reversed in full. What its merchant no longer has free,
because it was paid out or is promised, is first given to it out of `chain_loss`, an account of the
platform that stands debit by exactly what such losses cost. Money that comes for the payment after
all takes that back from the merchant.
"""

from api.audit import service as audit
from api.chain.model import Receipt, TokenAccount
from api.contract import PaymentException
from api.database import Unit
from api.ledger.model import AccountKind, Entry, EntryKind, Leg
from api.ledger.service import post_entry, reverse_entry
from api.payments import loss_store, store
from api.payments.model import Payment, asset_of


async def count(unit: Unit, payment_id: str) -> int:
    """Return how often what completed a payment was reversed."""
    return await loss_store.count(unit, payment_id)


async def take_back(unit: Unit, payment: Payment, signature: str) -> list[Receipt]:
    """Undo the completion of a locked payment, which fails, and all that followed from it.

    Returns the receipts whose meaning hung on it: what came too much may not be too much any more.
    """
    completion = await loss_store.completion(unit, payment.id)
    covered_minor = 0
    if completion is not None:
        covered_minor = max(
            completion.credited_minor - await loss_store.free_minor(unit, payment), 0
        )
        if covered_minor:
            await post_entry(unit, _covered(payment, completion.entry_id, covered_minor))
        await _reverse(unit, completion.entry_id, signature)
    others = await loss_store.excess(unit, payment)
    for other in others:
        await _reverse(unit, other.entry_id, signature)
    has_other_token = await loss_store.has_other_token(unit, payment)
    await store.fail(
        unit, payment.id, exception=PaymentException.WRONG_ASSET if has_other_token else None
    )
    await audit.record(
        unit,
        action="transfer.lost",
        subject_type="transfer",
        subject_id=signature,
        after={"payment_id": payment.id, "covered_minor": covered_minor},
    )
    ours = payment.recipient, payment.mint, asset_of(payment)
    return [
        Receipt(
            signature=other.signature,
            account=TokenAccount(other.token_account, *ours),
            amount_minor=other.amount_minor,
            payer_address=other.payer_address or "",
            keys=(),
            slot=other.slot,
            block_time=other.block_time,
            is_assigned=other.is_assigned,
        )
        for other in others
    ]


async def recover(unit: Unit, payment: Payment, *, credited_minor: int) -> None:
    """Take from the merchant, whose payment is paid after all, what a loss was covered with."""
    recovered_minor = min(await loss_store.lost_minor(unit, payment.id), credited_minor)
    if recovered_minor == 0:
        return
    merchant_id, currency = payment.merchant_id, payment.currency
    entry = Entry(
        kind=EntryKind.LOSS_RECOVERED,
        key=f"loss_recovered:{payment.id}",
        mode=payment.mode,
        merchant_id=merchant_id,
        payment_id=payment.id,
        legs=(
            Leg(AccountKind.MERCHANT_AVAILABLE, currency, recovered_minor, merchant_id),
            Leg(AccountKind.CHAIN_LOSS, currency, -recovered_minor),
        ),
    )
    await post_entry(unit, entry)


def _covered(payment: Payment, entry_id: str, covered_minor: int) -> Entry:
    merchant_id, currency = payment.merchant_id, payment.currency
    return Entry(
        kind=EntryKind.LOSS_COVERED,
        key=f"loss_covered:{entry_id}",
        mode=payment.mode,
        merchant_id=merchant_id,
        payment_id=payment.id,
        legs=(
            Leg(AccountKind.CHAIN_LOSS, currency, covered_minor),
            Leg(AccountKind.MERCHANT_AVAILABLE, currency, -covered_minor, merchant_id),
        ),
    )


async def _reverse(unit: Unit, entry_id: str, signature: str) -> None:
    await reverse_entry(unit, entry_id, key=f"reversal:{entry_id}", reason=f"vanished: {signature}")
