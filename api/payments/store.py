"""The SQL of payments and refunds. Row-level security limits every statement to its tenant."""

from dataclasses import dataclass
from typing import Any, Final, LiteralString

from psycopg.types.json import Jsonb

from api.database import Unit
from api.payments.model import Payment, Refund

_COLUMNS: Final[LiteralString] = (
    "id, merchant_id, mode, status, exception, amount_minor, currency, asset, asset_amount_minor,"
    " received_minor, rate, rate_source, chain, recipient, mint, reference, payer_address,"
    " payer_country, description, order_id, metadata, fee_minor, created_at, expires_at, status_at,"
    " completed_at"
)
_ADD: Final[LiteralString] = """
    INSERT INTO payments (id, merchant_id, mode, amount_minor, currency, asset, asset_amount_minor,
                          rate, rate_source, chain, recipient, mint, reference, payer_country,
                          description, order_id, metadata, expires_at)
    VALUES (%(id)s, %(merchant_id)s, %(mode)s, %(amount_minor)s, %(currency)s, %(asset)s,
            %(asset_amount_minor)s, %(rate)s, %(rate_source)s, %(chain)s, %(recipient)s, %(mint)s,
            %(reference)s, %(payer_country)s, %(description)s, %(order_id)s, %(metadata)s,
            %(expires_at)s)
"""


def _select(rest: LiteralString) -> LiteralString:
    return "SELECT " + _COLUMNS + " FROM payments " + rest  # noqa: S608 - constants alone


_GET: Final[LiteralString] = _select("WHERE id = %(id)s")
_LOCK: Final[LiteralString] = _select("WHERE id = %(id)s FOR NO KEY UPDATE")
_LOCK_REFERENCED: Final[LiteralString] = _select("""
    WHERE reference = ANY (%(keys)s)
    ORDER BY id
    FOR NO KEY UPDATE
""")
# Cursors are ids, which sort by time of creation; nothing is counted.
_OLDER: Final[LiteralString] = _select("""
    WHERE merchant_id = %(merchant_id)s AND mode = %(mode)s AND id < %(cursor)s
      AND (%(status)s::text IS NULL OR status = %(status)s)
    ORDER BY id DESC
    LIMIT %(limit)s
""")
_NEWER: Final[LiteralString] = _select("""
    WHERE merchant_id = %(merchant_id)s AND mode = %(mode)s AND id > %(cursor)s
      AND (%(status)s::text IS NULL OR status = %(status)s)
    ORDER BY id
    LIMIT %(limit)s
""")
_MOVE: Final[LiteralString] = (
    "UPDATE payments SET status = %(status)s WHERE id = %(id)s AND status = %(was)s"
)
_RECEIVE: Final[LiteralString] = """
    UPDATE payments
    SET status = %(status)s, exception = %(exception)s, received_minor = %(received_minor)s,
        payer_address = coalesce(payer_address, %(payer_address)s), fee_minor = %(fee_minor)s
    WHERE id = %(id)s
"""
_EXPIRE: Final[LiteralString] = """
    WITH due AS (
        SELECT id FROM payments
        WHERE status IN ('created', 'pending')
          AND expires_at < now() - make_interval(secs => %(grace_s)s)
          AND NOT EXISTS (SELECT FROM chain_transfers AS t
                          WHERE t.payment_id = payments.id AND t.commitment = 'confirmed')
        ORDER BY expires_at
        LIMIT %(limit)s
        FOR NO KEY UPDATE SKIP LOCKED
    )
    UPDATE payments SET status = 'expired'
    FROM due
    WHERE payments.id = due.id
    RETURNING payments.id
"""
_FEE_BPS: Final[LiteralString] = "SELECT fee_bps FROM merchants WHERE id = %(id)s"

