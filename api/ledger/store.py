"""The ledger's SQL: booking and holding through the functions of migration 120, and reading."""

# Statements are put together from constants alone.
# ruff: noqa: S608

from datetime import datetime
from typing import Any, Final, LiteralString

from api.database import Unit, new_id
from api.ledger.model import (
    AccountKind,
    Balance,
    BookedEntry,
    Entry,
    Hold,
    StatementLine,
    TrialLine,
)

_POST_ENTRY: Final[LiteralString] = """
    SELECT ledger_post_entry(
        %(id)s, %(mode)s, %(merchant_id)s, %(kind)s, %(key)s, %(description)s,
        %(payment_id)s, %(payout_id)s, %(refund_id)s, %(posts_hold)s,
        %(leg_merchants)s::text[], %(leg_kinds)s::text[], %(leg_assets)s::text[],
        %(leg_amounts)s::bigint[])
"""
_REVERSE: Final[LiteralString] = """
    SELECT ledger_reverse_entry(%(id)s, %(entry_id)s, %(key)s, %(reason)s)
"""
_PLACE_HOLD: Final[LiteralString] = """
    SELECT ledger_place_hold(
        %(id)s, %(mode)s, %(merchant_id)s, %(kind)s, %(asset)s, %(amount_minor)s, %(key)s,
        %(payment_id)s, %(refund_id)s, %(payout_id)s, %(expires_at)s)
"""
_PENDING_HOLD: Final[LiteralString] = """
    SELECT id FROM ledger_holds
    WHERE coalesce(payment_id, refund_id, payout_id) = %(subject_id)s AND status = 'pending'
    FOR NO KEY UPDATE
"""
_VOID_HOLD: Final[LiteralString] = """
    UPDATE ledger_holds SET status = 'voided'
    WHERE coalesce(payment_id, refund_id, payout_id) = %(subject_id)s AND status = 'pending'
    RETURNING true
"""
# From rows of kind, asset, posted_minor and held_minor: a Balance for each asset.
_SUMS: Final[LiteralString] = """
    SELECT asset,
           coalesce(-sum(posted_minor) FILTER (WHERE kind = 'merchant_available'), 0)::bigint
               AS posted_minor,
           coalesce(sum(held_minor) FILTER (WHERE kind = 'merchant_available'), 0)::bigint
               AS pending_minor,
           coalesce(sum(-posted_minor - held_minor) FILTER (WHERE kind = 'merchant_available'),
                    0)::bigint AS available_minor,
           coalesce(-sum(posted_minor) FILTER (WHERE kind = 'escrow_liability_pool'), 0)::bigint
               AS escrow_minor,
           coalesce(-sum(posted_minor) FILTER (WHERE kind = 'payer_excess'), 0)::bigint
               AS payer_excess_minor
"""
_BALANCES: Final[LiteralString] = (
    _SUMS
    + """
    FROM ledger_accounts
    WHERE merchant_id = %(merchant_id)s AND mode = %(mode)s
    GROUP BY asset
    ORDER BY asset
"""
)
# A posting counts from the start of the database transaction that booked it, a hold from its
# placing until its end.
_BALANCES_AT: Final[LiteralString] = (
    """
    WITH account AS (
        SELECT a.kind, a.asset,
               coalesce((SELECT sum(p.amount_minor) FROM ledger_postings AS p
                         WHERE p.account_id = a.id AND p.created_at <= %(at)s), 0) AS posted_minor,
               coalesce((SELECT sum(h.amount_minor) FROM ledger_holds AS h
                         WHERE h.account_id = a.id AND h.created_at <= %(at)s
                           AND (h.status = 'pending' OR h.status_at > %(at)s)), 0) AS held_minor
        FROM ledger_accounts AS a
        WHERE a.merchant_id = %(merchant_id)s AND a.mode = %(mode)s
    )
"""
    + _SUMS
    + """
    FROM account
    GROUP BY asset
    ORDER BY asset
"""
)
_STATEMENT: Final[LiteralString] = """
    WITH account AS (
        SELECT id FROM ledger_accounts
        WHERE merchant_id = %(merchant_id)s AND mode = %(mode)s AND kind = %(kind)s
          AND asset = %(asset)s
    ), start AS (
        SELECT p.created_at, p.entry_id, p.seq FROM ledger_postings AS p
        WHERE p.entry_id = %(after_entry)s AND p.seq = %(after_seq)s
          AND p.account_id = (SELECT id FROM account)
    ), page AS (
        SELECT p.entry_id, p.seq, p.amount_minor, p.created_at
        FROM ledger_postings AS p
        WHERE p.account_id = (SELECT id FROM account)
          AND (%(since)s::timestamptz IS NULL OR p.created_at >= %(since)s)
          AND (%(until)s::timestamptz IS NULL OR p.created_at < %(until)s)
          AND (%(after_entry)s::text IS NULL
               OR (p.created_at, p.entry_id, p.seq) > (SELECT created_at, entry_id, seq FROM start))
        ORDER BY p.created_at, p.entry_id, p.seq
        LIMIT %(limit)s
    ), opening AS (
        SELECT coalesce(sum(p.amount_minor), 0) AS amount_minor
        FROM ledger_postings AS p
        WHERE p.account_id = (SELECT id FROM account)
          AND (p.created_at, p.entry_id, p.seq)
              < (SELECT created_at, entry_id, seq FROM page
                 ORDER BY created_at, entry_id, seq LIMIT 1)
    )
    SELECT page.entry_id, page.seq, e.kind, -page.amount_minor AS amount_minor,
           (-opening.amount_minor
            - sum(page.amount_minor) OVER (ORDER BY page.created_at, page.entry_id, page.seq)
           )::bigint AS balance_minor,
           e.payment_id, e.refund_id, e.payout_id, e.description, page.created_at
    FROM page JOIN ledger_entries AS e ON e.id = page.entry_id CROSS JOIN opening
    ORDER BY page.created_at, page.entry_id, page.seq
"""
_HAS_LINE: Final[LiteralString] = """
    SELECT true
    FROM ledger_postings AS p JOIN ledger_accounts AS a ON a.id = p.account_id
    WHERE p.entry_id = %(entry_id)s AND p.seq = %(seq)s
      AND a.merchant_id = %(merchant_id)s AND a.mode = %(mode)s AND a.kind = %(kind)s
      AND a.asset = %(asset)s
"""
_ENTRY: Final[LiteralString] = """
    SELECT id, merchant_id, kind, payment_id, refund_id, payout_id, reverses_id, description,
           created_at
    FROM ledger_entries
    WHERE id = %(id)s
"""
_TRIAL_BALANCE: Final[LiteralString] = """
    SELECT asset, kind, sum(posted_minor)::bigint AS posted_minor,
           sum(held_minor)::bigint AS held_minor
    FROM ledger_accounts
    WHERE mode = %(mode)s
    GROUP BY asset, kind
    ORDER BY asset, kind
"""


