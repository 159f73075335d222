"""Find a payment for its payer, who knows its id and nothing of merchants."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, LiteralString, TypeVar

from api.chain import store as chain_store
from api.chain.model import Transfer
from api.checkout.view import Order
from api.database import Database, Identity, Unit
from api.errors import NotFound
from api.merchants import service as merchants
from api.payments import service as payments

T = TypeVar("T")

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
    identity = await _identity(database, payment_id, request_id)
    async with database.unit_of_work(identity) as unit:
        payment = await payments.show(unit, await payments.get(unit, payment_id))
        merchant, read_at = await merchants.get_merchant(unit), await unit.now()
    came: list[Transfer] = []
    if payment.settled_minor:
        async with operator.unit_of_work(identity) as unit:
            came = await chain_store.transfers_of(unit, [payment_id])
    return Order(payment, merchant, read_at, tuple(came))


async def act_on_order(
    database: Database,
    look_up: Database,
    payment_id: str,
    work: Callable[[Unit], Awaitable[T]],
    *,
    request_id: str,
) -> T:
    """Do something about a payment in one unit of work of `database`; raises NotFound.

    `look_up` is the pool that may ask whose payment it is.
    """
    identity = await _identity(look_up, payment_id, request_id)
    async with database.unit_of_work(identity) as unit:
        return await work(unit)


async def _identity(database: Database, payment_id: str, request_id: str) -> Identity:
    owner = await database.look_up(_Owner, _MERCHANT_OF_PAYMENT, {"id": payment_id})
    if owner is None or owner.merchant_id is None:
        raise NotFound("no payment has this id")
    return Identity("payer", owner.merchant_id, request_id)
