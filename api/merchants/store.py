"""The SQL of merchants."""

from typing import Final, LiteralString

from api.database import Unit
from api.merchants.model import Merchant
from api.paging import Paging

_PUT: Final[LiteralString] = """
    INSERT INTO merchants AS m
        (id, name, trade, timezone, country, fee_bps, tolerance_bps, escrow_days)
    VALUES (%(id)s, %(name)s, %(trade)s, %(timezone)s, %(country)s, %(fee_bps)s,
            coalesce(%(tolerance_bps)s, 0), coalesce(%(escrow_days)s, 7))
    ON CONFLICT (id) DO UPDATE
    SET name = %(name)s, trade = %(trade)s, timezone = %(timezone)s, country = %(country)s,
        fee_bps = %(fee_bps)s, tolerance_bps = coalesce(%(tolerance_bps)s, m.tolerance_bps),
        escrow_days = coalesce(%(escrow_days)s, m.escrow_days)
    WHERE (m.name, m.trade, m.timezone, m.country, m.fee_bps, m.tolerance_bps, m.escrow_days)
          IS DISTINCT FROM
          (%(name)s, %(trade)s, %(timezone)s, %(country)s, %(fee_bps)s,
           coalesce(%(tolerance_bps)s, m.tolerance_bps), coalesce(%(escrow_days)s, m.escrow_days))
"""
_CHANGE: Final[LiteralString] = """
    UPDATE merchants AS m
    SET name = coalesce(%(name)s, m.name), timezone = coalesce(%(timezone)s, m.timezone),
        tolerance_bps = coalesce(%(tolerance_bps)s, m.tolerance_bps),
        escrow_days = coalesce(%(escrow_days)s, m.escrow_days)
    WHERE m.id = %(id)s
      AND (m.name, m.timezone, m.tolerance_bps, m.escrow_days) IS DISTINCT FROM
          (coalesce(%(name)s, m.name), coalesce(%(timezone)s, m.timezone),
           coalesce(%(tolerance_bps)s, m.tolerance_bps), coalesce(%(escrow_days)s, m.escrow_days))
"""
_GET: Final[LiteralString] = """
    SELECT id, name, trade, timezone, country, fee_bps, tolerance_bps, escrow_days, created_at,
           updated_at
    FROM merchants
    WHERE id = %(id)s
"""
_PAGE: Final[LiteralString] = """
    SELECT id, name, trade, timezone, country, fee_bps, tolerance_bps, escrow_days, created_at,
           updated_at
    FROM merchants
    WHERE (%(cursor)s::text IS NULL
           OR CASE WHEN %(newer)s THEN id > %(cursor)s ELSE id < %(cursor)s END)
    ORDER BY CASE WHEN %(newer)s THEN id END, id DESC
    LIMIT %(limit)s
"""


async def put(unit: Unit, merchant: dict[str, object]) -> None:
    """Create the merchant or change what differs; nothing is written where nothing does."""
    await unit.run(_PUT, {"id": unit.merchant_id, **merchant})


async def change(unit: Unit, changes: dict[str, object]) -> None:
    """Change what is given and differs; None leaves a setting as it is."""
    await unit.run(_CHANGE, {"id": unit.merchant_id, **changes})


async def get(unit: Unit) -> Merchant | None:
    """Return the unit's merchant."""
    return await unit.maybe(Merchant, _GET, {"id": unit.merchant_id})


async def page(unit: Unit, *, paging: Paging) -> list[Merchant]:
    """Return merchants, nearest the cursor first, and one more than the page holds."""
    parameters = {
        "cursor": paging.cursor,
        "newer": paging.is_backward,
        "limit": paging.limit + 1,
    }
    return await unit.all(Merchant, _PAGE, parameters)
