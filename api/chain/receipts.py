"""Read chain transactions: pure, in integers, from the jsonParsed answer.

What counts is what changed in a token account, not which instruction did it: wallets add
instructions, and programs transfer on behalf of payers. A failed chain transaction and one that
brought nothing give no receipt. A form that cannot be read raises UnreadableTransaction; it never
counts as nothing.
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from api.chain.model import (
    Landed,
    Movement,
    Receipt,
    Stray,
    TokenAccount,
    UnreadableTransaction,
)

Json = dict[str, Any]

# The one program whose tokens we take: a Token-2022 mint may take fees, or the tokens back.
TOKEN_PROGRAM: Final = "TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA"  # noqa: S105 - an address


def landed_of(answer: Json) -> Landed:
    """Return what a `getTransaction` answer tells; raises UnreadableTransaction."""
    try:
        meta: Json = answer["meta"]
        keys = account_keys(answer)
        block_time = answer.get("blockTime")
        return Landed(
            signature=answer["transaction"]["signatures"][0],
            slot=int(answer["slot"]),
            block_time=None if block_time is None else datetime.fromtimestamp(block_time, UTC),
            failed=meta["err"] is not None,
            keys=tuple(keys),
            movements=_movements(meta, keys),
        )
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError, OSError) as problem:
        raise UnreadableTransaction(f"{type(problem).__name__}: {problem}") from problem


def receipt_of(landed: Landed, account: TokenAccount) -> Receipt | None:
    """Return what `account` received in a chain transaction, or None if it received nothing.

    The account must hold tokens of the expected mint for the expected owner, or the chain
    transaction is unreadable. Received is the balance after less the balance before; an account
    that did not exist before had 0.
    """
    if landed.failed or account.address not in landed.keys:
        return None
    ours = next((one for one in landed.movements if one.account == account.address), None)
    if ours is None:
        return None
    if ours.mint != account.mint or ours.owner != account.owner:
        raise UnreadableTransaction("the token account is not what it was")
    if ours.gained_minor <= 0:
        return None
    return Receipt(
        signature=landed.signature,
        account=account,
        amount_minor=ours.gained_minor,
        payer_address=_payer(landed, account.mint) or landed.keys[0],
        keys=landed.keys,
        slot=landed.slot,
        block_time=landed.block_time,
    )


def account_keys(answer: Json) -> list[str]:
    """Return all accounts of a chain transaction in the order that balances count them.

    Static keys, then those loaded from look-up tables: writable first, then read-only (version 0).
    jsonParsed lists the loaded ones among the keys; the plain encoding keeps them in the meta.
    """
    keys: list[str] = []
    has_loaded = False
    for key in answer["transaction"]["message"]["accountKeys"]:
        if isinstance(key, str):
            keys.append(key)
        else:
            keys.append(key["pubkey"])
            has_loaded = has_loaded or key.get("source") == "lookupTable"
    loaded = answer["meta"].get("loadedAddresses")
    if loaded and not has_loaded:
        keys += [*loaded["writable"], *loaded["readonly"]]
    return keys


def _movements(meta: Json, keys: list[str]) -> tuple[Movement, ...]:
    before = {balance["accountIndex"]: balance for balance in meta["preTokenBalances"] or []}
    after = {balance["accountIndex"]: balance for balance in meta["postTokenBalances"] or []}
    return tuple(
        Movement(
            account=keys[index],
            owner=(after.get(index) or before[index]).get("owner"),
            mint=_mint(after.get(index) or before[index]),
            before_minor=_units(before[index]) if index in before else 0,
            after_minor=_units(after[index]) if index in after else 0,
        )
        for index in sorted(before.keys() | after.keys())
    )


def _mint(balance: Json) -> str:
    """Return a balance's mint; of another token program it is told apart by the program's name.

    So a mint that stands at an address of ours under Token-2022 is not one of ours.
    """
    program = balance.get("programId", TOKEN_PROGRAM)
    mint: str = balance["mint"]
    return mint if program == TOKEN_PROGRAM else f"{program}:{mint}"


def _units(balance: Json) -> int:
    return int(balance["uiTokenAmount"]["amount"])


def _payer(landed: Landed, mint: str) -> str | None:
    """Return the owner who gave most of the mint's tokens, if any owner gave some."""
    gained: defaultdict[str, int] = defaultdict(int)
    for one in landed.movements:
        if one.mint == mint and one.owner:
            gained[one.owner] += one.gained_minor
    giver = min(gained, key=lambda owner: gained[owner], default=None)
    return giver if giver is not None and gained[giver] < 0 else None


def stray_of(
    landed: Landed, payment_id: str, *, wallet: str, accounts: Sequence[TokenAccount]
) -> Stray | None:
    """Return what a chain transaction with a payment's reference did, where it is no receipt.

    None where one of our token accounts received: then that account's history tells of it.
    """
    if any(receipt_of(landed, account) for account in accounts):
        return None
    ours = {account.mint for account in accounts}
    kind, found = "failed" if landed.failed else "nothing", None
    for one in () if landed.failed else landed.movements:
        if one.gained_minor <= 0:
            continue
        if one.owner == wallet and one.mint not in ours:
            kind, found = "wrong_token", one
            break
        if one.mint in ours:
            kind, found = "wrong_recipient", one
    return Stray(
        signature=landed.signature,
        payment_id=payment_id,
        kind=kind,
        mint=None if found is None else found.mint,
        # One of our wallet's other accounts is none that we take tokens in.
        recipient=None if found is None else _recipient(found, wallet),
        amount_minor=None if found is None else found.gained_minor,
        slot=landed.slot,
        block_time=landed.block_time,
    )


def _recipient(movement: Movement, wallet: str) -> str:
    """Return whom a payer has to ask: the owner, or of the wallet itself the token account."""
    return movement.account if movement.owner in {wallet, None} else str(movement.owner)
