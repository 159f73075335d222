"""The SQL of watching: lines set aside, strays, what is looked at by reference, and providers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString

from api.chain.model import AsideLine, Stray, Watched
from api.chain.provider import Standing
from api.contract import SOLANA
from api.database import Unit

_SET_ASIDE: Final[LiteralString] = """
    INSERT INTO chain_set_aside (chain, signature, token_account, slot, reason)
    VALUES (%(chain)s, %(signature)s, %(token_account)s, %(slot)s, %(reason)s)
    ON CONFLICT (chain, signature, token_account) DO NOTHING
    RETURNING true
"""
_DUE_ASIDE: Final[LiteralString] = """
    SELECT signature, token_account, slot, reason, attempts
    FROM chain_set_aside
    WHERE chain = %(chain)s AND outcome IS NULL AND next_at <= now()
    ORDER BY next_at
    LIMIT %(limit)s
"""
_OPEN_ASIDE: Final[LiteralString] = """
    SELECT count(*) FROM chain_set_aside WHERE chain = %(chain)s AND outcome IS NULL
"""
# Soon at first, since most differences are those of a moment; every ten minutes in the end.
_PUT_OFF: Final[LiteralString] = """
    UPDATE chain_set_aside
    SET attempts = attempts + 1, reason = %(reason)s,
        next_at = now() + make_interval(secs => least(2 ^ least(attempts, 20), 600))
    WHERE chain = %(chain)s AND signature = %(signature)s AND token_account = %(token_account)s
      AND outcome IS NULL
"""
_RESOLVE: Final[LiteralString] = """
    UPDATE chain_set_aside
    SET attempts = attempts + 1, outcome = %(outcome)s, resolved_at = now()
    WHERE chain = %(chain)s AND signature = %(signature)s AND token_account = %(token_account)s
      AND outcome IS NULL
"""
_DEALT_WITH: Final[LiteralString] = """
    SELECT signature FROM chain_transfers
    WHERE chain = %(chain)s AND token_account = %(token_account)s
      AND signature = ANY (%(signatures)s) AND commitment = 'finalized'
    UNION ALL
    SELECT signature FROM chain_set_aside
    WHERE chain = %(chain)s AND token_account = %(token_account)s
      AND signature = ANY (%(signatures)s)
"""
_ROUND: Final[LiteralString] = """
    SELECT id, merchant_id, reference FROM payments
    WHERE status IN ('created', 'pending', 'confirming') AND id > %(after)s
    ORDER BY id
    LIMIT %(limit)s
"""
# Payments that their payer opened, or that ended, just now, and those about to end.
_URGENT: Final[LiteralString] = """
    (SELECT id, merchant_id, reference FROM payments
     WHERE status IN ('pending', 'confirming', 'expired')
       AND status_at > now() - make_interval(secs => %(opened_s)s)
     ORDER BY status_at DESC
     LIMIT %(limit)s)
    UNION
    (SELECT id, merchant_id, reference FROM payments
     WHERE status IN ('created', 'pending')
       AND expires_at < now() + make_interval(secs => %(ending_s)s)
     ORDER BY expires_at
     LIMIT %(limit)s)
"""
_KNOWN_OF: Final[LiteralString] = """
    SELECT signature FROM chain_strays
    WHERE payment_id = %(payment_id)s AND chain = %(chain)s
    UNION ALL
    SELECT signature FROM chain_transfers
    WHERE chain = %(chain)s AND signature = ANY (%(signatures)s) AND commitment = 'finalized'
    UNION ALL
    SELECT signature FROM chain_set_aside
    WHERE chain = %(chain)s AND signature = ANY (%(signatures)s)
"""
_STRAY: Final[LiteralString] = """
    INSERT INTO chain_strays (chain, signature, payment_id, merchant_id, kind, mint, recipient,
                              amount_minor, slot, block_time)
    VALUES (%(chain)s, %(signature)s, %(payment_id)s, %(merchant_id)s, %(kind)s, %(mint)s,
            %(recipient)s, %(amount_minor)s, %(slot)s, %(block_time)s)
    ON CONFLICT (payment_id, chain, signature) DO NOTHING
    RETURNING true
