"""The SQL of payments. Row-level security limits every statement to its tenant."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString

from psycopg.types.json import Jsonb

from api import idempotency
from api.database import Database, Identity, Unit
from api.idempotency import Answer, Request
from api.payments.model import Payment, Terms, Waiting

_COLUMNS: Final[LiteralString] = (
    "id, merchant_id, mode, status, exception, amount_minor, currency, asset, asset_amount_minor,"
    " received_minor, rate, rate_source, chain, recipient, mint, reference, payer_address,"
    " payer_country, description, order_id, metadata, fee_minor, created_at, expires_at, status_at,"
    " completed_at, rate_mid, settled_minor, exception_outcome, is_escrow, escrow_release_due_at,"
    " escrow_released_at, escrow_released_by"
)
_WRITE: Final[LiteralString] = """
    INSERT INTO payments (id, merchant_id, mode, amount_minor, currency, asset, asset_amount_minor,
                          rate, rate_mid, rate_source, chain, recipient, mint, reference,
                          payer_country, description, order_id, metadata, expires_at, is_escrow)
    SELECT %(id)s, %(merchant_id)s, %(mode)s, %(amount_minor)s, %(currency)s, %(asset)s,
           %(asset_amount_minor)s, %(rate)s, %(rate_mid)s, %(rate_source)s, %(chain)s,
           %(recipient)s, %(mint)s, %(reference)s, %(payer_country)s, %(description)s,
           %(order_id)s, %(metadata)s, now() + %(lifetime)s, %(is_escrow)s
"""
# As the API writes moments; its colons are quoted, since pgbench would take :MI for its own.
_MOMENT: Final[LiteralString] = '\'YYYY-MM-DD"T"HH24":"MI":"SS.US"Z"\''
# In the answer, the marks of api.payments.views give way to the row's own moments.
_WRITE_ONCE: Final[LiteralString] = idempotency.whole(
    _WRITE
    + """
    FROM begun WHERE is_new
    RETURNING replace(replace(%(answer)s,
                  chr(1), to_char(created_at AT TIME ZONE 'UTC', """
    + _MOMENT
    + """)),
                  chr(2), to_char(expires_at AT TIME ZONE 'UTC', """
    + _MOMENT
    + """)) AS body
"""
)


def _select(rest: LiteralString) -> LiteralString:
    return "SELECT " + _COLUMNS + " FROM payments " + rest  # noqa: S608 - constants alone


_GET: Final[LiteralString] = _select("WHERE id = %(id)s")
_LOCK: Final[LiteralString] = _select("WHERE id = %(id)s FOR NO KEY UPDATE")
_LOCK_REFERENCED: Final[LiteralString] = _select("""
    WHERE reference = ANY (%(keys)s)
    ORDER BY id
    FOR NO KEY UPDATE
""")
_FILTERS: Final[LiteralString] = """
      AND (%(status)s::text IS NULL OR status = %(status)s)
      AND (%(exception)s::text IS NULL OR exception = %(exception)s)
      AND (%(order_id)s::text IS NULL OR order_id = %(order_id)s)
      AND (%(asset)s::text IS NULL OR asset = %(asset)s)
      AND (%(escrow)s::boolean IS NULL OR is_escrow = %(escrow)s)
      AND (%(created_gt)s::timestamptz IS NULL OR created_at > %(created_gt)s)
      AND (%(created_gte)s::timestamptz IS NULL OR created_at >= %(created_gte)s)
      AND (%(created_lt)s::timestamptz IS NULL OR created_at < %(created_lt)s)
      AND (%(created_lte)s::timestamptz IS NULL OR created_at <= %(created_lte)s)
"""
# Cursors are ids, which sort by time of creation; nothing is counted.
_OLDER: Final[LiteralString] = _select(
    "WHERE merchant_id = %(merchant_id)s AND mode = %(mode)s"
    " AND (%(cursor)s::text IS NULL OR id < %(cursor)s)"
    + _FILTERS
    + "ORDER BY id DESC LIMIT %(limit)s"
)
_NEWER: Final[LiteralString] = _select(
    "WHERE merchant_id = %(merchant_id)s AND mode = %(mode)s AND id > %(cursor)s"
    + _FILTERS
    + "ORDER BY id LIMIT %(limit)s"
)
_MOVE: Final[LiteralString] = (
    "UPDATE payments SET status = %(status)s WHERE id = %(id)s AND status = %(was)s"
)
# What new money means replaces what older money meant, so the exception is open again.
_RECEIVE: Final[LiteralString] = """
    UPDATE payments
    SET status = %(status)s, exception = %(exception)s, exception_outcome = NULL,
        received_minor = %(received_minor)s,
        payer_address = coalesce(payer_address, %(payer_address)s),
        settled_minor = %(settled_minor)s, fee_minor = %(fee_minor)s
    WHERE id = %(id)s
