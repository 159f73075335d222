"""The SQL of receipts and cursors."""

# Statements are put together from constants alone.
# ruff: noqa: S608

from collections.abc import Sequence
from datetime import datetime
from typing import Final, LiteralString

from api.chain.model import Cursor, Finalization, KnownTransfer, Receipt, Transfer
from api.contract import SOLANA
from api.database import Unit
from api.security import Mode

_SEE: Final[LiteralString] = """
    INSERT INTO chain_transfers (chain, signature, token_account, payment_id, payer_address,
                                 mint, amount_minor, slot, block_time, commitment)
    VALUES (%(chain)s, %(signature)s, %(token_account)s, %(payment_id)s, %(payer_address)s,
            %(mint)s, %(amount_minor)s, %(slot)s, %(block_time)s, 'confirmed')
    ON CONFLICT (chain, signature, token_account) DO UPDATE
    SET commitment = 'confirmed', slot = EXCLUDED.slot, block_time = EXCLUDED.block_time,
        amount_minor = EXCLUDED.amount_minor, payer_address = EXCLUDED.payer_address
    WHERE chain_transfers.commitment = 'dropped'
       OR (chain_transfers.commitment = 'confirmed' AND NOT chain_transfers.booked_early
           AND (chain_transfers.slot, chain_transfers.amount_minor)
               <> (EXCLUDED.slot, EXCLUDED.amount_minor))
    RETURNING true
"""
_FINALIZE: Final[LiteralString] = """
    WITH was AS (
        SELECT booked_early, amount_minor FROM chain_transfers
        WHERE chain = %(chain)s AND signature = %(signature)s AND token_account = %(token_account)s
    )
    INSERT INTO chain_transfers (chain, signature, token_account, payment_id, payer_address,
                                 mint, amount_minor, slot, block_time, commitment)
    VALUES (%(chain)s, %(signature)s, %(token_account)s, %(payment_id)s, %(payer_address)s,
            %(mint)s, %(amount_minor)s, %(slot)s, %(block_time)s, 'finalized')
    ON CONFLICT (chain, signature, token_account) DO UPDATE
    SET commitment = 'finalized', slot = EXCLUDED.slot, block_time = EXCLUDED.block_time,
        payment_id = CASE WHEN chain_transfers.booked_early THEN chain_transfers.payment_id
                          ELSE EXCLUDED.payment_id END,
        amount_minor = EXCLUDED.amount_minor, payer_address = EXCLUDED.payer_address
    WHERE chain_transfers.commitment <> 'finalized'
    RETURNING coalesce((SELECT booked_early FROM was), false) AS was_booked,
              coalesce((SELECT amount_minor FROM was), 0) AS was_minor
"""
_SEEN_MINOR: Final[LiteralString] = """
    SELECT coalesce(sum(amount_minor), 0)::bigint
    FROM chain_transfers
    WHERE payment_id = %(payment_id)s AND mint = %(mint)s
      AND commitment IN ('confirmed', 'finalized')
      AND (block_time IS NULL OR block_time <= %(until)s)
"""
_BOOK_EARLY: Final[LiteralString] = """
    UPDATE chain_transfers SET booked_early = true
    WHERE chain = %(chain)s AND signature = %(signature)s AND token_account = %(token_account)s
      AND commitment = 'confirmed' AND NOT booked_early
    RETURNING true
"""
_UNSETTLED: Final[LiteralString] = """
    SELECT signature, token_account, payment_id, commitment, slot
    FROM chain_transfers
    WHERE chain = %(chain)s AND commitment = 'confirmed' AND slot <= %(slot)s
    ORDER BY slot
    LIMIT %(limit)s
"""
_DROP: Final[LiteralString] = """
    WITH was AS (
        SELECT booked_early FROM chain_transfers
        WHERE chain = %(chain)s AND signature = %(signature)s AND token_account = %(token_account)s
    )
    UPDATE chain_transfers SET commitment = 'dropped', booked_early = false
    WHERE chain = %(chain)s AND signature = %(signature)s AND token_account = %(token_account)s
      AND commitment = 'confirmed'
    RETURNING (SELECT booked_early FROM was)
"""
_TRANSFER: Final[LiteralString] = """
    SELECT t.signature, t.token_account, t.payment_id, t.payer_address, t.mint, t.amount_minor,
           t.slot, t.block_time, t.commitment, t.recorded_at
    FROM chain_transfers AS t
"""
_ONE: Final[LiteralString] = """
    WHERE t.chain = %(chain)s AND t.signature = %(signature)s
      AND t.token_account = %(token_account)s
"""
_GET: Final[LiteralString] = _TRANSFER + _ONE
_LOCK: Final[LiteralString] = _GET + "FOR NO KEY UPDATE"
_OF_PAYMENTS: Final[LiteralString] = (
    _TRANSFER + "WHERE t.payment_id = ANY (%(payment_ids)s) ORDER BY t.slot, t.signature"
)
# A receipt that went back has the entry that says so; the key is unique, so this is one look-up.
_RETURNED: Final[LiteralString] = """
    SELECT true FROM ledger_entries
    WHERE idempotency_key = 'transfer_returned:' || %(signature)s || ':' || %(token_account)s
"""
# Books of the release before kept no modes apart, so the entry itself says which ones it is in.
_BOOKS_OF: Final[LiteralString] = """
    SELECT a.mode
    FROM ledger_entries AS e
    JOIN ledger_postings AS p ON p.entry_id = e.id
    JOIN ledger_accounts AS a ON a.id = p.account_id
    WHERE e.idempotency_key = 'transfer_suspended:' || %(signature)s || ':' || %(token_account)s
    LIMIT 1
"""
_UNASSIGNED: Final[LiteralString] = (
    _TRANSFER
    + """
    WHERE t.payment_id IS NULL AND t.commitment = 'finalized'
      AND NOT EXISTS (
          SELECT FROM ledger_entries AS e
          WHERE e.idempotency_key
                = 'transfer_returned:' || t.signature || ':' || t.token_account)
"""
)
_UNASSIGNED_OLDER: Final[LiteralString] = (
    _UNASSIGNED
    + """
      AND (%(signature)s::text IS NULL OR (t.slot, t.signature, t.token_account) < (
          SELECT c.slot, c.signature, c.token_account FROM chain_transfers AS c
          WHERE c.chain = %(chain)s AND c.signature = %(signature)s
            AND c.token_account = %(token_account)s))
    ORDER BY t.slot DESC, t.signature DESC, t.token_account DESC
    LIMIT %(limit)s
"""
)
_UNASSIGNED_NEWER: Final[LiteralString] = (
    _UNASSIGNED
    + """
      AND (t.slot, t.signature, t.token_account) > (
          SELECT c.slot, c.signature, c.token_account FROM chain_transfers AS c
          WHERE c.chain = %(chain)s AND c.signature = %(signature)s
            AND c.token_account = %(token_account)s)
    ORDER BY t.slot, t.signature, t.token_account
    LIMIT %(limit)s
"""
)
_ASSIGN: Final[LiteralString] = (
    """
    UPDATE chain_transfers AS t SET payment_id = %(payment_id)s
"""
    + _ONE
)
_CURSOR: Final[LiteralString] = """
    SELECT signature, slot FROM chain_cursors
    WHERE chain = %(chain)s AND token_account = %(token_account)s
"""
_MOVE_CURSOR: Final[LiteralString] = """
    INSERT INTO chain_cursors (chain, token_account, signature, slot)
    VALUES (%(chain)s, %(token_account)s, %(signature)s, %(slot)s)
    ON CONFLICT (chain, token_account) DO UPDATE
    SET signature = EXCLUDED.signature, slot = EXCLUDED.slot, updated_at = now()
    WHERE chain_cursors.slot <= EXCLUDED.slot
"""


