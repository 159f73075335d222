"""The SQL of events. Row-level security limits every statement to its tenant."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString

from api.database import Unit

# The row comes as text: psycopg would make binary floats of its rates.
_SELECT: Final[LiteralString] = """
    SELECT id, mode, seq, type, payment_id, refund_id, payout_id, created_at, data::text AS data
    FROM merchant_events
"""
_GET: Final[LiteralString] = (
    _SELECT
    + """
    WHERE merchant_id = %(merchant_id)s AND mode = %(mode)s AND id = %(id)s
"""
)
_OF_PAYMENTS: Final[LiteralString] = (
    _SELECT
    + """
    WHERE payment_id = ANY (%(payment_ids)s)
    ORDER BY seq
    LIMIT %(limit)s
"""
)
_FILTERS: Final[LiteralString] = """
      AND (%(type)s::text IS NULL OR type = %(type)s)
      AND (%(payment_id)s::text IS NULL OR payment_id = %(payment_id)s)
"""
_DOWN: Final[LiteralString] = (
    _SELECT
    + """
    WHERE merchant_id = %(merchant_id)s AND mode = %(mode)s
      AND (%(cursor)s::bigint IS NULL OR seq < %(cursor)s)
"""
    + _FILTERS
    + "ORDER BY seq DESC LIMIT %(limit)s"
)
_UP: Final[LiteralString] = (
    _SELECT
    + """
    WHERE merchant_id = %(merchant_id)s AND mode = %(mode)s
      AND (%(cursor)s::bigint IS NULL OR seq > %(cursor)s)
"""
    + _FILTERS
    + "ORDER BY seq LIMIT %(limit)s"
)
_SEQ: Final[LiteralString] = """
    SELECT seq FROM merchant_events
    WHERE merchant_id = %(merchant_id)s AND mode = %(mode)s AND id = %(id)s
"""


@dataclass(frozen=True, slots=True)
class Event:
    """An event's row; `data` is the JSON of its subject's row at that moment."""

    id: str
    mode: str
    seq: int
    type: str
    payment_id: str | None
    refund_id: str | None
    payout_id: str | None
    created_at: datetime
    data: str


async def get(unit: Unit, event_id: str, *, mode: str) -> Event | None:
    """Return an event of the unit's merchant."""
    parameters = {"merchant_id": unit.merchant_id, "mode": mode, "id": event_id}
    return await unit.maybe(Event, _GET, parameters)


async def seq_of(unit: Unit, event_id: str, *, mode: str) -> int | None:
    """Return an event's place in its sequence."""
    parameters = {"merchant_id": unit.merchant_id, "mode": mode, "id": event_id}
    found: int | None = await unit.value(_SEQ, parameters)
    return found


async def of_payments(unit: Unit, payment_ids: Sequence[str], *, limit: int) -> list[Event]:
    """Return up to `limit` events of these payments and their refunds, oldest first."""
    parameters = {"payment_ids": list(payment_ids), "limit": limit}
    return await unit.all(Event, _OF_PAYMENTS, parameters)


async def page(
    unit: Unit,
    *,
    mode: str,
    type_: str | None,
    payment_id: str | None,
    cursor: int | None,
    upward: bool,
    limit: int,
) -> list[Event]:
    """Return up to `limit` events next to the cursor, nearest first."""
    parameters: dict[str, Any] = {
        "merchant_id": unit.merchant_id,
        "mode": mode,
        "type": type_,
        "payment_id": payment_id,
        "cursor": cursor,
        "limit": limit,
    }
    return await unit.all(Event, _UP if upward else _DOWN, parameters)
