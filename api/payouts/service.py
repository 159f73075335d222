"""Ask for a payout: the row and the reservation of its money are one unit of work.

Requests at the same time queue on the merchant's account, and PostgreSQL refuses the one that would
overdraw it; there is no moment at which the balance is read and trusted.
"""

from api.database import Unit, new_id
from api.ledger.model import AccountKind, Entry, EntryKind, Leg
from api.ledger.service import post_entry
from api.payouts import store
from api.payouts.model import CreatePayout, Payout


async def request_payout(unit: Unit, body: CreatePayout) -> Payout:
    """Reserve the amount and write the request down; raises InsufficientBalance."""
    payout_id, amount_minor, merchant_id = new_id("pyo"), int(body.amount), unit.merchant_id
    payout = await store.add(
        unit,
        payout_id=payout_id,
        amount_minor=amount_minor,
        asset=body.asset,
        destination=body.destination,
    )
    await post_entry(
        unit,
        Entry(
            kind=EntryKind.PAYOUT_REQUESTED,
            key=f"payout_requested:{payout_id}",
            merchant_id=merchant_id,
            payout_id=payout_id,
            legs=(
                Leg(AccountKind.MERCHANT_AVAILABLE, body.asset, amount_minor, merchant_id),
                Leg(AccountKind.PAYOUTS_RESERVED, body.asset, -amount_minor, merchant_id),
            ),
        ),
    )
    return payout