def _row(receipt: Receipt, payment_id: str | None) -> dict[str, object]:
    return {
        "chain": SOLANA,
        "signature": receipt.signature,
        "token_account": receipt.account.address,
        "payment_id": payment_id,
        "payer_address": receipt.payer_address,
        "mint": receipt.account.mint,
        "amount_minor": receipt.amount_minor,
        "slot": receipt.slot,
        "block_time": receipt.block_time,
    }


async def see(unit: Unit, receipt: Receipt, payment_id: str | None) -> bool:
    """Record a receipt at confirmed; say whether that is news."""
    return bool(await unit.value(_SEE, _row(receipt, payment_id)))


async def finalize(unit: Unit, receipt: Receipt, payment_id: str | None) -> Finalization | None:
    """Record a receipt at finalized; news exactly once in its life, None after that."""
    return await unit.maybe(Finalization, _FINALIZE, _row(receipt, payment_id))


async def book_early(unit: Unit, receipt: Receipt) -> bool:
    """Mark a confirmed receipt as booked before it is final; True once: book it then."""
    key = _key(receipt.signature, receipt.account.address)
    return bool(await unit.value(_BOOK_EARLY, key))


async def seen_minor(unit: Unit, *, payment_id: str, mint: str, until: datetime) -> int:
    """Return how many units came for a payment by a moment, final or on their way."""
    parameters = {"payment_id": payment_id, "mint": mint, "until": until}
    seen: int = await unit.value(_SEEN_MINOR, parameters)
    return seen


