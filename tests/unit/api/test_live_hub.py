"""The hub of live status: each step once and in order, whatever is pushed, lost or repeated."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import DatabaseUnavailable, NotFound
from api.realtime import sockets
from api.realtime.hub import PAGE, Hub, Watcher
from api.realtime.model import (
    RESTARTING,
    TOKEN_ENDED,
    TOO_SLOW,
    Message,
    Step,
    ping,
    pushed_step,
    recorded_step,
)
from api.realtime.store import Ask
from api.settings import LiveSettings

PAYMENT = "pay_01jz8w5k6h7m9n0p2q3r4s5t6v"
AT = datetime(2026, 3, 1, 2, 0, tzinfo=UTC)
SETTINGS = LiveSettings(live_poll_ms=50, live_ping_ms=300_000)


def row(seq: int) -> dict[str, object]:
    """Return a row as PostgreSQL tells it, after `seq` events."""
    return {
        "id": PAYMENT,
        "status": "pending",
        "exception": None,
        "exception_outcome": None,
        "asset": "USDC",
        "asset_amount_minor": 9_560_230,
        "received_minor": seq,
        "amount_minor": 250_000,
        "currency": "VND",
        "expires_at": "2026-03-01T02:15:00+00:00",
        "is_escrow": False,
        "updated_at": (AT + timedelta(seconds=seq)).isoformat(),
    }


def step(seq: int) -> Step:
    return recorded_step(PAYMENT, seq, "payment.updated", AT + timedelta(seconds=seq), row(seq))


class History:
    """What PostgreSQL holds of one payment."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.away = 0
        self.asked = 0

    async def read(self, asks: Sequence[Ask], most: int) -> list[Step]:
        """Answer as `live_steps` does."""
        self.asked += 1
        await asyncio.sleep(0)
        if self.away:
            self.away -= 1
            raise DatabaseUnavailable("try again in a moment")
        found: list[Step] = []
        for ask in asks:
            if ask.payment_id != PAYMENT:
                continue
            if ask.after is None or ask.after > self.length:
                found.append(step(self.length))
            else:
                last = min(ask.after + most, self.length)
                found += [step(seq) for seq in range(ask.after + 1, last + 1)]
        return found


class NoFeed:
    """A subscription by which nothing comes but what the test offers."""

    def __init__(self, **_: Callable[..., None]) -> None:
        self.live = False
        self.listening: set[str] = set()

    async def listen(self, payment_id: str) -> None:
        await asyncio.sleep(0)
        self.listening.add(payment_id)

    def forget(self, payment_id: str) -> None:
        self.listening.discard(payment_id)

    async def run(self) -> None:
        await asyncio.Event().wait()


@asynccontextmanager
async def hub_of(history: History) -> AsyncIterator[Hub]:
    hub = Hub(history.read, SETTINGS, subscribe=NoFeed)
    running = asyncio.create_task(hub.run())
    try:
        yield hub
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class Socket:
    """A reader that keeps what it was sent."""

    def __init__(self, most_waiting: int = 1000, ends_at_s: float | None = None) -> None:
        self.told: list[Message] = []
        self.watcher = Watcher(
            PAYMENT, wake=self._take, most_waiting=most_waiting, ends_at_s=ends_at_s
        )

    def _take(self) -> None:
        while (message := self.watcher.take()) is not None:
            self.told.append(message)

    async def join(self, hub: Hub, after: int | None = None) -> None:
        async for page in hub.join(self.watcher, after):
            self.told += page

    @property
    def seqs(self) -> list[int]:
        return [int(m.text.partition('"seq":')[2].partition(",")[0]) for m in self.told]