"""
_STRAYS: Final[LiteralString] = """
    SELECT signature, payment_id, kind, mint, recipient, amount_minor::text AS amount_minor, slot,
           block_time, recorded_at
    FROM chain_strays
    WHERE payment_id = ANY (%(payment_ids)s)
    ORDER BY slot, signature
"""
_TELL_STANDING: Final[LiteralString] = """
    INSERT INTO chain_providers (chain, number, name, state, finalized_slot, lag_slots, calls,
                                 failures, last_error, answered_at, disagreements, disagreed_at,
                                 disagreed_about)
    VALUES (%(chain)s, %(number)s, %(name)s, %(state)s, %(finalized_slot)s, %(lag_slots)s,
            %(calls)s, %(failures)s, %(last_error)s, %(answered_at)s, %(disagreements)s,
            %(disagreed_at)s, %(disagreed_about)s)
    ON CONFLICT (chain, number) DO UPDATE
    SET name = EXCLUDED.name, state = EXCLUDED.state, finalized_slot = EXCLUDED.finalized_slot,
        lag_slots = EXCLUDED.lag_slots, calls = EXCLUDED.calls, failures = EXCLUDED.failures,
        last_error = EXCLUDED.last_error, answered_at = EXCLUDED.answered_at,
        disagreements = EXCLUDED.disagreements, disagreed_at = EXCLUDED.disagreed_at,
        disagreed_about = EXCLUDED.disagreed_about, updated_at = now()
"""
_FORGET_PROVIDERS: Final[LiteralString] = """
    DELETE FROM chain_providers WHERE chain = %(chain)s AND number > %(count)s
"""
_PROVIDERS: Final[LiteralString] = """
    SELECT number, name, state, finalized_slot, lag_slots, calls, failures, last_error,
           answered_at, disagreements, disagreed_at, disagreed_about, updated_at
    FROM chain_providers
    WHERE chain = %(chain)s
    ORDER BY number
"""
_ASIDE: Final[LiteralString] = """
    SELECT signature, token_account, slot, reason, attempts, found_at, next_at
    FROM chain_set_aside
    WHERE chain = %(chain)s AND outcome IS NULL
    ORDER BY found_at
    LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class ProviderRow:
    """A provider as it was last told of."""

    number: int
    name: str
    state: str
    finalized_slot: int
    lag_slots: int
    calls: int
    failures: int
    last_error: str | None
    answered_at: datetime | None
    disagreements: int
    disagreed_at: datetime | None
    disagreed_about: str | None
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class AsideRow:
    """A line that waits, as an admin sees it."""

    signature: str
    token_account: str
    slot: int
    reason: str
    attempts: int
    found_at: datetime
    next_at: datetime


@dataclass(frozen=True, slots=True)
class RecordedStray:
    """A stray as it was written down; another's token may need more digits than ours."""

    signature: str
    payment_id: str
    kind: str
    mint: str | None
    recipient: str | None
    amount_minor: str | None
    slot: int
    block_time: datetime | None
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class _Signature:
    signature: str


def _line(signature: str, token_account: str) -> dict[str, object]:
    return {"chain": SOLANA, "signature": signature, "token_account": token_account}


async def set_aside(
    unit: Unit, *, signature: str, token_account: str, slot: int, reason: str
) -> bool:
    """Note a line that waits outside the cursor's order; say whether that is news."""
    parameters = {**_line(signature, token_account), "slot": slot, "reason": reason[:300]}
    return bool(await unit.value(_SET_ASIDE, parameters))


async def due_aside(unit: Unit, *, limit: int) -> list[AsideLine]:
    """Return lines that wait and whose time to be read again has come, the longest due first."""
    return await unit.all(AsideLine, _DUE_ASIDE, {"chain": SOLANA, "limit": limit})


