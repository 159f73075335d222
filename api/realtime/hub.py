"""Who watches what in this process, and each watcher's place in its payment's steps.

A step reaches a watcher when it is the next after the last it had; an older one is passed over, and
a gap is read from PostgreSQL, whatever it came of. The same reading finds what was never pushed:
all payments watched here are asked about together, every few seconds while Redis is away and now
and then while it is not, so nobody goes silent. A watcher that does not keep up has a bounded
number of messages waiting, then it is sent away and may resume. Where PostgreSQL is away, what was
pushed is still handed on, and gaps wait for it.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from api.errors import DatabaseUnavailable, NotFound
from api.realtime.model import RESTARTING, TOKEN_ENDED, TOO_SLOW, Farewell, Message, Step, ping
from api.realtime.store import Ask
from api.settings import LiveSettings
from infra.telemetry import get_logger

Read = Callable[[Sequence[Ask], int], Awaitable[list[Step]]]

PAGE: Final = 50
_MOST_ASKED: Final = 500
_TICK_S: Final = 0.25
_REST_S: Final = 1.0
_log = get_logger(__name__)


class Watcher:
    """One socket's place and what waits to be sent to it.

    `seq` is the number of the last step it was given, None until it has had its beginning. `wake`
    is called when there is something to send, or the socket is to be closed (`farewell`).
    """

    __slots__ = ("_most", "_waiting", "_wake", "ends_at_s", "farewell", "payment_id", "seq", "turn")

    def __init__(
        self,
        payment_id: str,
        *,
        wake: Callable[[], None],
        most_waiting: int,
        ends_at_s: float | None = None,
    ) -> None:
        self.payment_id = payment_id
        self.seq: int | None = None
        self.turn = 0
        self.ends_at_s = ends_at_s
        self.farewell: Farewell | None = None
        self._wake = wake
        self._most = most_waiting
        self._waiting: list[Message] | None = None

    def put(self, message: Message) -> None:
        """Have a message sent; one too many ends the watcher, and what waited goes with it."""
        if self.farewell is not None:
            return
        if self._waiting is None:
            self._waiting = []
        if len(self._waiting) == self._most:
            self.end(TOO_SLOW)
            return
        self._waiting.append(message)
        self._wake()

    def end(self, farewell: Farewell) -> None:
        """Have the socket closed; only the first reason counts."""
        if self.farewell is None:
            self._waiting = None
            self.farewell = farewell
            self._wake()

    def take(self) -> Message | None:
        """Return the next message to send, None where nothing waits."""
        # An idle socket keeps no queue: there are thousands of them.
        message = self._waiting.pop(0) if self._waiting else None
        if not self._waiting:
            self._waiting = None
        return message


class Subscription(Protocol):
    """What brings steps as they happen; see `api.realtime.feed`."""

    live: bool

    async def listen(self, payment_id: str) -> None:
        """Listen to a payment."""

    def forget(self, payment_id: str) -> None:
        """Stop listening to a payment."""

    async def run(self) -> None:
        """Stay subscribed until cancelled."""


class Hub:
    """The watchers of this process; `run` serves them until it is cancelled."""

    def __init__(
        self, read: Read, settings: LiveSettings, *, subscribe: Callable[..., Subscription]
    ) -> None:
        self._settings = settings
        self._read = read
        self._reader = _Reader(read)
        self._watched: dict[str, set[Watcher]] = {}
        self._heads: dict[str, int] = {}
        self._behind: set[str] = set()
        self._torn = asyncio.Event()
        # A few watchers each, so that pings are spread evenly over their period.
        self._turns: list[set[Watcher]] = [
            set() for _ in range(max(1, round(settings.live_ping_ms / 1000 / _TICK_S)))
        ]
        self._turn = 0
        self._feed = subscribe(on_step=self.offer, on_missed=self.mend)
        self._closing = False

    async def join(
        self, watcher: Watcher, after: int | None
    ) -> AsyncGenerator[Sequence[Message], None]:
        """Enter a watcher and yield its beginning, a page at a time; it is live at the end.

        That is the state, or with `after` every event after that number. The caller sends each page
        before it asks for the next, and calls `leave` in any case. Raises NotFound where there is
        no such payment, DatabaseUnavailable.
        """
        payment_id = watcher.payment_id
        self._watched.setdefault(payment_id, set()).add(watcher)
        watcher.turn = self._turn
        self._turns[self._turn].add(watcher)
        if self._closing:
            watcher.end(RESTARTING)
        # First listen, then look: what commits in between comes by one way or by both.
        await self._feed.listen(payment_id)
        while True:
            steps = await self._reader.read(Ask(payment_id, after))
            if after is None or (steps and steps[-1].seq <= after):
                if not steps:
                    raise NotFound("no payment has this id")
                yield [steps[-1].as_state()]
                after = steps[-1].seq
                break
            if steps:
                yield [step.message for step in steps]
                after = steps[-1].seq
            if len(steps) < PAGE:
                break
        watcher.seq = after
        if self._heads.get(payment_id, 0) > after:
            self.mend([payment_id])

    def leave(self, watcher: Watcher) -> None:
        """Forget a watcher; nothing happens where it is forgotten."""
        self._turns[watcher.turn].discard(watcher)
        watchers = self._watched.get(watcher.payment_id)
        if watchers is None or watcher not in watchers:
            return
        watchers.remove(watcher)
        if not watchers:
            del self._watched[watcher.payment_id]
            self._heads.pop(watcher.payment_id, None)
            self._feed.forget(watcher.payment_id)

    def offer(self, step: Step) -> None:
        """Hand a step to those whose next it is; where it is beyond that, have the gap read."""
        watchers = self._watched.get(step.payment_id)
        if watchers is None:
            return
        self._heads[step.payment_id] = max(step.seq, self._heads.get(step.payment_id, 0))
        is_torn = False
        for watcher in watchers:
            if watcher.seq is None or step.seq <= watcher.seq:
                continue
            if step.seq == watcher.seq + 1:
                watcher.seq = step.seq
                watcher.put(step.message)
            else:
                is_torn = True
        if is_torn:
            self.mend([step.payment_id])

    def mend(self, payment_ids: Iterable[str]) -> None:
        """Have PostgreSQL asked for what watchers of these payments may have missed."""
        self._behind.update(payment_ids)
        self._torn.set()

    def close(self) -> None:
        """Send every watcher away, now and from now on: the process is about to end."""
        self._closing = True
        for watchers in self._watched.values():
            for watcher in watchers:
                watcher.end(RESTARTING)

    @property
    def is_live(self) -> bool:
        """Whether steps are pushed to this process now."""
        return self._feed.live

    async def run(self) -> None:
        """Keep the subscription, mend gaps, ping and expire, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._feed.run())
            tasks.create_task(self._reader.run())
            tasks.create_task(self._mend_gaps())
            tasks.create_task(self._patrol())
            tasks.create_task(self._tick())

    async def _mend_gaps(self) -> None:
        while True:
            await self._torn.wait()
            self._torn.clear()
            places = {
                payment_id: min(known)
                for payment_id in self._behind
                if (
                    known := [w.seq for w in self._watched.get(payment_id, ()) if w.seq is not None]
                )
            }
            self._behind.clear()
            asks = [Ask(*place) for place in places.items()]
            for start in range(0, len(asks), _MOST_ASKED):
                await self._mend_some(asks[start : start + _MOST_ASKED])

    async def _mend_some(self, asks: Sequence[Ask]) -> None:
        try:
            steps = await self._read(asks, PAGE)
        except DatabaseUnavailable:
            _log.warning("gaps cannot be read now", payments=len(asks))
            await asyncio.sleep(_REST_S)
            self.mend([ask.payment_id for ask in asks])
            return
        given: dict[str, int] = {}
        for step in steps:
            self.offer(step)
            given[step.payment_id] = given.get(step.payment_id, 0) + 1
        self.mend([payment_id for payment_id, count in given.items() if count == PAGE])

    async def _patrol(self) -> None:
        poll_s, patrol_s = self._settings.live_poll_ms / 1000, self._settings.live_patrol_ms / 1000
        patrolled_at = time.monotonic()
        while True:
            await asyncio.sleep(poll_s)
            if not self.is_live or time.monotonic() - patrolled_at >= patrol_s:
                self.mend(list(self._watched))
                patrolled_at = time.monotonic()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            self._turn = (self._turn + 1) % len(self._turns)
            message = ping(datetime.now(UTC))
            for watcher in list(self._turns[self._turn]):
                watcher.put(message)
            self._expire(time.time())

    def _expire(self, now_s: float) -> None:
        for watchers in self._watched.values():
            for watcher in watchers:
                if watcher.ends_at_s is not None and watcher.ends_at_s <= now_s:
                    watcher.end(TOKEN_ENDED)


