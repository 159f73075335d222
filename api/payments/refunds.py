"""Ask for a refund: the row and the reservation of its money are one unit of work.

Never more than was paid, however many ask at once: PostgreSQL queues refunds of one payment behind
its row lock. The money leaves `merchant_available` for `refunds_payable` at once, so it cannot be
spent twice; sending it is a later step.
"""

from api.contract import PaymentStatus
from api.database import Unit, new_id, refused_by
from api.errors import Conflict, NotFound, RefundExceedsPayment
from api.ledger.model import AccountKind, Entry, EntryKind, Leg
from api.ledger.service import post_entry
from api.payments import store
from api.payments.model import CreateRefund, Refund


async def request_refund(unit: Unit, payment_id: str, body: CreateRefund, *, mode: str) -> Refund:
    """Reserve the amount and write the request down.

    Raises NotFound, Conflict where the payment is not completed, RefundExceedsPayment where it has
    not that much left, InsufficientBalance where the merchant has not.
    """
    payment = await store.lock(unit, payment_id)
    if payment is None or payment.mode != mode:
        raise NotFound("no payment has this id")
    if payment.status != PaymentStatus.COMPLETED:
        raise Conflict(f"only a completed payment can be refunded, this one is {payment.status}")
    refund_id, amount_minor = new_id("rfd"), int(body.amount)
    with refused_by(
        "refunds_within_payment",
        RefundExceedsPayment("ask for at most what earlier refunds have left"),
    ):
        refund = await store.add_refund(
            unit,
            refund_id=refund_id,
            payment=payment,
            amount_minor=amount_minor,
            reason=body.reason,
        )
    merchant_id, asset = payment.merchant_id, payment.currency
    await post_entry(
        unit,
        Entry(
            kind=EntryKind.REFUND_REQUESTED,
            key=f"refund_requested:{refund_id}",
            merchant_id=merchant_id,
            payment_id=payment.id,
            refund_id=refund_id,
            legs=(
                Leg(AccountKind.MERCHANT_AVAILABLE, asset, amount_minor, merchant_id),
                Leg(AccountKind.REFUNDS_PAYABLE, asset, -amount_minor, merchant_id),
            ),
        ),
    )
    return refund
