"""Find a payment for its payer, who knows its id and nothing of merchants."""

from dataclasses import dataclass
from typing import Final, LiteralString

from api.chain import store as chain_store
from api.chain.model import Transfer
from api.checkout.view import Order
from api.database import Database, Identity
from api.errors import NotFound
from api.merchants import service as merchants
from api.payments import service as payments

_MERCHANT_OF_PAYMENT: Final[LiteralString] = "SELECT merchant_of_payment(%(id)s) AS merchant_id"


@dataclass(frozen=True, slots=True)
class _Owner:
    merchant_id: str | None


async def open_order(
    database: Database, operator: Database, payment_id: str, *, request_id: str
) -> Order:
    """Return a payment as its payer sees it, whom it pays and what paid it; raises NotFound.

    The look-up runs before any tenant is known; everything after it under that one merchant. A
    payment that was only created becomes pending by being looked at. Receipts are the platform's,
    so the operator reads them, and only of a payment that they have settled.
    """
    owner = await database.look_up(_Owner, _MERCHANT_OF_PAYMENT, {"id": payment_id})
    if owner is None or owner.merchant_id is None:
        raise NotFound("no payment has this id")
    identity = payer_of(owner.merchant_id, request_id)
    async with database.unit_of_work(identity) as unit:
        payment = await payments.show(unit, await payments.get(unit, payment_id))
        merchant, read_at = await merchants.get_merchant(unit), await unit.now()
    came: list[Transfer] = []
    if payment.settled_minor:
        async with operator.unit_of_work(identity) as unit:
            came = await chain_store.transfers_of(unit, [payment_id])
    return Order(payment, merchant, read_at, tuple(came))


def payer_of(merchant_id: str, request_id: str) -> Identity:
    """Return on whose behalf a payer of this merchant's acts."""
    return Identity("payer", merchant_id, request_id)