async def post(unit: Unit, entry: Entry, posts_hold: str | None) -> None:
    """Queue the entry for PostgreSQL."""
    parameters: dict[str, Any] = {
        "id": new_id("ent"),
        "mode": entry.mode,
        "merchant_id": entry.merchant_id,
        "kind": entry.kind,
        "key": entry.key,
        "description": entry.description,
        "payment_id": entry.payment_id,
        "payout_id": entry.payout_id,
        "refund_id": entry.refund_id,
        "posts_hold": posts_hold,
        "leg_merchants": [leg.merchant_id for leg in entry.legs],
        "leg_kinds": [leg.kind for leg in entry.legs],
        "leg_assets": [leg.asset for leg in entry.legs],
        "leg_amounts": [leg.amount_minor for leg in entry.legs],
    }
    await unit.run(_POST_ENTRY, parameters)


async def reverse(unit: Unit, entry_id: str, *, key: str, reason: str) -> str:
    """Book the mirror image of an entry; return the reversal's id."""
    booked_id: str = await unit.value(
        _REVERSE, {"id": new_id("ent"), "entry_id": entry_id, "key": key, "reason": reason}
    )
    return booked_id


async def place_hold(unit: Unit, hold: Hold) -> str:
    """Send the hold to PostgreSQL; return the id of the hold that stands under its key."""
    placed_id: str = await unit.value(
        _PLACE_HOLD,
        {
            "id": new_id("hld"),
            "mode": hold.mode,
            "merchant_id": hold.merchant_id,
            "kind": hold.kind,
            "asset": hold.asset,
            "amount_minor": hold.amount_minor,
            "key": hold.key,
            "payment_id": hold.payment_id,
            "refund_id": hold.refund_id,
            "payout_id": hold.payout_id,
            "expires_at": hold.expires_at,
        },
    )
    return placed_id


async def pending_hold(unit: Unit, subject_id: str) -> str | None:
    """Return and lock the pending hold of a subject, if there is one."""
    found: str | None = await unit.value(_PENDING_HOLD, {"subject_id": subject_id})
    return found


async def end_hold(unit: Unit, subject_id: str) -> bool:
    """Void the pending hold of a subject; say whether there was one."""
    return bool(await unit.value(_VOID_HOLD, {"subject_id": subject_id}))


async def balances(unit: Unit, mode: str) -> list[Balance]:
    """Return the balances of the unit's merchant, one for each asset it ever held."""
    return await unit.all(Balance, _BALANCES, {"merchant_id": unit.merchant_id, "mode": mode})


async def balances_at(unit: Unit, mode: str, at: datetime) -> list[Balance]:
    """Return the balances of the unit's merchant as they were at a moment."""
    parameters = {"merchant_id": unit.merchant_id, "mode": mode, "at": at}
    return await unit.all(Balance, _BALANCES_AT, parameters)


async def statement(
    unit: Unit,
    mode: str,
    *,
    kind: AccountKind,
    asset: str,
    since: datetime | None,
    until: datetime | None,
    after: tuple[str, int] | None,
    limit: int,
) -> list[StatementLine]:
    """Return lines of one of the merchant's accounts with their running balance, oldest first."""
    after_entry, after_seq = (None, None) if after is None else after
    parameters = {
        "merchant_id": unit.merchant_id,
        "mode": mode,
        "kind": kind,
        "asset": asset,
        "since": since,
        "until": until,
        "after_entry": after_entry,
        "after_seq": after_seq,
        "limit": limit,
    }
    return await unit.all(StatementLine, _STATEMENT, parameters)


async def has_line(
    unit: Unit, mode: str, *, kind: AccountKind, asset: str, line: tuple[str, int]
) -> bool:
    """Say whether an entry id and seq are a line of one of the merchant's accounts."""
    entry_id, seq = line
    parameters = {
        "merchant_id": unit.merchant_id,
        "mode": mode,
        "kind": kind,
        "asset": asset,
        "entry_id": entry_id,
        "seq": seq,
    }
    return bool(await unit.value(_HAS_LINE, parameters))


async def get_entry(unit: Unit, entry_id: str) -> BookedEntry | None:
    """Return an entry that the unit may see."""
    return await unit.maybe(BookedEntry, _ENTRY, {"id": entry_id})


async def trial_balance(unit: Unit, mode: str) -> list[TrialLine]:
    """Return the sums of all accounts that the unit may see, by asset and kind."""
    return await unit.all(TrialLine, _TRIAL_BALANCE, {"mode": mode})
