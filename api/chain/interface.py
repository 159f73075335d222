"""What the watcher asks of a chain: a second chain is an implementation of `Chain`, and no more.

The rules below are what the books rely on. `tests/integration/test_chain_conformance.py` holds
every implementation to them against a real network; Solana's is `api.chain.rpc.ChainReader`.

Words. A *position* is a number that grows with the chain (on Solana a slot). A chain transaction is
*confirmed* once the network has voted for it, and may still be lost; *finalized* once it cannot be.
A *line* is an entry of an account's history. Every answer may be old; none may be invented.

1. Whatever keeps an answer away (refusal, timeout, a form that makes no sense) is ChainUnavailable.
   Then nothing was learnt. An empty or missing answer is a statement about the chain, never a
   failure in disguise.
2. Every call ends within the implementation's own deadline.
3. Amounts are integers of the token's smallest unit. Addresses and signatures are kept letter by
   letter, and are compared so.
4. Asking changes nothing. Any call may be repeated, and may run beside any other.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from api.chain.model import Commitment, Landed, SignatureInfo


class Chain(Protocol):
    """One view of one chain: a node, or whoever answers for one."""

    async def finalized_slot(self) -> int:
        """Return the newest finalized position.

        Everything finalized at or below it is in `signatures` and in `transaction`, asked after
        this. It does not fall, except where another node answers that is behind.
        """
        ...

    async def signatures(
        self, account: str, *, before: str | None, until: str | None, limit: int
    ) -> list[SignatureInfo]:
        """Return one page of the confirmed history of an address, newest first.

        Every chain transaction that names the address is one line, failed ones too, whether the
        address is one of our accounts or a payment's reference. The page starts behind `before`, or
        at the newest, and ends short of `until`. Fewer lines than `limit` mean that the history, or
        `until`, was reached; an unknown `before` gives none, an unknown `until` ends nothing. An
        address that nobody ever named has an empty history.
        """
        ...

    async def transaction(self, signature: str, commitment: Commitment) -> Landed | None:
        """Return a chain transaction with every token it moved, or None where it is not that sure.

        All addresses that it names are in `keys`, those from look-up tables too; each token account
        whose balance it touched is one movement, with its owner and mint after it. A failed one is
        said to have failed. A form that this version cannot read is UnreadableTransaction: it never
        counts as nothing. What is finalized is told the same for ever, and by everybody.
        """
        ...

    async def still_known(self, signatures: Sequence[str]) -> set[str]:
        """Return those that the chain holds without an error, at any commitment.

        One that is missing here, once the chain has finalized past its position, is lost.
        """
        ...

    def listen(
        self, accounts: Sequence[str]
    ) -> AbstractAsyncContextManager[AsyncIterator["Heard"]]:
        """Hear of news about addresses as it happens; ChainUnavailable where the line breaks.

        It only saves waiting. News may be missing, doubled and in any order, and nothing is
        believed because of it. Once the context is entered, what is news after that is told. A sign
        of life (`account` None) comes at least every few seconds while the line holds.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


@dataclass(frozen=True, slots=True)
class Heard:
    """News of an address at a position, or, without an address, a sign of life."""

    slot: int
    account: str | None = None
    is_final: bool = False