def run(work: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await work

    asyncio.run(bounded())


async def until(question: Callable[[], bool]) -> None:
    while True:
        if question():
            return
        await asyncio.sleep(0.001)


@given(
    began=st.integers(1, 5),
    after=st.one_of(st.none(), st.integers(0, 5)),
    pushes=st.lists(st.integers(1, 30), max_size=40),
    early=st.integers(0, 10),
)
def test_each_step_reaches_a_watcher_once_and_in_order(
    began: int, after: int | None, pushes: list[int], early: int
) -> None:
    async def scenario() -> None:
        history = History(began)
        async with hub_of(history) as hub:
            socket = Socket()

            def push(seq: int) -> None:
                # What is pushed was committed.
                history.length = max(history.length, seq)
                hub.offer(step(seq))

            joining = asyncio.create_task(socket.join(hub, after))
            for seq in pushes[:early]:
                await asyncio.sleep(0)
                push(seq)
            await joining
            for seq in pushes[early:]:
                push(seq)
                await asyncio.sleep(0)
            await until(lambda: socket.watcher.seq == history.length)
            first = socket.seqs[0] if socket.seqs else history.length
            if after is not None and after <= began:
                assert not socket.seqs or first == after + 1
            assert socket.seqs == list(range(first, history.length + 1))[: len(socket.seqs)]
            assert not socket.seqs or socket.seqs[-1] == history.length

    run(scenario())


def test_what_is_never_pushed_is_read_and_a_database_away_is_waited_out() -> None:
    async def scenario() -> None:
        history = History(1)
        async with hub_of(history) as hub:
            socket = Socket()
            await socket.join(hub)
            history.away = 1
            # More than a page, so that one reading is not enough.
            history.length = 2 * PAGE + 3
            await until(lambda: socket.seqs == list(range(1, history.length + 1)))

    run(scenario())


def test_beginnings_asked_for_together_are_read_together() -> None:
    async def scenario() -> None:
        history = History(3)
        async with hub_of(history) as hub:
            crowd = [Socket() for _ in range(200)]
            await asyncio.gather(*(socket.join(hub) for socket in crowd))
            assert all(socket.seqs == [3] for socket in crowd)
            assert history.asked < 10

    run(scenario())


def test_a_payment_that_is_not_there_and_a_database_that_is_away() -> None:
    async def scenario() -> None:
        history = History(1)
        async with hub_of(history) as hub:
            watcher = Watcher("pay_nobody", wake=lambda: None, most_waiting=2)
            with pytest.raises(NotFound):
                await anext(hub.join(watcher, None))
            history.away = 1
            with pytest.raises(DatabaseUnavailable):
                await Socket().join(hub)

    run(scenario())


def test_a_slow_watcher_is_sent_away_and_nothing_waits_for_it() -> None:
    woken: list[int] = []
    watcher = Watcher(PAYMENT, wake=lambda: woken.append(1), most_waiting=3)
    for seq in range(1, 9):
        watcher.put(step(seq).message)
    assert watcher.farewell == TOO_SLOW
    assert watcher.take() is None
    assert len(woken) == 4


def test_watchers_end_with_their_token_and_with_the_process() -> None:
    async def scenario() -> None:
        async with hub_of(History(1)) as hub:
            ended, open_ = Socket(ends_at_s=1.0), Socket()
            await ended.join(hub)
            await open_.join(hub)
            await until(lambda: ended.watcher.farewell is not None)
            assert (ended.watcher.farewell, open_.watcher.farewell) == (TOKEN_ENDED, None)
            hub.close()
            late = Socket()
            await late.join(hub)
            assert open_.watcher.farewell == late.watcher.farewell == RESTARTING

    run(scenario())


def test_a_pushed_step_reads_as_the_recorded_one() -> None:
    pushed = pushed_step(
        b'{"seq":7,"payment_id":"%s","merchant_id":"mer_x","event":"payment.updated","row":{'
        b'"id":"%s","status":"pending","exception":null,"exception_outcome":null,"asset":"USDC",'
        b'"asset_amount_minor":"9560230","received_minor":"7","settled_minor":"0",'
        b'"amount_minor":"250000","currency":"VND","expires_at":"2026-03-01T02:15:00.000000Z",'
        b'"is_escrow":false,"updated_at":"2026-03-01T02:00:07.000000Z","metadata":"{}",'
        b'"status_at":"2026-03-01T02:00:00.000000Z"}}' % (PAYMENT.encode(), PAYMENT.encode())
    )
    assert pushed.message.text == step(7).message.text
    assert '"due_amount":"9.560223"' in pushed.message.text
    for text in (b"{}", b"no JSON", b'{"seq":"x"}'):
        with pytest.raises(ValueError, match="validation error"):
            pushed_step(text)


def test_messages_are_server_sent_events_too() -> None:
    message = step(2).message
    assert message.sse == f"event: event\nid: 2\ndata: {message.text}\n\n".encode()
    assert ping(AT).sse == (
        b'event: ping\ndata: {"type": "ping", "at": "2026-03-01T02:00:00.000Z"}\n\n'
    )


def test_a_peer_that_takes_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_FAREWELL_S", 0.05)

    async def scenario() -> None:
        history, stuck = History(1), asyncio.Event()
        sent: list[str] = []

        async def receive() -> dict[str, Any]:
            await asyncio.Event().wait()
            return {}

        async def send(message: Any) -> None:
            if len(sent) == 2:
                await stuck.wait()
            sent.append(message["type"])

        async with hub_of(history) as hub:
            socket = sockets._Socket(receive, send)
            watcher = Watcher(PAYMENT, wake=socket.wake, most_waiting=4)

            class OneHub:
                def __init__(self) -> None:
                    self.hub = hub

            async def serve() -> None:
                await socket.begin(OneHub(), watcher, None)  # type: ignore[arg-type]
                await socket.listen()

            socket._serving = serving = asyncio.create_task(serve())
            await until(lambda: watcher.seq == 1)
            for seq in range(2, 12):
                history.length = seq
                hub.offer(step(seq))
            assert watcher.farewell == TOO_SLOW
            await serving
        assert sent == ["websocket.accept", "websocket.send"]

    run(scenario())