"""
_ACCEPT: Final[LiteralString] = """
    UPDATE payments
    SET status = %(status)s, exception_outcome = 'accepted', received_minor = %(received_minor)s,
        settled_minor = %(settled_minor)s, fee_minor = %(fee_minor)s
    WHERE id = %(id)s
"""
_FAIL: Final[LiteralString] = """
    UPDATE payments
    SET status = 'failed', exception = %(exception)s, exception_outcome = NULL, received_minor = 0,
        settled_minor = 0, fee_minor = 0
    WHERE id = %(id)s AND status = 'completed'
"""
_CLOSE_EXCEPTION: Final[LiteralString] = """
    UPDATE payments SET exception_outcome = %(outcome)s
    WHERE id = %(id)s AND exception IS NOT NULL AND exception_outcome IS NULL
"""
_CHANGE: Final[LiteralString] = """
    UPDATE payments
    SET description = %(description)s, order_id = %(order_id)s, metadata = %(metadata)s
    WHERE id = %(id)s
"""
_AWAIT_RELEASE: Final[LiteralString] = """
    UPDATE payments
    SET status = 'awaiting_release',
        escrow_release_due_at = now() + make_interval(days => %(days)s)
    WHERE id = %(id)s AND status = 'escrow_held'
"""
_RELEASE: Final[LiteralString] = """
    UPDATE payments
    SET status = 'completed', escrow_released_at = clock_timestamp(),
        escrow_released_by = %(released_by)s, fee_minor = %(fee_minor)s
    WHERE id = %(id)s AND status = 'awaiting_release'
"""
_RESOLVE: Final[LiteralString] = """
    UPDATE payments
    SET status = 'resolved', settled_minor = %(settled_minor)s, fee_minor = %(fee_minor)s
    WHERE id = %(id)s AND status = 'disputed'
"""
_DUE: Final[LiteralString] = """
    SELECT id FROM payments
    WHERE status = 'awaiting_release' AND escrow_release_due_at <= now()
    ORDER BY escrow_release_due_at
    LIMIT %(limit)s
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
_TERMS: Final[LiteralString] = """
    SELECT name AS merchant_name, fee_bps, tolerance_bps, escrow_days
    FROM merchants
    WHERE id = %(id)s
"""
_WAITING: Final[LiteralString] = """
    SELECT kept.source, kept.token,
           (held_for_payment(%(id)s, kept.source, kept.token) - coalesce((
                SELECT sum(r.amount_minor) FROM refunds AS r
                WHERE r.payment_id = %(id)s AND r.source = kept.source AND r.asset = kept.token
                  AND r.status = ANY (%(statuses)s)), 0))::bigint AS amount_minor
    FROM (VALUES ('excess', 'USDC'), ('excess', 'USDT'),
                 ('suspense', 'USDC'), ('suspense', 'USDT')) AS kept (source, token)
"""


@dataclass(frozen=True, slots=True)
class _Id:
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """Which payments a list shows; None does not filter."""

    status: str | None = None
    exception: str | None = None
    order_id: str | None = None
    asset: str | None = None
    escrow: bool | None = None
    created_gt: datetime | None = None
    created_gte: datetime | None = None
    created_lt: datetime | None = None
    created_lte: datetime | None = None

    def parameters(self) -> dict[str, Any]:
        """Return the filters by the names the SQL has for them."""
        return {name: getattr(self, name) for name in self.__slots__}


async def add(unit: Unit, payment: Payment) -> None:
    """Write a new payment; its event and audit rows follow by trigger."""
    await unit.run(_WRITE, _parameters(payment))


async def add_once(
    database: Database, identity: Identity, request: Request, payment: Payment, answer: str
) -> Answer:
    """Write a new payment as `add` does and keep its answer, unless the request has one already.

    One statement, which is the whole unit of work. The answer has marks for the row's moments.
    """
    parameters = {**_parameters(payment), "answer": answer}
    return await idempotency.answer_at_once(
        database, identity, request, _WRITE_ONCE, parameters, status=201
    )