async def count_aside(unit: Unit) -> int:
    """Return how many lines wait."""
    count: int = await unit.value(_OPEN_ASIDE, {"chain": SOLANA})
    return count


async def put_off(unit: Unit, line: AsideLine, *, reason: str) -> None:
    """Note that a line still waits, and why; the next time is later each time."""
    parameters = {**_line(line.signature, line.token_account), "reason": reason[:300]}
    await unit.run(_PUT_OFF, parameters)


async def resolve_aside(unit: Unit, line: AsideLine, *, outcome: str) -> None:
    """Note that a line is dealt with: `settled`, or it brought `nothing`."""
    parameters = {**_line(line.signature, line.token_account), "outcome": outcome}
    await unit.run(_RESOLVE, parameters)


async def dealt_with(unit: Unit, token_account: str, signatures: Sequence[str]) -> set[str]:
    """Return those whose receipt is final in the books, or that are set aside."""
    parameters = {
        "chain": SOLANA,
        "token_account": token_account,
        "signatures": list(signatures),
    }
    return {row.signature for row in await unit.all(_Signature, _DEALT_WITH, parameters)}


async def open_after(unit: Unit, payment_id: str, *, limit: int) -> list[Watched]:
    """Return open payments by id, behind one."""
    return await unit.all(Watched, _ROUND, {"after": payment_id, "limit": limit})


async def urgent(unit: Unit, *, opened_s: float, ending_s: float, limit: int) -> list[Watched]:
    """Return payments that were opened or ended so short ago, or that end so soon."""
    parameters = {"opened_s": opened_s, "ending_s": ending_s, "limit": limit}
    return await unit.all(Watched, _URGENT, parameters)


async def known_of(unit: Unit, payment_id: str, signatures: Sequence[str]) -> set[str]:
    """Return what is known among these of a payment, and all its strays."""
    parameters = {"chain": SOLANA, "payment_id": payment_id, "signatures": list(signatures)}
    return {row.signature for row in await unit.all(_Signature, _KNOWN_OF, parameters)}


async def add_stray(unit: Unit, stray: Stray, *, merchant_id: str) -> bool:
    """Write a stray down; say whether it is news."""
    return bool(
        await unit.value(
            _STRAY,
            {
                "chain": SOLANA,
                "merchant_id": merchant_id,
                "signature": stray.signature,
                "payment_id": stray.payment_id,
                "kind": stray.kind,
                "mint": stray.mint,
                "recipient": stray.recipient,
                "amount_minor": stray.amount_minor,
                "slot": stray.slot,
                "block_time": stray.block_time,
            },
        )
    )


async def strays_of(unit: Unit, payment_ids: Sequence[str]) -> list[RecordedStray]:
    """Return the strays of these payments, oldest first."""
    return await unit.all(RecordedStray, _STRAYS, {"payment_ids": list(payment_ids)})


async def tell_standings(unit: Unit, standings: Sequence[Standing]) -> None:
    """Write down how each provider does, and forget those no longer configured."""
    for standing in standings:
        await unit.run(
            _TELL_STANDING,
            {
                "chain": SOLANA,
                "number": standing.number,
                "name": standing.name,
                "state": standing.state,
                "finalized_slot": standing.finalized_slot,
                "lag_slots": standing.lag_slots,
                "calls": standing.calls,
                "failures": standing.failures,
                "last_error": standing.last_error,
                "answered_at": standing.answered_at,
                "disagreements": standing.disagreements,
                "disagreed_at": standing.disagreed_at,
                "disagreed_about": standing.disagreed_about,
            },
        )
    await unit.run(_FORGET_PROVIDERS, {"chain": SOLANA, "count": len(standings)})


async def providers(unit: Unit) -> list[ProviderRow]:
    """Return how each provider does."""
    return await unit.all(ProviderRow, _PROVIDERS, {"chain": SOLANA})


async def aside(unit: Unit, *, limit: int) -> list[AsideRow]:
    """Return the lines that wait, the longest first."""
    return await unit.all(AsideRow, _ASIDE, {"chain": SOLANA, "limit": limit})
