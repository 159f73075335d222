"""Several views of one chain taken together: what any lists is looked at, what all say is believed.

| question                     | answer                                                       |
|------------------------------|--------------------------------------------------------------|
| what is finalized            | what the slowest has finalized; unknown where one is silent  |
| which lines an account has   | those that any of them lists; complete where all answered    |
| what a chain transaction did | agreed where all say the same                                |
| whether it is still known    | by any of them; unknown where one is silent                  |

So one that lags delays, and one that lies, drops or hangs keeps what it is wrong about from being
booked, never what it is right about; the others' lines are seen meanwhile. A single provider's word
is what there is. Only where nobody answers is ChainUnavailable raised. How each does is kept for
the operator.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

from api.chain.backlog import Backlog, read_backlog, unite
from api.chain.interface import Chain
from api.chain.model import Commitment, Cursor, Landed, SignatureInfo, UnreadableTransaction
from api.chain.provider import Provider, Standing
from api.errors import ChainUnavailable
from infra.telemetry import get_logger

_log = get_logger(__name__)
T = TypeVar("T")


class Reading(NamedTuple):
    """What a chain transaction did: `landed`, or None where nobody has it that sure.

    `is_agreed` where all providers say the same, a None included; else `reason` says what is in the
    way, and `is_answered` whether all answered: then it is the providers that differ.
    """

    landed: Landed | None
    is_agreed: bool = True
    is_answered: bool = True
    reason: str = ""


class Providers:
    """The configured providers of one chain, in order."""

    def __init__(self, chains: Sequence[tuple[str, Chain]]) -> None:
        if not chains:
            raise ValueError("a chain needs a provider")
        self._providers = tuple(
            Provider(number, name, chain, may_rest=len(chains) > 1)
            for number, (name, chain) in enumerate(chains, start=1)
        )
        self._turn = 0

    @property
    def chains(self) -> tuple[Chain, ...]:
        """The providers' chains, for listening to each."""
        return tuple(provider.chain for provider in self._providers)

    @property
    def standings(self) -> tuple[Standing, ...]:
        """How each provider does."""
        return tuple(provider.standing for provider in self._providers)

    @property
    def calls(self) -> int:
        """How many calls were made so far, to all of them."""
        return sum(standing.calls for standing in self.standings)

    def trouble(self) -> str:
        """Return one line for a person about the providers that are not well, or nothing."""
        return ", ".join(
            f"provider {standing.name} is {standing.state}"
            for standing in self.standings
            if standing.state != "well"
        )

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(chain.close() for chain in self.chains))

    async def finalized_slot(self) -> int | None:
        """Return what all have finalized, or None where one does not say."""
        slots = await self._ask_all(lambda provider: provider.finalized_slot())
        newest = max(slots.values())
        for number, slot in slots.items():
            self.standings[number].lag_slots = newest - slot
        return min(slots.values()) if len(slots) == len(self._providers) else None

    async def backlog(
        self, account: str, cursor: Cursor | None, *, page_limit: int, keep: int
    ) -> Backlog:
        """Return the oldest `keep` lines after the cursor that any provider lists."""
        told = await self._ask_all(
            lambda provider: read_backlog(
                provider, account, cursor, page_limit=page_limit, keep=keep
            )
        )
        return unite(list(told.values()), of=len(self._providers), keep=keep)

    async def transaction(self, signature: str, commitment: Commitment) -> Reading:
        """Ask all what a chain transaction did; raises UnreadableTransaction where all say so."""

        async def read(provider: Provider) -> Landed | UnreadableTransaction | None:
            try:
                return await provider.transaction(signature, commitment)
            except UnreadableTransaction as problem:
                return problem

        told = await self._ask_all(read)
        answers = list(told.values())
        landed = next((answer for answer in answers if isinstance(answer, Landed)), None)
        if len(told) < len(self._providers):
            return Reading(landed, is_agreed=False, is_answered=False, reason="unanswered")
        unreadable = [one for one in answers if isinstance(one, UnreadableTransaction)]
        if len(unreadable) == len(answers):
            raise unreadable[0]
        if all(answer == answers[0] for answer in answers):
            return Reading(landed)
        reason = "missing" if None in answers else "contradicted"
        if commitment is Commitment.FINALIZED:
            for standing in self.standings:
                standing.disagree(signature)
            _log.error("providers disagree", signature=signature, reason=reason)
        return Reading(landed, is_agreed=False, reason=reason)

    async def still_known(self, signatures: Sequence[str]) -> set[str] | None:
        """Return those that any provider knows, or None where one does not say."""
        told = await self._ask_all(lambda provider: provider.still_known(signatures))
        if len(told) < len(self._providers):
            return None
        return set[str]().union(*told.values())

    async def page(self, account: str, *, before: str | None, limit: int) -> list[SignatureInfo]:
        """Return a page of a history from one provider, another's each time.

        What one drops another shows then. Raises ChainUnavailable.
        """
        self._turn += 1
        provider = self._providers[self._turn % len(self._providers)]
        return await provider.signatures(account, before=before, until=None, limit=limit)

    async def _ask_all(self, question: Callable[[Provider], Awaitable[T]]) -> dict[int, T]:
        """Ask everybody at once, and return who answered what; raises ChainUnavailable."""

        async def ask(provider: Provider) -> T | ChainUnavailable:
            try:
                return await question(provider)
            except ChainUnavailable as silence:
                return silence

        answers = await asyncio.gather(*(ask(provider) for provider in self._providers))
        told = {
            number: answer
            for number, answer in enumerate(answers)
            if not isinstance(answer, ChainUnavailable)
        }
        if not told:
            raise next(answer for answer in answers if isinstance(answer, ChainUnavailable))
        return told