def _parameters(payment: Payment) -> dict[str, Any]:
    """Return what a new payment is written from; when it begins is PostgreSQL's to say."""
    return {
        "id": payment.id,
        "merchant_id": payment.merchant_id,
        "mode": payment.mode,
        "amount_minor": payment.amount_minor,
        "currency": payment.currency,
        "asset": payment.asset,
        "asset_amount_minor": payment.asset_amount_minor,
        "rate": payment.rate,
        "rate_mid": payment.rate_mid,
        "rate_source": payment.rate_source,
        "chain": payment.chain,
        "recipient": payment.recipient,
        "mint": payment.mint,
        "reference": payment.reference,
        "payer_country": payment.payer_country,
        "description": payment.description,
        "order_id": payment.order_id,
        "metadata": Jsonb(payment.metadata),
        "lifetime": payment.expires_at - payment.created_at,
        "is_escrow": payment.is_escrow,
    }


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
    unit: Unit, *, mode: str, filters: Filters, cursor: str | None, newer: bool, limit: int
) -> list[Payment]:
    """Return up to `limit` payments next to the cursor, nearest first."""
    parameters: dict[str, Any] = {
        "merchant_id": unit.merchant_id,
        "mode": mode,
        "cursor": cursor,
        "limit": limit,
        **filters.parameters(),
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
    payer_address: str | None,
    settled_minor: int,
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
            "settled_minor": settled_minor,
            "fee_minor": fee_minor,
        },
    )


async def accept(
    unit: Unit,
    payment_id: str,
    *,
    status: str,
    received_minor: int,
    settled_minor: int,
    fee_minor: int,
) -> None:
    """Write down that the money that waited was accepted as the payment."""
    await unit.run(
        _ACCEPT,
        {
            "id": payment_id,
            "status": status,
            "received_minor": received_minor,
            "settled_minor": settled_minor,
            "fee_minor": fee_minor,
        },
    )


async def fail(unit: Unit, payment_id: str, *, exception: str | None) -> None:
    """Write down that the money of a completed payment vanished."""
    await unit.run(_FAIL, {"id": payment_id, "exception": exception})


async def close_exception(unit: Unit, payment_id: str, outcome: str) -> None:
    """Write down how an open exception ended; one that ended before stays as it is."""
    await unit.run(_CLOSE_EXCEPTION, {"id": payment_id, "outcome": outcome})


async def change(
    unit: Unit,
    payment_id: str,
    *,
    description: str | None,
    order_id: str | None,
    metadata: dict[str, Any],
) -> None:
    """Change a merchant's own words about a payment."""
    await unit.run(
        _CHANGE,
        {
            "id": payment_id,
            "description": description,
            "order_id": order_id,
            "metadata": Jsonb(metadata),
        },
    )


async def await_release(unit: Unit, payment_id: str, *, days: int) -> None:
    """Move an escrow payment on to its release, which is due in so many days."""
    await unit.run(_AWAIT_RELEASE, {"id": payment_id, "days": days})


async def release(unit: Unit, payment_id: str, *, released_by: str, fee_minor: int) -> None:
    """Complete an escrow payment."""
    await unit.run(_RELEASE, {"id": payment_id, "released_by": released_by, "fee_minor": fee_minor})


async def resolve(unit: Unit, payment_id: str, *, settled_minor: int, fee_minor: int) -> None:
    """Resolve a disputed payment; what is settled is the merchant's part from now on."""
    await unit.run(
        _RESOLVE, {"id": payment_id, "settled_minor": settled_minor, "fee_minor": fee_minor}
    )


async def due_for_release(unit: Unit, *, limit: int) -> list[str]:
    """Return ids of escrow payments whose time has come, the longest due first."""
    return [row.id for row in await unit.all(_Id, _DUE, {"limit": limit})]


async def expire(unit: Unit, *, grace_s: int, limit: int) -> int:
    """Expire payments whose time is over by the database's clock; return how many.

    One with money on its way that is not final yet is left alone until that is decided.
    """
    return len(await unit.all(_Id, _EXPIRE, {"grace_s": grace_s, "limit": limit}))


async def terms(unit: Unit, merchant_id: str) -> Terms:
    """Return what a merchant's payments settle by now."""
    return await unit.one(Terms, _TERMS, {"id": merchant_id})


async def waiting(unit: Unit, payment_id: str, *, sent_only: bool = False) -> list[Waiting]:
    """Return what the ledger keeps aside for a payment, by source and token, where anything is.

    Less the refunds that were asked for, or with `sent_only` less those that were sent.
    """
    statuses = ["completed"] if sent_only else ["requested", "completed"]
    rows = await unit.all(Waiting, _WAITING, {"id": payment_id, "statuses": statuses})
    return [row for row in rows if row.amount_minor]