async def unsettled(unit: Unit, *, finalized_slot: int, limit: int = 256) -> list[KnownTransfer]:
    """Return receipts still confirmed although the chain has finalized past their slot."""
    parameters = {"chain": SOLANA, "slot": finalized_slot, "limit": limit}
    return await unit.all(KnownTransfer, _UNSETTLED, parameters)


async def drop(unit: Unit, transfer: KnownTransfer) -> bool | None:
    """Record that a confirmed receipt vanished; say whether it was booked, None if no news."""
    was_booked: bool | None = await unit.value(
        _DROP, _key(transfer.signature, transfer.token_account)
    )
    return was_booked


async def cursor(unit: Unit, token_account: str) -> Cursor | None:
    """Return how far a token account has been dealt with."""
    return await unit.maybe(Cursor, _CURSOR, {"chain": SOLANA, "token_account": token_account})


async def move_cursor(unit: Unit, token_account: str, to: Cursor) -> None:
    """Move the cursor on, in the unit of work that dealt with everything up to there."""
    await unit.run(
        _MOVE_CURSOR,
        {
            "chain": SOLANA,
            "token_account": token_account,
            "signature": to.signature,
            "slot": to.slot,
        },
    )


async def get(unit: Unit, signature: str, token_account: str) -> Transfer:
    """Return a receipt that is certain to be there."""
    return await unit.one(Transfer, _GET, _key(signature, token_account))


async def lock(unit: Unit, signature: str, token_account: str) -> Transfer | None:
    """Return a receipt and keep others from assigning it until the unit of work ends."""
    return await unit.maybe(Transfer, _LOCK, _key(signature, token_account))


async def transfers_of(unit: Unit, payment_ids: Sequence[str]) -> list[Transfer]:
    """Return the receipts of these payments, oldest first."""
    return await unit.all(Transfer, _OF_PAYMENTS, {"payment_ids": list(payment_ids)})


async def was_returned(unit: Unit, transfer: Transfer) -> bool:
    """Say whether a receipt that named nobody went back to its sender."""
    return bool(await unit.value(_RETURNED, _key(transfer.signature, transfer.token_account)))


async def books_of(unit: Unit, transfer: Transfer) -> Mode:
    """Return in whose books, test or live, a receipt that named nobody waits."""
    mode: Mode = await unit.value(_BOOKS_OF, _key(transfer.signature, transfer.token_account))
    return mode


async def unassigned(
    unit: Unit, *, cursor: tuple[str, str] | None, newer: bool, limit: int
) -> list[Transfer]:
    """Return up to `limit` finalized receipts of nobody next to the cursor, nearest first."""
    signature, token_account = cursor or (None, None)
    parameters = {
        "chain": SOLANA,
        "signature": signature,
        "token_account": token_account,
        "limit": limit,
    }
    return await unit.all(Transfer, _UNASSIGNED_NEWER if newer else _UNASSIGNED_OLDER, parameters)


async def assign(unit: Unit, transfer: Transfer, payment_id: str) -> None:
    """Make a receipt that named nobody a payment's."""
    key = _key(transfer.signature, transfer.token_account)
    await unit.run(_ASSIGN, {**key, "payment_id": payment_id})


def _key(signature: str, token_account: str) -> dict[str, object]:
    return {"chain": SOLANA, "signature": signature, "token_account": token_account}
