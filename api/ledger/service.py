"""Book entries and read balances, inside the caller's unit of work.

`post_entry` either books the whole entry or raises; PostgreSQL holds the rules (sum zero, floors,
immutability, one entry a key), so a defect here is refused at commit rather than believed.
"""

from api.database import Unit, refused_by
from api.errors import InsufficientBalance
from api.ledger import store
from api.ledger.model import Balance, Entry


async def post_entry(unit: Unit, entry: Entry) -> str:
    """Book a balanced entry and return its id; posted again under its key, it is booked once.

    Accounts are locked in the order of their ids until the unit of work ends. Lock a payment before
    booking for it, never after. Raises InsufficientBalance where an account would be overdrawn.
    """
    with refused_by(
        "ledger_accounts_never_overdrawn",
        InsufficientBalance("ask for at most the available balance"),
    ):
        return await store.post(unit, entry)


async def balances(unit: Unit) -> list[Balance]:
    """Return the balances of the unit's merchant, one for each asset it ever held."""
    return await store.balances(unit)
