"""One provider of a chain, with how it does: every call is counted, and failures have it rest.

Of several, one that failed a few times in a row is not asked for a while, growing to some seconds:
so one that hangs costs its timeout now and then, and not at every question. Whoever asks meanwhile
is told ChainUnavailable at once, which is what the provider would have said later.
"""

import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from api.chain.interface import Chain
from api.chain.model import Commitment, Landed, SignatureInfo
from api.errors import ChainUnavailable
from infra.telemetry import get_logger

_log = get_logger(__name__)
T = TypeVar("T")

# Nodes are a few slots apart at any time; more than this is said.
_LAG_WORTH_TELLING: Final = 32
_FAILURES_TO_REST: Final = 3
_FIRST_REST_S: Final = 0.25
_LONGEST_REST_S: Final = 10.0
_DISAGREEMENT_IS_RECENT: Final = timedelta(minutes=10)


@dataclass(slots=True)
class Standing:
    """How a provider does; `name` is place and host, never the address, which may hold a key."""

    number: int
    name: str
    calls: int = 0
    failures: int = 0
    last_error: str | None = None
    answered_at: datetime | None = None
    finalized_slot: int = 0
    lag_slots: int = 0
    disagreements: int = 0
    disagreed_at: datetime | None = None
    disagreed_about: str | None = None
    rests_until: float = field(default=0.0, repr=False)

    @property
    def state(self) -> str:
        """One word for a person: the worst that holds."""
        if self.failures >= _FAILURES_TO_REST:
            return "failing"
        if (
            self.disagreed_at is not None
            and datetime.now(UTC) - self.disagreed_at < _DISAGREEMENT_IS_RECENT
        ):
            return "disagreeing"
        return "lagging" if self.lag_slots > _LAG_WORTH_TELLING else "well"

    def disagree(self, signature: str) -> None:
        """Note that this provider and another tell a chain transaction differently."""
        if self.disagreed_about != signature:
            self.disagreements += 1
        self.disagreed_at, self.disagreed_about = datetime.now(UTC), signature


class Provider:
    """A chain as one provider shows it: `Chain`'s questions, counted and timed out."""

    def __init__(self, number: int, name: str, chain: Chain, *, may_rest: bool) -> None:
        self.chain = chain
        self.standing = Standing(number, name)
        self._may_rest = may_rest

    async def finalized_slot(self) -> int:
        """See `Chain.finalized_slot`."""
        slot = await self._ask(self.chain.finalized_slot)
        self.standing.finalized_slot = slot
        return slot

    async def signatures(
        self, account: str, *, before: str | None, until: str | None, limit: int
    ) -> list[SignatureInfo]:
        """See `Chain.signatures`."""
        return await self._ask(
            lambda: self.chain.signatures(account, before=before, until=until, limit=limit)
        )

    async def transaction(self, signature: str, commitment: Commitment) -> Landed | None:
        """See `Chain.transaction`."""
        return await self._ask(lambda: self.chain.transaction(signature, commitment))

    async def still_known(self, signatures: Sequence[str]) -> set[str]:
        """See `Chain.still_known`."""
        return await self._ask(lambda: self.chain.still_known(signatures))

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        standing = self.standing
        if time.monotonic() < standing.rests_until:
            raise ChainUnavailable(f"provider {standing.name} rests: {standing.last_error}")
        standing.calls += 1
        try:
            answer = await question()
        except ChainUnavailable as failure:
            self._note_failure(str(failure))
            raise
        if standing.failures >= _FAILURES_TO_REST:
            _log.info("provider answers again", provider=standing.name)
        standing.failures = 0
        standing.answered_at = datetime.now(UTC)
        return answer

    def _note_failure(self, reason: str) -> None:
        standing = self.standing
        standing.failures += 1
        standing.last_error = reason
        over = standing.failures - _FAILURES_TO_REST
        if over == 0:
            _log.warning("provider fails", provider=standing.name, reason=reason)
        if over >= 0 and self._may_rest:
            rest_s = min(_FIRST_REST_S * 2 ** min(over, 10), _LONGEST_REST_S)
            standing.rests_until = time.monotonic() + rest_s * random.uniform(0.5, 1.0)
