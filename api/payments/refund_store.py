"""The SQL of refunds. Row-level security limits every statement to its tenant."""

# Statements are put together from constants alone.
# ruff: noqa: S608

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, LiteralString

from api.database import Unit
from api.payments.model import Refund

_COLUMNS: Final[LiteralString] = (
    "r.id, r.merchant_id, r.payment_id, r.status, r.amount_minor, r.asset, r.reason, r.source,"
    " r.token, r.token_amount_minor, r.destination, r.signature, r.requested_by, r.failure_reason,"
    " r.created_at, r.status_at"
)
_ADD: Final[LiteralString] = (
    """
    INSERT INTO refunds AS r (id, merchant_id, payment_id, amount_minor, asset, reason, source,
                              token, token_amount_minor, destination, requested_by)
    VALUES (%(id)s, %(merchant_id)s, %(payment_id)s, %(amount_minor)s, %(asset)s, %(reason)s,
            %(source)s, %(token)s, %(token_amount_minor)s, %(destination)s, %(requested_by)s)
    RETURNING """
    + _COLUMNS
)
_COMPLETE: Final[LiteralString] = (
    """
    UPDATE refunds AS r SET status = 'completed', signature = %(signature)s
    WHERE id = %(id)s AND status = 'requested'
    RETURNING """
    + _COLUMNS
)
_FAIL: Final[LiteralString] = (
    """
    UPDATE refunds AS r SET status = 'failed', failure_reason = %(reason)s
    WHERE id = %(id)s AND status = 'requested'
    RETURNING """
    + _COLUMNS
)


def _select(rest: LiteralString) -> LiteralString:
    return (
        "SELECT "
        + _COLUMNS
        + " FROM refunds AS r JOIN payments AS p ON p.id = r.payment_id "
        + rest
    )


_GET: Final[LiteralString] = _select("WHERE r.id = %(id)s AND p.mode = %(mode)s")
_OF_PAYMENTS: Final[LiteralString] = _select(
    "WHERE r.payment_id = ANY (%(payment_ids)s) ORDER BY r.id"
)
_OLDER: Final[LiteralString] = _select("""
    WHERE (%(merchant_id)s::text IS NULL OR r.merchant_id = %(merchant_id)s)
      AND p.mode = %(mode)s
      AND (%(cursor)s::text IS NULL OR r.id < %(cursor)s)
      AND (%(status)s::text IS NULL OR r.status = %(status)s)
      AND (%(payment_id)s::text IS NULL OR r.payment_id = %(payment_id)s)
    ORDER BY r.id DESC
    LIMIT %(limit)s
""")
_NEWER: Final[LiteralString] = _select("""
    WHERE (%(merchant_id)s::text IS NULL OR r.merchant_id = %(merchant_id)s)
      AND p.mode = %(mode)s AND r.id > %(cursor)s
      AND (%(status)s::text IS NULL OR r.status = %(status)s)
      AND (%(payment_id)s::text IS NULL OR r.payment_id = %(payment_id)s)
    ORDER BY r.id
    LIMIT %(limit)s
""")
_PAYMENT_OF: Final[LiteralString] = "SELECT payment_id AS id FROM refunds WHERE id = %(id)s"
_LOCK: Final[LiteralString] = (
    "SELECT " + _COLUMNS + " FROM refunds AS r WHERE id = %(id)s FOR NO KEY UPDATE"
)
_SHARE: Final[LiteralString] = """
    SELECT t.token, t.amount_minor AS taken_minor,
           coalesce(sum(r.amount_minor), 0)::bigint AS returned_minor,
           coalesce(sum(r.token_amount_minor), 0)::bigint AS returned_token_minor
    FROM taken_for_payment(%(payment_id)s) AS t
    LEFT JOIN refunds AS r
        ON r.payment_id = %(payment_id)s AND r.source = 'payment' AND r.status <> 'failed'
    GROUP BY t.token, t.amount_minor
"""


@dataclass(frozen=True, slots=True)
class Share:
    """Tokens taken for a payment, and what of payment and tokens goes back already."""

    token: str
    taken_minor: int
    returned_minor: int
    returned_token_minor: int


async def add(unit: Unit, refund: Refund) -> Refund:
    """Write a refund request; return it with its moments."""
    return await unit.one(
        Refund,
        _ADD,
        {
            "id": refund.id,
            "merchant_id": refund.merchant_id,
            "payment_id": refund.payment_id,
            "amount_minor": refund.amount_minor,
            "asset": refund.asset,
            "reason": refund.reason,
            "source": refund.source,
            "token": refund.token,
            "token_amount_minor": refund.token_amount_minor,
            "destination": refund.destination,
            "requested_by": refund.requested_by,
        },
    )


async def get(unit: Unit, refund_id: str, *, mode: str) -> Refund | None:
    """Return a refund of a payment of this mode."""
    return await unit.maybe(Refund, _GET, {"id": refund_id, "mode": mode})


async def of_payments(unit: Unit, payment_ids: Sequence[str]) -> list[Refund]:
    """Return the refunds of these payments, oldest first."""
    return await unit.all(Refund, _OF_PAYMENTS, {"payment_ids": list(payment_ids)})


async def page(
    unit: Unit,
    *,
    mode: str,
    status: str | None,
    payment_id: str | None,
    cursor: str | None,
    newer: bool,
    limit: int,
) -> list[Refund]:
    """Return up to `limit` refunds next to the cursor, nearest first; an admin's of everyone."""
    parameters = {
        "merchant_id": unit.identity.merchant_id,
        "mode": mode,
        "status": status,
        "payment_id": payment_id,
        "cursor": cursor,
        "limit": limit,
    }
    return await unit.all(Refund, _NEWER if newer else _OLDER, parameters)


async def payment_of(unit: Unit, refund_id: str) -> str | None:
    """Return the id of a refund's payment, which is locked before the refund is."""
    found: str | None = await unit.value(_PAYMENT_OF, {"id": refund_id})
    return found


async def lock(unit: Unit, refund_id: str) -> Refund:
    """Return a refund and keep others from changing it until the unit of work ends."""
    return await unit.one(Refund, _LOCK, {"id": refund_id})


async def share(unit: Unit, payment_id: str) -> Share | None:
    """Return what was taken for a payment and what of it goes back; None before it settled."""
    return await unit.maybe(Share, _SHARE, {"payment_id": payment_id})


async def complete(unit: Unit, refund_id: str, signature: str) -> Refund | None:
    """Complete a requested refund; None where it is not requested any more."""
    return await unit.maybe(Refund, _COMPLETE, {"id": refund_id, "signature": signature})


async def fail(unit: Unit, refund_id: str, reason: str) -> Refund | None:
    """End a requested refund without sending; None where it is not requested any more."""
    return await unit.maybe(Refund, _FAIL, {"id": refund_id, "reason": reason})