class _Reader:
    """Reads beginnings; those asked for while one question is under way share the next."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._asked: list[tuple[Ask, asyncio.Future[list[Step]]]] = []
        self._wanted = asyncio.Event()

    async def read(self, ask: Ask) -> list[Step]:
        """Return a page of a payment's steps; raises DatabaseUnavailable."""
        answer: asyncio.Future[list[Step]] = asyncio.get_running_loop().create_future()
        self._asked.append((ask, answer))
        self._wanted.set()
        return await answer

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            await self._wanted.wait()
            asks: dict[str, Ask] = {}
            now: list[tuple[Ask, asyncio.Future[list[Step]]]] = []
            later: list[tuple[Ask, asyncio.Future[list[Step]]]] = []
            for ask, answer in self._asked:
                # A question asks about a payment from one number only.
                room = len(asks) < _MOST_ASKED or ask.payment_id in asks
                fits = room and asks.setdefault(ask.payment_id, ask) == ask
                (now if fits else later).append((ask, answer))
            self._asked = later
            if not later:
                self._wanted.clear()
            await self._answer(list(asks.values()), now)

    async def _answer(
        self, asks: Sequence[Ask], waiting: Sequence[tuple[Ask, asyncio.Future[list[Step]]]]
    ) -> None:
        found: dict[str, list[Step]] = {ask.payment_id: [] for ask in asks}
        away: DatabaseUnavailable | None = None
        try:
            for step in await self._read(asks, PAGE):
                found[step.payment_id].append(step)
        except DatabaseUnavailable as problem:
            away = problem
        for ask, answer in waiting:
            if answer.done():
                continue
            if away is None:
                answer.set_result(found[ask.payment_id])
            else:
                answer.set_exception(DatabaseUnavailable(away.detail))
