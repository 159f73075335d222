"""The SQL of payouts. Row-level security limits every statement to its tenant."""

# Statements are put together from constants alone.
# ruff: noqa: S608

from dataclasses import dataclass
from typing import Final, LiteralString

from api.contract import PayoutStatus
from api.database import Unit
from api.paging import Paging
from api.payouts.model import EXPIRED, Payout

_COLUMNS: Final[LiteralString] = """
    id, merchant_id, mode, status, amount_minor, asset, destination, revision, requested_by,
    approved_by, approved_revision, approved_at, bank_reference, reason, created_at, status_at
"""
_ADD: Final[LiteralString] = f"""
    INSERT INTO payouts (id, merchant_id, mode, amount_minor, asset, destination, requested_by)
    VALUES (%(id)s, %(merchant_id)s, %(mode)s, %(amount_minor)s, %(asset)s, %(destination)s,
            %(requested_by)s)
    RETURNING {_COLUMNS}
"""
_GET: Final[LiteralString] = f"SELECT {_COLUMNS} FROM payouts WHERE id = %(id)s"
_LOCK: Final[LiteralString] = f"{_GET} FOR NO KEY UPDATE"
_AMEND: Final[LiteralString] = f"""
    UPDATE payouts
    SET amount_minor = %(amount_minor)s, destination = %(destination)s, revision = revision + 1,
        requested_by = %(requested_by)s
    WHERE id = %(id)s
    RETURNING {_COLUMNS}
"""
_APPROVE: Final[LiteralString] = f"""
    UPDATE payouts
    SET status = 'approved', approved_by = %(approved_by)s, approved_revision = revision,
        approved_at = now()
    WHERE id = %(id)s
    RETURNING {_COLUMNS}
"""
_MOVE: Final[LiteralString] = f"""
    UPDATE payouts SET status = %(status)s WHERE id = %(id)s
    RETURNING {_COLUMNS}
"""
_SEND: Final[LiteralString] = f"""
    UPDATE payouts SET status = 'sent', bank_reference = %(bank_reference)s WHERE id = %(id)s
    RETURNING {_COLUMNS}
"""
_FAIL: Final[LiteralString] = f"""
    UPDATE payouts SET status = 'failed', reason = %(reason)s WHERE id = %(id)s
    RETURNING {_COLUMNS}
"""
# Newest first. One row beyond the page says whether more follow.
_PAGE_FORWARD: Final[LiteralString] = f"""
    SELECT {_COLUMNS} FROM payouts
    WHERE (%(merchant_id)s::text IS NULL OR merchant_id = %(merchant_id)s)
      AND mode = %(mode)s
      AND (%(status)s::text IS NULL OR status = %(status)s)
      AND (%(cursor)s::text IS NULL OR id < %(cursor)s)
    ORDER BY id DESC
    LIMIT %(limit)s
"""
_PAGE_BACKWARD: Final[LiteralString] = f"""
    SELECT {_COLUMNS} FROM payouts
    WHERE (%(merchant_id)s::text IS NULL OR merchant_id = %(merchant_id)s)
      AND mode = %(mode)s
      AND (%(status)s::text IS NULL OR status = %(status)s)
      AND id > %(cursor)s
    ORDER BY id
    LIMIT %(limit)s
"""
# Payout and hold are both locked, so that one amended or approved a moment ago is not meant.
_EXPIRE: Final[LiteralString] = """
    WITH due AS (
        SELECT p.id
        FROM ledger_holds AS h JOIN payouts AS p ON p.id = h.payout_id
        WHERE h.status = 'pending' AND h.expires_at <= now() AND p.status = 'requested'
        ORDER BY h.expires_at
        LIMIT %(limit)s
        FOR NO KEY UPDATE OF p, h SKIP LOCKED
    )
    UPDATE payouts SET status = 'cancelled', reason = %(reason)s
    FROM due
    WHERE payouts.id = due.id
    RETURNING payouts.id
"""
_EXPIRE_HOLDS: Final[LiteralString] = """
    UPDATE ledger_holds SET status = 'expired'
    WHERE payout_id = ANY (%(payout_ids)s::text[]) AND status = 'pending'
"""


async def add(
    unit: Unit, *, payout_id: str, mode: str, amount_minor: int, asset: str, destination: str
) -> Payout:
    """Write down a payout request of the unit's merchant, asked for by its actor."""
    return await unit.one(
        Payout,
        _ADD,
        {
            "id": payout_id,
            "merchant_id": unit.merchant_id,
            "mode": mode,
            "amount_minor": amount_minor,
            "asset": asset,
            "destination": destination,
            "requested_by": unit.identity.actor,
        },
    )


async def get(unit: Unit, payout_id: str) -> Payout | None:
    """Return a payout that the unit may see."""
    return await unit.maybe(Payout, _GET, {"id": payout_id})


async def lock(unit: Unit, payout_id: str) -> Payout | None:
    """Return a payout that the unit may see, locked until it ends."""
    return await unit.maybe(Payout, _LOCK, {"id": payout_id})


async def amend(unit: Unit, payout_id: str, *, amount_minor: int, destination: str) -> Payout:
    """Write new terms as the next revision, asked for by the unit's actor."""
    return await unit.one(
        Payout,
        _AMEND,
        {
            "id": payout_id,
            "amount_minor": amount_minor,
            "destination": destination,
            "requested_by": unit.identity.actor,
        },
    )


async def approve(unit: Unit, payout_id: str) -> Payout:
    """Write down that the unit's actor approved the revision that stands."""
    return await unit.one(Payout, _APPROVE, {"id": payout_id, "approved_by": unit.identity.actor})


async def move(unit: Unit, payout_id: str, status: PayoutStatus) -> Payout:
    """Move a payout to a status that needs nothing else told."""
    return await unit.one(Payout, _MOVE, {"id": payout_id, "status": status})


async def send(unit: Unit, payout_id: str, *, bank_reference: str) -> Payout:
    """Write down by which bank transfer a payout is sent."""
    return await unit.one(Payout, _SEND, {"id": payout_id, "bank_reference": bank_reference})


async def fail(unit: Unit, payout_id: str, *, reason: str) -> Payout:
    """Write down why a payout failed."""
    return await unit.one(Payout, _FAIL, {"id": payout_id, "reason": reason})


async def page(
    unit: Unit, paging: Paging, *, merchant_id: str | None, mode: str, status: PayoutStatus | None
) -> tuple[list[Payout], bool]:
    """Return a page of payouts, newest first, and whether more follow in its direction."""
    query = _PAGE_BACKWARD if paging.is_backward else _PAGE_FORWARD
    found = await unit.all(
        Payout,
        query,
        {
            "merchant_id": merchant_id,
            "mode": mode,
            "status": status,
            "cursor": paging.cursor,
            "limit": paging.limit + 1,
        },
    )
    return paging.cut(found)


@dataclass(frozen=True, slots=True)
class _Id:
    id: str


async def expire(unit: Unit, *, limit: int) -> int:
    """Cancel requests whose hold has run out and end the holds; return how many there were."""
    due = await unit.all(_Id, _EXPIRE, {"limit": limit, "reason": EXPIRED})
    if due:
        await unit.run(_EXPIRE_HOLDS, {"payout_ids": [payout.id for payout in due]})
    return len(due)
