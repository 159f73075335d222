"""Look for what carries a payment's reference, beside what our token accounts tell.

A payer may send another mint, to another recipient, or only a mark: no history of ours shows that,
the reference's does. What is found there is written down for the merchant (a stray) and never
booked; a receipt of ours that was passed over is set aside to be booked the usual way. Calls are
bounded by a budget a minute, whatever the number of open payments: half of it is for payments that
their payer opened or that end, the rest goes round all open ones. Nothing here holds up a booking.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from api.audit import service as audit
from api.chain import store as chain_store
from api.chain import watch_store
from api.chain.model import (
    Commitment,
    SignatureInfo,
    Stray,
    TokenAccount,
    UnreadableTransaction,
    Watched,
)
from api.chain.providers import Providers
from api.chain.receipts import receipt_of, stray_of
from api.database import Database, Identity
from api.errors import ChainUnavailable, DatabaseUnavailable
from api.payments.lines import WATCHER
from api.settings import WatcherSettings
from infra.telemetry import get_logger

_log = get_logger(__name__)

_TICK_S: Final = 1.0
_LOOK_DEADLINE_S: Final = 60.0
_OPENED_S: Final = 120.0
_ENDING_S: Final = 30.0
# An urgent payment is not looked at more often than this, and so many are remembered for it.
_AGAIN_S: Final = 10.0
_REMEMBERED: Final = 5_000
# Anybody can put anybody's reference into a chain transaction. So many are read at one look, so
# many are written down for one payment, and so many pages of its history are turned.
_READS_A_LOOK: Final = 5
_MOST_STRAYS: Final = 100
_PAGE: Final = 100
_MOST_PAGES: Final = 20


class References:
    """Looks at the references of open payments, within the budget."""

    def __init__(
        self,
        database: Database,
        providers: Providers,
        settings: WatcherSettings,
        accounts: Sequence[TokenAccount],
    ) -> None:
        self._database = database
        self._providers = providers
        self._settings = settings
        self._accounts = accounts
        self._after = ""
        # Calls made so far.
        self.calls = 0
        self._looked: OrderedDict[str, float] = OrderedDict()

    async def run(self) -> None:
        """Look every second, for ever; what is not there today is looked for again."""
        a_second = self._settings.reference_calls_per_minute / 60
        allowed = 0.0
        while True:
            allowed = min(allowed + a_second * _TICK_S, max(2 * a_second, 1.0))
            if allowed >= 1:
                try:
                    async with asyncio.timeout(_LOOK_DEADLINE_S):
                        allowed -= await self.look(int(allowed))
                except (ChainUnavailable, DatabaseUnavailable, TimeoutError) as problem:
                    # Each failed look has cost a call at most; the sweep reports who is down.
                    allowed -= 1
                    _log.debug("references not looked at", reason=str(problem))
            await asyncio.sleep(_TICK_S)

    async def look(self, calls: int) -> int:
        """Look at as many payments as so many calls allow, and return how many calls it took.

        It takes more where there was news; those come off the next looks.
        """
        before = self.calls
        for payment in await self._next(calls):
            await self._look_at(payment)
            self._looked[payment.id] = time.monotonic()
            self._looked.move_to_end(payment.id)
            if len(self._looked) > _REMEMBERED:
                self._looked.popitem(last=False)
            if self.calls - before >= calls:
                break
        return self.calls - before

    async def _next(self, count: int) -> list[Watched]:
        """Return the next payments to look at: up to half urgent ones, the rest in their round."""
        recently = int(self._settings.reference_calls_per_minute / 60 * _AGAIN_S)
        async with self._database.unit_of_work(WATCHER) as unit:
            urgent = await watch_store.urgent(
                unit, opened_s=_OPENED_S, ending_s=_ENDING_S, limit=count + recently
            )
            due_at = time.monotonic() - _AGAIN_S
            never = float("-inf")
            due = [one for one in urgent if self._looked.get(one.id, never) <= due_at]
            due.sort(key=lambda one: self._looked.get(one.id, never))
            chosen = due[: (count + 1) // 2]
            left = count - len(chosen)
            turn = await watch_store.open_after(unit, self._after, limit=left) if left else []
        if left:
            self._after = turn[-1].id if len(turn) == left else ""
        return chosen + [one for one in turn if one not in chosen]

    async def _look_at(self, payment: Watched) -> None:
        try:
            lines = await self._final_lines(payment)
        except ValueError:
            # Not from us; and one such row must not keep the others from being looked at.
            _log.error("reference is no address", payment_id=payment.id)
            return
        if not lines:
            return
        async with self._database.unit_of_work(WATCHER) as unit:
            known = await watch_store.known_of(unit, payment.id, [line.signature for line in lines])
        if len(known) >= _MOST_STRAYS:
            return
        new = [line for line in lines if line.signature not in known]
        for line in new[:_READS_A_LOOK]:
            await self._read(payment, line)

    async def _final_lines(self, payment: Watched) -> list[SignatureInfo]:
        """Return every finalized line of the reference, oldest first: dust may have come first."""
        lines: list[SignatureInfo] = []
        before: str | None = None
        for _ in range(_MOST_PAGES):
            self.calls += 1
            page = await self._providers.page(payment.reference, before=before, limit=_PAGE)
            lines += page
            if len(page) < _PAGE:
                break
            before = page[-1].signature
        return [line for line in reversed(lines) if line.finalized]

    async def _read(self, payment: Watched, line: SignatureInfo) -> None:
        """Write down what a chain transaction with the reference did, where all agree on it."""
        self.calls += len(self._providers.chains)
        try:
            reading = await self._providers.transaction(line.signature, Commitment.FINALIZED)
            if reading.landed is None or not reading.is_agreed:
                return
            found = stray_of(
                reading.landed,
                payment.id,
                wallet=self._settings.collection_wallet,
                accounts=self._accounts,
            )
            ours = [
                one.address for one in self._accounts if receipt_of(reading.landed, one) is not None
            ]
        except UnreadableTransaction:
            found, ours = _unreadable(payment, line), []
        if found is not None:
            await self._write_down(payment, found)
        for address in ours:
            await self._catch_up(address, line)

    async def _write_down(self, payment: Watched, found: Stray) -> None:
        identity = Identity(WATCHER.actor, payment.merchant_id)
        async with self._database.unit_of_work(identity) as unit:
            if await watch_store.add_stray(unit, found, merchant_id=payment.merchant_id):
                await audit.record(
                    unit,
                    action="stray.found",
                    subject_type="payment",
                    subject_id=payment.id,
                    after={"signature": found.signature, "kind": found.kind},
                )
                _log.warning("stray found", payment_id=payment.id, kind=found.kind)

    async def _catch_up(self, token_account: str, line: SignatureInfo) -> None:
        """Set a receipt of ours aside to be booked, where the cursor has passed it unseen."""
        async with self._database.unit_of_work(WATCHER) as unit:
            cursor = await chain_store.cursor(unit, token_account)
            if cursor is None or line.slot >= cursor.slot:
                return  # Its turn comes, or came just now.
            await watch_store.set_aside(
                unit,
                signature=line.signature,
                token_account=token_account,
                slot=line.slot,
                reason="passed over",
            )
        _log.warning("line was passed over", signature=line.signature)


def _unreadable(payment: Watched, line: SignatureInfo) -> Stray:
    return Stray(
        signature=line.signature,
        payment_id=payment.id,
        kind="unreadable",
        mint=None,
        recipient=None,
        amount_minor=None,
        slot=line.slot,
        block_time=None,
    )
