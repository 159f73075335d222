"""The ledger's SQL: booking through `ledger_post_entry` (migration 050), and reading balances."""

from typing import Any, Final, LiteralString

from api.database import Unit, new_id
from api.ledger.model import Balance, Entry

_POST_ENTRY: Final[LiteralString] = """
    SELECT ledger_post_entry(
        %(id)s, %(merchant_id)s, %(kind)s, %(key)s, %(description)s,
        %(payment_id)s, %(payout_id)s, %(refund_id)s, %(reverses_id)s,
        %(leg_merchants)s::text[], %(leg_kinds)s::text[], %(leg_assets)s::text[],
        %(leg_amounts)s::bigint[])
"""
_BALANCES: Final[LiteralString] = """
    SELECT asset,
           coalesce(-sum(posted_minor) FILTER (WHERE kind = 'merchant_available'), 0)::bigint
               AS available_minor,
           coalesce(-sum(posted_minor) FILTER (WHERE kind = 'payouts_reserved'), 0)::bigint
               AS payouts_reserved_minor,
           coalesce(-sum(posted_minor) FILTER (WHERE kind = 'refunds_payable'), 0)::bigint
               AS refunds_payable_minor,
           coalesce(-sum(posted_minor) FILTER (WHERE kind = 'payer_excess'), 0)::bigint
               AS payer_excess_minor
    FROM ledger_accounts
    WHERE merchant_id = %(merchant_id)s
    GROUP BY asset
    ORDER BY asset
"""


async def post(unit: Unit, entry: Entry) -> str:
    """Send the entry to PostgreSQL; return the id of the entry that stands under its key."""
    parameters: dict[str, Any] = {
        "id": new_id("ent"),
        "merchant_id": entry.merchant_id,
        "kind": entry.kind,
        "key": entry.key,
        "description": entry.description,
        "payment_id": entry.payment_id,
        "payout_id": entry.payout_id,
        "refund_id": entry.refund_id,
        "reverses_id": entry.reverses_id,
        "leg_merchants": [leg.merchant_id for leg in entry.legs],
        "leg_kinds": [leg.kind for leg in entry.legs],
        "leg_assets": [leg.asset for leg in entry.legs],
        "leg_amounts": [leg.amount_minor for leg in entry.legs],
    }
    booked_id: str = await unit.value(_POST_ENTRY, parameters)
    return booked_id


async def balances(unit: Unit) -> list[Balance]:
    """Return the balances of the unit's merchant, one for each asset it ever held."""
    return await unit.all(Balance, _BALANCES, {"merchant_id": unit.merchant_id})
