"""The SQL of receipts and cursors."""

from typing import Final, LiteralString

from api.chain.model import Cursor, KnownTransfer, Receipt
from api.contract import SOLANA
from api.database import Unit

_SEE: Final[LiteralString] = """
    INSERT INTO chain_transfers (chain, signature, token_account, payment_id, payer_address,
                                 mint, amount_minor, slot, block_time, commitment)
    VALUES (%(chain)s, %(signature)s, %(token_account)s, %(payment_id)s, %(payer_address)s,
            %(mint)s, %(amount_minor)s, %(slot)s, %(block_time)s, 'confirmed')
    ON CONFLICT (chain, signature, token_account) DO UPDATE
    SET commitment = 'confirmed', slot = EXCLUDED.slot, block_time = EXCLUDED.block_time
    WHERE chain_transfers.commitment = 'dropped'
    RETURNING true
"""
_FINALIZE: Final[LiteralString] = """
    INSERT INTO chain_transfers (chain, signature, token_account, payment_id, payer_address,
                                 mint, amount_minor, slot, block_time, commitment)
    VALUES (%(chain)s, %(signature)s, %(token_account)s, %(payment_id)s, %(payer_address)s,
            %(mint)s, %(amount_minor)s, %(slot)s, %(block_time)s, 'finalized')
    ON CONFLICT (chain, signature, token_account) DO UPDATE
    SET commitment = 'finalized', slot = EXCLUDED.slot, block_time = EXCLUDED.block_time,
        payment_id = EXCLUDED.payment_id
    WHERE chain_transfers.commitment <> 'finalized'
    RETURNING true
"""
_SEEN_MINOR: Final[LiteralString] = """
    SELECT coalesce(sum(amount_minor), 0)::bigint
    FROM chain_transfers
    WHERE payment_id = %(payment_id)s AND mint = %(mint)s
      AND commitment IN ('confirmed', 'finalized')
"""
_UNSETTLED: Final[LiteralString] = """
    SELECT signature, token_account, payment_id, commitment, slot
    FROM chain_transfers
    WHERE chain = %(chain)s AND commitment = 'confirmed' AND slot <= %(slot)s
    ORDER BY slot
    LIMIT %(limit)s
"""
_DROP: Final[LiteralString] = """
    UPDATE chain_transfers SET commitment = 'dropped'
    WHERE chain = %(chain)s AND signature = %(signature)s AND token_account = %(token_account)s
      AND commitment = 'confirmed'
    RETURNING true
"""
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


async def finalize(unit: Unit, receipt: Receipt, payment_id: str | None) -> bool:
    """Record a receipt at finalized; True exactly once in its life: book it then."""
    return bool(await unit.value(_FINALIZE, _row(receipt, payment_id)))


async def seen_minor(unit: Unit, *, payment_id: str, mint: str) -> int:
    """Return how many units are on their way to a payment or have arrived."""
    seen: int = await unit.value(_SEEN_MINOR, {"payment_id": payment_id, "mint": mint})
    return seen


async def unsettled(unit: Unit, *, finalized_slot: int, limit: int = 256) -> list[KnownTransfer]:
    """Return receipts still confirmed although the chain has finalized past their slot."""
    parameters = {"chain": SOLANA, "slot": finalized_slot, "limit": limit}
    return await unit.all(KnownTransfer, _UNSETTLED, parameters)


async def drop(unit: Unit, transfer: KnownTransfer) -> bool:
    """Record that a confirmed receipt vanished; say whether that is news."""
    return bool(
        await unit.value(
            _DROP,
            {
                "chain": SOLANA,
                "signature": transfer.signature,
                "token_account": transfer.token_account,
            },
        )
    )


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
