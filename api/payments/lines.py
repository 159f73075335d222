"""Deal with lines of our token accounts' history: show, book, set aside, take back.

A finalized line is booked where every provider tells its chain transaction the same, and the cursor
moves in the same database transaction: killed anywhere, what was booked stays, what was not comes
again, and nothing is booked twice. A line that cannot be dealt with now is set aside in that same
way, is read again until it can be, and so holds up no other. Raises ChainUnavailable and
DatabaseUnavailable; then the rest waits for the next sweep.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import psycopg

from api.chain import store as chain_store
from api.chain import watch_store
from api.chain.model import (
    AsideLine,
    Commitment,
    Cursor,
    Receipt,
    SignatureInfo,
    TokenAccount,
    UnreadableTransaction,
)
from api.chain.providers import Providers
from api.chain.receipts import receipt_of
from api.database import Database, Identity, Unit
from api.errors import ChainUnavailable, DatabaseUnavailable, GiovangError
from api.payments import settlement
from api.settings import WatcherSettings
from infra.telemetry import get_logger

_log = get_logger(__name__)
WATCHER: Final = Identity("watcher")

_REMEMBERED: Final = 20_000
# A node may lag behind what it lists, and an answer may be lost: so often a line is asked for
# before it is set aside and the next has its turn.
_ATTEMPTS_IN_TURN: Final = 3
# A receipt that its payment cannot take is nobody's after so many, for a person to assign.
_ATTEMPTS_TO_BOOK: Final = 4
_MOST_ASIDE: Final = 1_000
_ASIDE_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Answer:
    """What a line brought, or what is in the way of knowing it (`trouble`).

    With trouble, a receipt is what one provider alone tells. `may_pass` where asking again in a
    moment may do.
    """

    receipt: Receipt | None = None
    trouble: str = ""
    may_pass: bool = False


class Lines:
    """Deals with lines in their turn, and remembers which it dealt with.

    What it remembers only saves asking again: losing it is harmless.
    """

    def __init__(
        self,
        database: Database,
        providers: Providers,
        settings: WatcherSettings,
        progress: Callable[[str], None],
    ) -> None:
        self._database = database
        self._providers = providers
        self._settings = settings
        self._progress = progress
        self._shown = _Memory()
        self._dealt = _Memory()
        self._attempts: dict[str, int] = {}

    def new(self, account: TokenAccount, lines: Sequence[SignatureInfo]) -> list[SignatureInfo]:
        """Return the lines that were not dealt with: not every node knows where the cursor is."""
        return [line for line in lines if (line.signature, account.address) not in self._dealt]

    async def settle(
        self, account: TokenAccount, lines: Sequence[SignatureInfo]
    ) -> tuple[int, bool]:
        """Deal with finalized lines in order, the cursor with each.

        Returns how many receipts came, and whether it got through: False where one must wait.
        """
        receipts = 0
        chunks = [*self._chunks(lines), ()]
        reading = self._read_all(account, chunks[0], Commitment.FINALIZED)
        try:
            for chunk, following in pairwise(chunks):
                answers = await reading
                # The next lines are read while these are booked.
                reading = self._read_all(account, following, Commitment.FINALIZED)
                for line, answer in zip(chunk, answers, strict=True):
                    if answer.trouble and answer.may_pass and self._try_again(line, answer):
                        return receipts, False
                    await self._deal_with(account, line, answer)
                    receipts += answer.receipt is not None and not answer.trouble
                    self._attempts.pop(line.signature, None)
                    self._dealt.add((line.signature, account.address))
                    self._progress("settling")
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        return receipts, True

    async def show(self, account: TokenAccount, lines: Sequence[SignatureInfo]) -> int:
        """Show confirmed lines on their payments, and book what policy books now; return how many.

        The cursor stays until they are final. One provider's word is enough to show, not to book.
        """
        new = [
            line
            for line in lines
            if (line.signature, account.address, line.slot) not in self._shown
        ]
        shown = 0
        for chunk in self._chunks(new):
            answers = await self._read_all(account, chunk, Commitment.CONFIRMED)
            for line, answer in zip(chunk, answers, strict=True):
                if answer.receipt is not None:
                    await self._show(answer.receipt, is_agreed=not answer.trouble)
                    shown += 1
                elif answer.trouble and self._try_again(line, answer):
                    continue
                self._attempts.pop(line.signature, None)
                self._shown.add((line.signature, account.address, line.slot))
                self._progress("showing")
        return shown

    async def _show(self, receipt: Receipt, *, is_agreed: bool) -> None:
        grace_s = self._settings.expiry_grace_s
        async with self._database.unit_of_work(WATCHER) as unit:
            if is_agreed:
                await settlement.settle(
                    unit, receipt, grace_s=grace_s, commitment=Commitment.CONFIRMED
                )
            else:
                await settlement.see(unit, receipt, grace_s=grace_s)

    async def take_back(self, finalized_slot: int) -> None:
        """Take back receipts that the chain finalized past without keeping them.

        One that any provider still knows is not lost.
        """
        async with self._database.unit_of_work(WATCHER) as unit:
            unsettled = await chain_store.unsettled(unit, finalized_slot=finalized_slot)
        if not unsettled:
            return
        known = await self._providers.still_known([transfer.signature for transfer in unsettled])
        if known is None:
            return
        for transfer in unsettled:
            if transfer.signature in known:
                continue
            async with self._database.unit_of_work(WATCHER) as unit:
                await settlement.vanish(unit, transfer, grace_s=self._settings.expiry_grace_s)
            self._shown.forget_signature(transfer.signature)
            _log.warning("confirmed transfer vanished", signature=transfer.signature)

    async def retry_aside(self, accounts: dict[str, TokenAccount]) -> int:
        """Read again what was set aside and is due; return how many receipts were booked."""
        async with self._database.unit_of_work(WATCHER) as unit:
            due = await watch_store.due_aside(unit, limit=_ASIDE_AT_ONCE)
        booked = 0
        for line in due:
            account = accounts.get(line.token_account)
            if account is None:
                trouble = "its token account is not one of those configured"
                answer = Answer(trouble=trouble)
            else:
                answer = await self._read(account, line.signature, Commitment.FINALIZED)
            booked += await self._resolve(line, answer)
            self._progress("reading again")
        return booked

    async def _resolve(self, line: AsideLine, answer: Answer) -> bool:
        """Deal with a line that was set aside; say whether its receipt was booked."""
        try:
            async with self._database.unit_of_work(WATCHER) as unit:
                if answer.trouble:
                    await watch_store.put_off(unit, line, reason=answer.trouble)
                    return False
                if answer.receipt is not None:
                    await self._book(unit, answer.receipt)
                outcome = "nothing" if answer.receipt is None else "settled"
                await watch_store.resolve_aside(unit, line, outcome=outcome)
        except DatabaseUnavailable:
            raise
        except (GiovangError, psycopg.IntegrityError) as refusal:
            await self._refuse(line, answer, type(refusal).__name__)
            return False
        _log.info("line that was set aside is dealt with", signature=line.signature)
        return answer.receipt is not None

    async def _refuse(self, line: AsideLine, answer: Answer, reason: str) -> None:
        """Put a receipt off that its payment does not take; in the end it is nobody's."""
        async with self._database.unit_of_work(WATCHER) as unit:
            if line.attempts + 1 < _ATTEMPTS_TO_BOOK or answer.receipt is None:
                await watch_store.put_off(unit, line, reason=f"refused: {reason}")
                return
            await settlement.set_aside(unit, answer.receipt, reason=reason)
            await watch_store.resolve_aside(unit, line, outcome="settled")

    async def second_look(self, account: TokenAccount, finalized_slot: int) -> None:
        """Set aside what the cursor passed without having been told of it.

        A provider may have dropped a line when its turn came. The newest page of the history is
        read from the start, and what is in no book is read: a receipt among it was passed over.
        """
        async with self._database.unit_of_work(WATCHER) as unit:
            cursor = await chain_store.cursor(unit, account.address)
        if cursor is None:
            return
        page = await self._providers.page(
            account.address, before=None, limit=self._settings.page_limit
        )
        passed = [
            line
            for line in self.new(account, page)
            if line.finalized and line.slot <= min(cursor.slot, finalized_slot)
        ]
        async with self._database.unit_of_work(WATCHER) as unit:
            known = await watch_store.dealt_with(
                unit, account.address, [line.signature for line in passed]
            )
        for line in passed:
            self._progress("looking again")
            if line.signature not in known:
                answer = await self._read(account, line.signature, Commitment.FINALIZED)
                if answer.receipt is not None or answer.trouble:
                    _log.warning("line was passed over", signature=line.signature)
                    async with self._database.unit_of_work(WATCHER) as unit:
                        await self._set_aside(unit, account, line, answer, "passed over")
            self._dealt.add((line.signature, account.address))

    async def _deal_with(self, account: TokenAccount, line: SignatureInfo, answer: Answer) -> None:
        """Book what a finalized line brought, or set it aside, and move the cursor past it."""
        cursor = Cursor(line.signature, line.slot)
        refused = ""
        try:
            async with self._database.unit_of_work(WATCHER) as unit:
                if answer.trouble:
                    await self._set_aside(unit, account, line, answer, answer.trouble)
                elif answer.receipt is not None:
                    await self._book(unit, answer.receipt)
                await chain_store.move_cursor(unit, account.address, cursor)
        except (DatabaseUnavailable, ChainUnavailable):
            raise
        except (GiovangError, psycopg.IntegrityError) as refusal:
            refused = f"refused: {type(refusal).__name__}"
        if refused:
            async with self._database.unit_of_work(WATCHER) as unit:
                await self._set_aside(unit, account, line, Answer(), refused)
                await chain_store.move_cursor(unit, account.address, cursor)

    async def _book(self, unit: Unit, receipt: Receipt) -> None:
        await settlement.settle(unit, receipt, grace_s=self._settings.expiry_grace_s)

    async def _set_aside(
        self, unit: Unit, account: TokenAccount, line: SignatureInfo, answer: Answer, reason: str
    ) -> None:
        """Note a line for later; what it may have brought is shown, so its payment cannot expire.

        Raises ChainUnavailable where so many wait that somebody has to look first.
        """
        if await watch_store.count_aside(unit) >= _MOST_ASIDE:
            raise ChainUnavailable("too many lines wait to be dealt with")
        if answer.receipt is not None:
            await settlement.see(unit, answer.receipt, grace_s=self._settings.expiry_grace_s)
        is_news = await watch_store.set_aside(
            unit,
            signature=line.signature,
            token_account=account.address,
            slot=line.slot,
            reason=reason,
        )
        if is_news:
            _log.error("line set aside", signature=line.signature, reason=reason)

    def _read_all(
        self, account: TokenAccount, lines: Sequence[SignatureInfo], commitment: Commitment
    ) -> "asyncio.Future[list[Answer]]":
        return asyncio.gather(
            *(
                self._nothing()
                if line.failed and line.finalized
                else self._read(account, line.signature, commitment)
                for line in lines
            )
        )

    @staticmethod
    async def _nothing() -> Answer:
        return Answer()

    async def _read(self, account: TokenAccount, signature: str, commitment: Commitment) -> Answer:
        """Read what a chain transaction brought to one of our accounts."""
        try:
            reading = await self._providers.transaction(signature, commitment)
            landed = reading.landed
            receipt = None if landed is None else receipt_of(landed, account)
        except UnreadableTransaction as problem:
            return Answer(trouble=f"unreadable: {problem}", may_pass=True)
        if landed is None and reading.is_agreed:
            # Listed, but nobody has it at that commitment.
            return Answer(trouble="missing", may_pass=True)
        return Answer(
            receipt=receipt,
            trouble="" if reading.is_agreed else reading.reason,
            may_pass=not reading.is_answered,
        )

    def _try_again(self, line: SignatureInfo, answer: Answer) -> bool:
        """Say whether a line with trouble is asked for again before others have their turn."""
        attempts = self._attempts.get(line.signature, 0) + 1
        self._attempts[line.signature] = attempts
        _log.warning(
            "chain transaction cannot be dealt with",
            signature=line.signature,
            attempt=attempts,
            reason=answer.trouble,
        )
        return attempts < _ATTEMPTS_IN_TURN

    def _chunks(self, lines: Sequence[SignatureInfo]) -> list[Sequence[SignatureInfo]]:
        size = self._settings.rpc_concurrency
        return [lines[first : first + size] for first in range(0, len(lines), size)]


class _Memory:
    """The newest of what was seen, up to a limit."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str | int, ...], None] = OrderedDict()

    def __contains__(self, key: tuple[str | int, ...]) -> bool:
        return key in self._known

    def add(self, key: tuple[str | int, ...]) -> None:
        """Remember; the oldest is forgotten where there are too many."""
        self._known[key] = None
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    def forget_signature(self, signature: str) -> None:
        """Forget all about a signature."""
        for key in [key for key in self._known if key[0] == signature]:
            del self._known[key]
