"""Know at once that something happened on a chain, without believing a word of it.

Listens to every provider, connects again with back-off and jitter, and hangs up on one that is
silent. A hint wakes who waits and says which account to look at. While no line holds, `is_healthy`
is False and the watcher asks more often instead; so a broken or lying line costs time at most.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Final

from api.chain.interface import Chain
from api.errors import ChainUnavailable
from infra.telemetry import get_logger

_log = get_logger(__name__)

_SILENCE_S: Final = 10.0
_FIRST_PAUSE_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 15.0


class Hints:
    """What the subscriptions have told since it was last asked for."""

    def __init__(self) -> None:
        self._woken = asyncio.Event()
        self._accounts: set[str] = set()
        self._lines: set[int] = set()
        # The newest position at which an account of ours was told to have changed for good.
        self.final_slot = 0

    @property
    def is_healthy(self) -> bool:
        """Whether any line holds."""
        return bool(self._lines)

    @property
    def has_news(self) -> bool:
        """Whether anything was heard since `take`."""
        return self._woken.is_set()

    async def wait(self, seconds: float) -> None:
        """Return at the next hint, or after so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return

    def take(self) -> set[str]:
        """Return the accounts that were heard of, and forget them."""
        heard, self._accounts = self._accounts, set()
        self._woken.clear()
        return heard

    async def listen(self, number: int, chain: Chain, accounts: Sequence[str]) -> None:
        """Listen to a provider for ever."""
        failures = 0
        while True:
            try:
                async with chain.listen(accounts) as news:
                    self._lines.add(number)
                    # What happened while nobody listened is news too.
                    self._woken.set()
                    _log.info("listening", provider=number)
                    while True:
                        async with asyncio.timeout(_SILENCE_S):
                            heard = await anext(news)
                        failures = 0
                        if heard.account is not None:
                            self._hear(heard.account, heard.slot, is_final=heard.is_final)
            except (ChainUnavailable, TimeoutError, StopAsyncIteration) as broken:
                failures += 1
                reason = str(broken) or "silence"
                _log.warning("not listening", provider=number, reason=reason, failures=failures)
            finally:
                self._lines.discard(number)
            # Whoever waits slowly, trusting this line, looks now and then asks more often.
            self._woken.set()
            pause_s = min(_FIRST_PAUSE_S * 2 ** min(failures, 10), _LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))

    def _hear(self, account: str, slot: int, *, is_final: bool) -> None:
        self._accounts.add(account)
        if is_final:
            self.final_slot = max(self.final_slot, slot)
        self._woken.set()
