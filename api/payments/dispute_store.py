"""The SQL of disputes. Row-level security limits every statement to its tenant."""

from collections.abc import Sequence
from typing import Final, LiteralString

from api.database import Unit
from api.payments.model import Dispute, Payment

_SELECT: Final[LiteralString] = """
    SELECT id, merchant_id, payment_id, opened_by, reason, opened_at, outcome, merchant_minor,
           resolved_by, resolution_reason, resolved_at
    FROM disputes
"""
_OF_PAYMENTS: Final[LiteralString] = _SELECT + "WHERE payment_id = ANY (%(payment_ids)s)"
_OPEN: Final[LiteralString] = (
    _SELECT
    + """
    WHERE outcome IS NULL AND (%(cursor)s::text IS NULL OR id > %(cursor)s)
      AND EXISTS (SELECT FROM payments AS p WHERE p.id = payment_id AND p.mode = %(mode)s)
    ORDER BY id
    LIMIT %(limit)s
"""
)
_OPEN_BEFORE: Final[LiteralString] = (
    _SELECT
    + """
    WHERE outcome IS NULL AND id < %(cursor)s
      AND EXISTS (SELECT FROM payments AS p WHERE p.id = payment_id AND p.mode = %(mode)s)
    ORDER BY id DESC
    LIMIT %(limit)s
"""
)
_ADD: Final[LiteralString] = """
    INSERT INTO disputes (id, merchant_id, payment_id, opened_by, reason)
    VALUES (%(id)s, %(merchant_id)s, %(payment_id)s, %(opened_by)s, %(reason)s)
"""
_RESOLVE: Final[LiteralString] = """
    UPDATE disputes
    SET outcome = %(outcome)s, merchant_minor = %(merchant_minor)s, resolved_by = %(resolved_by)s,
        resolution_reason = %(reason)s, resolved_at = now()
    WHERE payment_id = %(payment_id)s
"""


async def add(
    unit: Unit, *, dispute_id: str, payment: Payment, opened_by: str, reason: str
) -> None:
    """Write down that somebody disputes a payment."""
    await unit.run(
        _ADD,
        {
            "id": dispute_id,
            "merchant_id": payment.merchant_id,
            "payment_id": payment.id,
            "opened_by": opened_by,
            "reason": reason,
        },
    )


async def of_payments(unit: Unit, payment_ids: Sequence[str]) -> list[Dispute]:
    """Return the disputes of these payments, of which each has at most one."""
    return await unit.all(Dispute, _OF_PAYMENTS, {"payment_ids": list(payment_ids)})


async def page(
    unit: Unit, *, mode: str, cursor: str | None, backward: bool, limit: int
) -> list[Dispute]:
    """Return up to `limit` disputes that wait for an admin, next to the cursor, nearest first."""
    query = _OPEN_BEFORE if backward else _OPEN
    return await unit.all(Dispute, query, {"mode": mode, "cursor": cursor, "limit": limit})


async def resolve(
    unit: Unit,
    payment_id: str,
    *,
    outcome: str,
    merchant_minor: int,
    resolved_by: str,
    reason: str,
) -> None:
    """Write down whom an admin gave the money, and why."""
    await unit.run(
        _RESOLVE,
        {
            "payment_id": payment_id,
            "outcome": outcome,
            "merchant_minor": merchant_minor,
            "resolved_by": resolved_by,
            "reason": reason,
        },
    )