_ADD_REFUND: Final[LiteralString] = """
    INSERT INTO refunds (id, merchant_id, payment_id, amount_minor, asset, reason)
    VALUES (%(id)s, %(merchant_id)s, %(payment_id)s, %(amount_minor)s, %(asset)s, %(reason)s)
    RETURNING id, merchant_id, payment_id, status, amount_minor, asset, reason, created_at,
              status_at
"""


@dataclass(frozen=True, slots=True)
class _Expired:
    id: str


async def add(unit: Unit, payment: Payment) -> None:
    """Write a new payment; its event and audit rows follow by trigger."""
    await unit.run(
        _ADD,
        {
            "id": payment.id,
            "merchant_id": payment.merchant_id,
            "mode": payment.mode,
            "amount_minor": payment.amount_minor,
            "currency": payment.currency,
            "asset": payment.asset,
            "asset_amount_minor": payment.asset_amount_minor,
            "rate": payment.rate,
            "rate_source": payment.rate_source,
            "chain": payment.chain,
            "recipient": payment.recipient,
            "mint": payment.mint,
            "reference": payment.reference,
            "payer_country": payment.payer_country,
            "description": payment.description,
            "order_id": payment.order_id,
            "metadata": Jsonb(payment.metadata),
            "expires_at": payment.expires_at,
        },
    )


async def get(unit: Unit, payment_id: str) -> Payment | None:
    """Return a payment as it stands."""
    return await unit.maybe(Payment, _GET, {"id": payment_id})


async def lock(unit: Unit, payment_id: str) -> Payment | None:
    """Return a payment and keep others from changing it until the unit of work ends."""
    return await unit.maybe(Payment, _LOCK, {"id": payment_id})


async def lock_referenced(unit: Unit, keys: tuple[str, ...]) -> list[Payment]:
    """Return and lock the payments whose references are among `keys`."""
    return await unit.all(Payment, _LOCK_REFERENCED, {"keys": list(keys)})


async def page(
    unit: Unit, *, mode: str, status: str | None, cursor: str, newer: bool, limit: int
) -> list[Payment]:
    """Return up to `limit` payments next to the cursor, nearest first."""
    parameters: dict[str, Any] = {
        "merchant_id": unit.merchant_id,
        "mode": mode,
        "status": status,
        "cursor": cursor,
        "limit": limit,
    }
    return await unit.all(Payment, _NEWER if newer else _OLDER, parameters)


async def move(unit: Unit, payment_id: str, *, was: str, status: str) -> None:
    """Move a payment by one step."""
    await unit.run(_MOVE, {"id": payment_id, "was": was, "status": status})


async def receive(
    unit: Unit,
    payment_id: str,
    *,
    status: str,
    exception: str | None,
    received_minor: int,
    payer_address: str,
    fee_minor: int,
) -> None:
    """Write down what a receipt made of a payment; the first payer's address stays."""
    await unit.run(
        _RECEIVE,
        {
            "id": payment_id,
            "status": status,
            "exception": exception,
            "received_minor": received_minor,
            "payer_address": payer_address,
            "fee_minor": fee_minor,
        },
    )


async def expire(unit: Unit, *, grace_s: int, limit: int) -> int:
    """Expire payments whose time is over by the database's clock; return how many.

    One with money on its way that is not final yet is left alone until that is decided.
    """
    return len(await unit.all(_Expired, _EXPIRE, {"grace_s": grace_s, "limit": limit}))


async def fee_bps(unit: Unit, merchant_id: str) -> int:
    """Return a merchant's fee in hundredths of a percent."""
    bps: int = await unit.value(_FEE_BPS, {"id": merchant_id})
    return bps


async def add_refund(
    unit: Unit, *, refund_id: str, payment: Payment, amount_minor: int, reason: str | None
) -> Refund:
    """Write a refund request."""
    return await unit.one(
        Refund,
        _ADD_REFUND,
        {
            "id": refund_id,
            "merchant_id": payment.merchant_id,
            "payment_id": payment.id,
            "amount_minor": amount_minor,
            "asset": payment.currency,
            "reason": reason,
        },
    )
