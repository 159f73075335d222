"""The SQL of payouts."""

from typing import Final, LiteralString

from api.database import Unit
from api.payouts.model import Payout

_ADD: Final[LiteralString] = """
    INSERT INTO payouts (id, merchant_id, amount_minor, asset, destination)
    VALUES (%(id)s, %(merchant_id)s, %(amount_minor)s, %(asset)s, %(destination)s)
    RETURNING id, merchant_id, status, amount_minor, asset, destination, created_at, status_at
"""


async def add(
    unit: Unit, *, payout_id: str, amount_minor: int, asset: str, destination: str
) -> Payout:
    """Write a payout request."""
    return await unit.one(
        Payout,
        _ADD,
        {
            "id": payout_id,
            "merchant_id": unit.merchant_id,
            "amount_minor": amount_minor,
            "asset": asset,
            "destination": destination,
        },
    )
