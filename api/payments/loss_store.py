"""The SQL of losses: what the ledger booked for a payment, and what of it can be undone."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString

from api.database import Unit
from api.payments.model import Payment

_COUNT: Final[LiteralString] = """
    SELECT count(*)
    FROM ledger_entries AS e JOIN ledger_entries AS r ON r.reverses_id = e.id
    WHERE e.payment_id = %(payment_id)s AND e.kind = 'payment_completed'
"""
_COMPLETION: Final[LiteralString] = """
    SELECT e.id AS entry_id, (-sum(p.amount_minor))::bigint AS credited_minor
    FROM ledger_entries AS e
    JOIN ledger_postings AS p ON p.entry_id = e.id
    JOIN ledger_accounts AS a ON a.id = p.account_id
    WHERE e.payment_id = %(payment_id)s AND e.kind = 'payment_completed'
      AND a.kind = 'merchant_available'
      AND NOT EXISTS (SELECT FROM ledger_entries AS r WHERE r.reverses_id = e.id)
    GROUP BY e.id
"""
# Locked until the unit of work ends, so that what is free now is free when it is taken.
_FREE: Final[LiteralString] = """
    SELECT -posted_minor - held_minor
    FROM ledger_accounts
    WHERE path = ledger_path(%(mode)s, %(merchant_id)s, 'merchant_available', %(currency)s, '')
    FOR NO KEY UPDATE
"""
_EXCESS: Final[LiteralString] = """
    SELECT e.id AS entry_id, t.signature, t.token_account, t.payer_address, t.amount_minor, t.slot,
           t.block_time, e.idempotency_key LIKE '%%:assigned' AS is_assigned
    FROM chain_transfers AS t
    JOIN ledger_entries AS e ON e.idempotency_key IN (
        'payment_overpaid:' || t.signature || ':' || t.token_account,
        'payment_overpaid:' || t.signature || ':' || t.token_account || ':assigned')
    WHERE t.payment_id = %(payment_id)s AND t.commitment = 'finalized' AND t.mint = %(mint)s
      AND NOT EXISTS (SELECT FROM ledger_entries AS r WHERE r.reverses_id = e.id)
    ORDER BY t.slot, t.signature
"""
_WRONG_MINT: Final[LiteralString] = """
    SELECT EXISTS (SELECT FROM chain_transfers
                   WHERE payment_id = %(payment_id)s AND commitment = 'finalized'
                     AND mint <> %(mint)s)
"""
_LOST: Final[LiteralString] = """
    SELECT coalesce(sum(p.amount_minor), 0)::bigint
    FROM ledger_entries AS e
    JOIN ledger_postings AS p ON p.entry_id = e.id
    JOIN ledger_accounts AS a ON a.id = p.account_id
    WHERE e.payment_id = %(payment_id)s AND a.kind = 'chain_loss'
"""


@dataclass(frozen=True, slots=True)
class Completion:
    """The entry that completed a payment, and the dong it gave the merchant."""

    entry_id: str
    credited_minor: int


@dataclass(frozen=True, slots=True)
class Excess:
    """A finalized receipt that came on top, and the entry that booked it."""

    entry_id: str
    signature: str
    token_account: str
    payer_address: str | None
    amount_minor: int
    slot: int
    block_time: datetime | None
    is_assigned: bool


async def count(unit: Unit, payment_id: str) -> int:
    """Return how many entries that completed a payment were reversed."""
    found: int = await unit.value(_COUNT, {"payment_id": payment_id})
    return found


async def completion(unit: Unit, payment_id: str) -> Completion | None:
    """Return the entry by which a payment is complete, if it still stands."""
    return await unit.maybe(Completion, _COMPLETION, {"payment_id": payment_id})


async def free_minor(unit: Unit, payment: Payment) -> int:
    """Return and lock what a payment's merchant has available."""
    free: int = await unit.value(
        _FREE,
        {"mode": payment.mode, "merchant_id": payment.merchant_id, "currency": payment.currency},
    )
    return free


async def excess(unit: Unit, payment: Payment) -> list[Excess]:
    """Return what came on top of a completed payment in its own token, oldest first."""
    return await unit.all(Excess, _EXCESS, {"payment_id": payment.id, "mint": payment.mint})


async def has_other_token(unit: Unit, payment: Payment) -> bool:
    """Say whether tokens other than those asked for came for a payment."""
    return bool(await unit.value(_WRONG_MINT, {"payment_id": payment.id, "mint": payment.mint}))


async def lost_minor(unit: Unit, payment_id: str) -> int:
    """Return what of a payment's loss the platform bears, in its currency."""
    lost: int = await unit.value(_LOST, {"payment_id": payment_id})
    return lost
