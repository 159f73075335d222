"""Find a payment for its payer, who knows its id and nothing of merchants."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, LiteralString

from api.database import Database, Identity, Unit
from api.errors import NotFound
from api.merchants import service as merchants
from api.merchants.model import Merchant
from api.payments import service as payments
from api.payments.model import Payment

_MERCHANT_OF_PAYMENT: Final[LiteralString] = "SELECT merchant_of_payment(%(id)s) AS merchant_id"


@dataclass(frozen=True, slots=True)
class _Owner:
    merchant_id: str | None


async def open_order(
    database: Database, payment_id: str, *, request_id: str
) -> tuple[Payment, Merchant]:
    """Return a payment as its payer sees it, and whom it pays; raises NotFound.

    The look-up runs before any tenant is known; everything after it under that one merchant.
    """
    identity = await _identity(database, payment_id, request_id)
    async with database.unit_of_work(identity) as unit:
        payment = await payments.show(unit, await payments.get(unit, payment_id))
        return payment, await merchants.get_merchant(unit)


async def act_on_order(
    database: Database,
    look_up: Database,
    payment_id: str,
    work: Callable[[Unit], Awaitable[Payment]],
    *,
    request_id: str,
) -> Payment:
    """Let the payer act on a payment in one unit of work of `database`; raises NotFound.

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
