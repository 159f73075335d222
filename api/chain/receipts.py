"""Read a receipt out of a chain transaction: pure, in integers, from the jsonParsed answer.

What counts is what changed in our token account, not which instruction did it: wallets add
instructions, and programs transfer on behalf of payers. A failed chain transaction and one that
brought nothing give None. A form that cannot be read raises UnreadableTransaction; it never counts
as nothing.
"""

from collections import defaultdict
from datetime import UTC, datetime
from typing import Any

from api.chain.model import Receipt, TokenAccount, UnreadableTransaction

Json = dict[str, Any]


def receipt_of(answer: Json, account: TokenAccount) -> Receipt | None:
    """Return what `account` received in a `getTransaction` answer, or None if it received nothing.

    The account must hold tokens of the expected mint for the expected owner. Received is the
    balance after less the balance before; an account that did not exist before had 0.
    """
    try:
        meta: Json = answer["meta"]
        if meta["err"] is not None:
            return None
        keys = account_keys(answer)
        if account.address not in keys:
            return None
        index = keys.index(account.address)
        after = _balance_at(meta["postTokenBalances"] or [], index)
        if after is None:
            return None
        if after["mint"] != account.mint or after["owner"] != account.owner:
            raise UnreadableTransaction("the token account is not what it was")
        before = _balance_at(meta["preTokenBalances"] or [], index)
        amount_minor = _units(after) - (_units(before) if before is not None else 0)
        if amount_minor <= 0:
            return None
        block_time = answer.get("blockTime")
        return Receipt(
            signature=answer["transaction"]["signatures"][0],
            account=account,
            amount_minor=amount_minor,
            payer_address=_payer(meta, account) or keys[0],
            keys=tuple(keys),
            slot=int(answer["slot"]),
            block_time=None if block_time is None else datetime.fromtimestamp(block_time, UTC),
        )
    except (KeyError, TypeError, IndexError, ValueError) as problem:
        raise UnreadableTransaction(f"{type(problem).__name__}: {problem}") from problem


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


def _balance_at(balances: list[Json], index: int) -> Json | None:
    return next((balance for balance in balances if balance["accountIndex"] == index), None)


def _units(balance: Json) -> int:
    return int(balance["uiTokenAmount"]["amount"])


def _payer(meta: Json, account: TokenAccount) -> str | None:
    """Return the owner who gave most of the mint's tokens, if any owner gave some."""
    gained: defaultdict[str, int] = defaultdict(int)
    for sign, balances in (
        (-1, meta["preTokenBalances"] or []),
        (1, meta["postTokenBalances"] or []),
    ):
        for balance in balances:
            if balance["mint"] == account.mint and balance.get("owner"):
                gained[balance["owner"]] += sign * _units(balance)
    giver = min(gained, key=lambda owner: gained[owner], default=None)
    return giver if giver is not None and gained[giver] < 0 else None
