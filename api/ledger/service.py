"""Book entries, place holds and read balances, inside the caller's unit of work.

Each function does the whole or raises; PostgreSQL holds the rules (sum zero, floors, immutability,
one entry a key, holds that agree with what they are for), so a defect here is refused at commit
rather than believed. Entries are booked by the operator's and the watcher's roles alone.

Lock order, everywhere: the subject's row (payment, refund, payout), its merchant's event counter,
then accounts. Accounts are locked in the order of their paths until the unit of work ends.
"""

from datetime import datetime
from typing import Final

from api.database import Unit, refused_by
from api.errors import Conflict, FieldError, InsufficientBalance, InvalidRequest, NotFound
from api.ledger import store
from api.ledger.model import (
    AccountKind,
    Balance,
    BookedEntry,
    Entry,
    Hold,
    StatementLine,
    TrialLine,
)
from api.security import Mode

_OVERDRAWN: Final = "ledger_accounts_never_overdrawn"


async def post_entry(unit: Unit, entry: Entry, *, posts_hold: str | None = None) -> None:
    """Book a balanced entry; posted again under its key, it is booked once.

    The write is queued, so that accounts are locked no longer than it takes PostgreSQL to commit.
    With `posts_hold`, the id of a pending hold, the entry ends that hold and must move exactly its
    amount. The unit of work ends in InsufficientBalance where an account would be overdrawn, in
    Conflict where the hold is not pending any more.
    """
    unit.expect_refusal(_OVERDRAWN, _too_much())
    unit.expect_refusal("ledger_holds_pending", Conflict("what was held is no longer held"))
    await store.post(unit, entry, posts_hold)


async def reverse_entry(unit: Unit, entry_id: str, *, key: str, reason: str) -> str:
    """Undo an entry by its mirror image and return the reversal's id; once, under its key.

    Raises NotFound, Conflict where it was reversed under another key, InsufficientBalance where
    what it brought is spent.
    """
    await get_entry(unit, entry_id)
    with (
        refused_by(_OVERDRAWN, _too_much()),
        refused_by("ledger_entries_reverses_id_key", Conflict("this entry is reversed already")),
    ):
        return await store.reverse(unit, entry_id, key=key, reason=reason)


async def place_hold(unit: Unit, hold: Hold) -> str:
    """Take an amount out of what is available and return the hold's id; once, under its key.

    Raises InsufficientBalance where less is available. At commit the hold must agree with its
    subject: see migration 130.
    """
    with refused_by(_OVERDRAWN, _too_much()):
        return await store.place_hold(unit, hold)


async def pending_hold(unit: Unit, subject_id: str) -> str:
    """Return the id of the pending hold of a payment, refund or payout, locked; raises Conflict."""
    hold_id = await store.pending_hold(unit, subject_id)
    if hold_id is None:
        raise Conflict("nothing is held for it any more")
    return hold_id


async def void_hold(unit: Unit, subject_id: str) -> None:
    """Give back what is held for a payment, refund or payout; raises Conflict where nothing is."""
    if not await store.end_hold(unit, subject_id):
        raise Conflict("nothing is held for it any more")


async def balances(unit: Unit, mode: Mode, *, at: datetime | None = None) -> list[Balance]:
    """Return the balances of the unit's merchant, one for each asset it ever held.

    With `at` as they were then: every entry booked and hold standing at that moment.
    """
    if at is None:
        return await store.balances(unit, mode)
    return await store.balances_at(unit, mode, at)


async def statement(
    unit: Unit,
    mode: Mode,
    *,
    kind: AccountKind,
    asset: str,
    since: datetime | None = None,
    until: datetime | None = None,
    after: tuple[str, int] | None = None,
    limit: int,
) -> list[StatementLine]:
    """Return up to `limit` lines of one of the merchant's accounts, oldest first.

    Each line carries the balance after it. `after` is the entry id and seq of a line to go on
    from; raises InvalidRequest where the account has no such line.
    """
    if after is not None and not await store.has_line(
        unit, mode, kind=kind, asset=asset, line=after
    ):
        error = FieldError(detail="no line of this account", pointer="/query/starting_after")
        raise InvalidRequest("1 field is not valid", errors=[error])
    return await store.statement(
        unit, mode, kind=kind, asset=asset, since=since, until=until, after=after, limit=limit
    )


async def get_entry(unit: Unit, entry_id: str) -> BookedEntry:
    """Return an entry that the unit may see; raises NotFound."""
    found = await store.get_entry(unit, entry_id)
    if found is None:
        raise NotFound("no entry has this id")
    return found


async def trial_balance(unit: Unit, mode: Mode) -> list[TrialLine]:
    """Return what all accounts of a mode stand at, by asset and kind; each asset sums to zero."""
    return await store.trial_balance(unit, mode)


def _too_much() -> InsufficientBalance:
    return InsufficientBalance("ask for at most the available balance")
