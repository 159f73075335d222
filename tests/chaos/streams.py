"""The warehouse's processor under chaos: what is on the stream is in the hypertables, once.

Real NATS and TimescaleDB and two workers (one stands by), each behind TCP proxies of its own. A
seeded schedule kills (SIGKILL) workers, NATS and TimescaleDB, freezes workers, and cuts and stalls
their connections, while events go on coming. After each round the last event of the moment must
come through. An auditor, who shares no code with the processor, reads the stream and compares the
tables with it row by row; any difference raises `AssertionError`.
"""

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import nats
from nats.errors import Error as NatsError
from nats.js.api import StreamInfo
from nats.js.errors import NotFoundError

from ingest.contract import HEADER_EVENT_ID, STREAM, EventId
from streams.contract import WAREHOUSE_APP
from streams.transport import connected, look
from streams.transport.membership import Membership
from tests.chaos.keeper import Keeper
from tests.chaos.storm import Size, Storm, Victim, chaos_folder, through
from tests.chaos.tables import TableAudit
from tests.fixtures import ledger_stream as ledger
from tests.fixtures.brokers import start_broker
from tests.fixtures.capture import KeptProcess, Ledger
from tests.fixtures.services import BrokerServer, DatabaseServer, run_module, start_analytics
from tests.fixtures.warehouse import worker_settings
from tests.fixtures.wire import Wire

RECOVERY_TIMEOUT_S = 150.0
LONG = Size(large=0, faults=(1, 9), longest_s=4.0, long_stalls=True)
SHORT = Size(large=0, faults=(2, 5), longest_s=1.5, long_stalls=False)
LIVES_A_BATCH = 30
"""Payments in one atomic batch, ten events each; so the stream holds whole lives only."""
_CALL_TIMEOUT_S = 10.0
_PAUSE_S = 0.1
_COMES_BACK = (NatsError, OSError, TimeoutError, ledger.PublishRefusedError)
_WEIGHTS = {
    "worker killed": 45,
    "NATS killed": 16,
    "TimescaleDB killed": 16,
    "worker frozen": 10,
    "connections cut": 8,
    "connections stalled": 8,
}


@dataclass(slots=True)
class Account:
    """What a run did and found; times in seconds."""

    seed: int
    kills: int = 0
    events: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    recovered_s: list[float] = field(default_factory=list)
    starts: int = 0
    duration_s: float = 0.0


def lives(stored: int) -> list[ledger.Message]:
    """Return the batch of payments' lives that follows what the stream holds."""
    return list(ledger.lives(stored // ledger.EVENTS_A_LIFE, LIVES_A_BATCH))


class Feed:
    """Publishes events batch by batch, whatever happens to NATS.

    After every error it goes on from what the stream holds: `following` is asked what comes after
    so many events. The fence keeps a batch out that was still on its way.
    """

    def __init__(self, url: str, following: Callable[[int], list[ledger.Message]] = lives) -> None:
        self._url = url
        self._following = following
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._publish_on, name="feed", daemon=True)
        self._error: BaseException | None = None
        self.last = EventId(0, 0)

    def __enter__(self) -> "Feed":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Publish no more."""
        self._end.set()
        self._thread.join(3 * _CALL_TIMEOUT_S)
        assert not self._thread.is_alive(), "the feed did not end"

    def check(self) -> None:
        """Raise what ended the feed."""
        if self._error is not None:
            raise self._error

    def _publish_on(self) -> None:
        try:
            while not self._end.is_set():
                with contextlib.suppress(*_COMES_BACK):
                    asyncio.run(self._session())
                self._end.wait(_PAUSE_S)
        except BaseException as error:  # noqa: BLE001 - told by `check`, on the harness's thread
            self._error = error

    async def _session(self) -> None:
        client = await nats.connect(
            self._url, allow_reconnect=False, connect_timeout=int(_CALL_TIMEOUT_S), error_cb=_quiet
        )
        try:
            jetstream = client.jetstream(timeout=_CALL_TIMEOUT_S)
            while not self._end.is_set():
                info = await jetstream.stream_info(STREAM)
                await self._look(jetstream, info)
                messages = self._following(info.state.last_seq)
                messages[0].headers["Nats-Expected-Last-Sequence"] = str(info.state.last_seq)
                async with asyncio.timeout(_CALL_TIMEOUT_S):
                    await ledger.publish(client, messages)
                self.last = ledger.place(messages[-1])
                await asyncio.sleep(_PAUSE_S)
        finally:
            await client.close()

    async def _look(self, jetstream: "nats.js.JetStreamContext", info: StreamInfo) -> None:
        """Note the last event that is stored: of a batch whose answer was lost, too."""
        if info.state.last_seq:
            last = await jetstream.get_msg(STREAM, info.state.last_seq)
            self.last = EventId.parse((last.headers or {})[HEADER_EVENT_ID])


async def _quiet(_: Exception) -> None:
    """Leave the telling of a lost connection to the call that meets it."""


class Chaos:
    """One run against one ground."""

    def __init__(
        self, ground: "Ground", keeper: Keeper, feed: Feed, *, seed: int, size: Size
    ) -> None:
        self._ground = ground
        self._keeper = keeper
        self._feed = feed
        chance = random.Random(seed)
        self._storm = Storm(
            "worker",
            keeper,
            ground.wires,
            {
                "TimescaleDB": Victim(ground.warehouse.kill, ground.warehouse.start),
                "NATS": Victim(ground.broker.kill, ground.broker.start),
            },
            weights=_WEIGHTS,
            active=lambda: next(filter(serves, keeper.processes), chance.choice(keeper.processes)),
            chance=chance,
            size=size,
        )
        self._audit = TableAudit(
            Ledger(ground.broker.url, STREAM), ground.warehouse.superuser_url("analytics")
        )
        self.account = Account(seed)

    def run(self, kills: int, progress: Callable[[str], None]) -> None:
        """Go on until so many were killed, then compare all."""
        begun = time.monotonic()
        self._recover()
        while self._storm.toll.kills < kills:
            told = self._storm.blow(kills - self._storm.toll.kills)
            self._recover()
            self._audit.compare()
            progress(
                f"{self._storm.toll.kills}/{kills} kills: {', '.join(told)}; recovered in "
                f"{self.account.recovered_s[-1]:.1f} s, {self._audit.events} events compared"
            )
        self._feed.end()
        self._recover()
        statuses = self._keeper.stop_all()
        assert statuses == [0] * len(statuses), f"workers were stopped and ended with {statuses}"
        self._audit.settle()
        account = self.account
        account.kills, account.faults = self._storm.toll.kills, self._storm.toll.faults
        account.events, account.rows = self._audit.events, self._audit.rows
        account.starts = self._keeper.starts
        account.duration_s = time.monotonic() - begun

    def _recover(self) -> None:
        """Wait until what is on the stream now is in the tables."""
        since = time.monotonic()
        wanted = self._feed.last
        while self._audit.watermark() < wanted:
            self._keeper.check()
            self._feed.check()
            assert time.monotonic() - since < RECOVERY_TIMEOUT_S, (
                f"event {wanted} is not in the warehouse after {RECOVERY_TIMEOUT_S:g} s; it is at "
                f"{self._audit.watermark()}; {asyncio.run(self._standing())}"
            )
            self._storm.wait(_PAUSE_S)
        self.account.recovered_s.append(time.monotonic() - since)

    async def _standing(self) -> str:
        """Say how the workers see themselves, and who lives and owns by the group's records."""
        words = [
            f"worker {number}: {process.statuses[-1:]}"
            for number, process in enumerate(self._keeper.processes)
        ]
        async with connected(self._ground.broker.url, "chaos", _CALL_TIMEOUT_S) as connection:
            membership = Membership(connection, WAREHOUSE_APP)
            words.append(f"members: {await membership.members()}")
            words.append(f"generation: {await membership.generation()}")
            words.append(f"group: {await look(connection, WAREHOUSE_APP)}")
        return "; ".join(words)


def serves(process: KeptProcess) -> bool:
    """Say whether a worker has the partition, by its own last word."""
    return bool(process.statuses) and " behind" in process.statuses[-1] and not stands_by(process)


def stands_by(process: KeptProcess) -> bool:
    """Say whether a worker stands by, by its own last word."""
    return bool(process.statuses) and process.statuses[-1].startswith("standby")


@dataclass(frozen=True, slots=True)
class Ground:
    """The servers of a run, and the wires of each worker to them."""

    broker: BrokerServer
    warehouse: DatabaseServer
    wires: list[dict[str, Wire]]


def run(kills: int, seed: int, size: Size, tree: Path, progress: Callable[[str], None]) -> Account:
    """Run chaos on servers of its own until `kills` processes were killed."""
    with _ground(tree, progress) as (ground, folder), ExitStack() as parts:
        processes = [_worker(ground, folder, number) for number in range(len(ground.wires))]
        keeper = parts.enter_context(
            Keeper(processes, lambda process: process.ready or stands_by(process))
        )
        with Feed(ground.broker.url) as feed:
            chaos = Chaos(ground, keeper, feed, seed=seed, size=size)
            chaos.run(kills, progress)
    return chaos.account


def _worker(ground: Ground, parent: Path, number: int) -> KeptProcess:
    """Return a worker that reaches both servers through wires of its own."""
    folder = parent / f"worker-{number}"
    folder.mkdir()
    env = worker_settings(ground.broker, ground.warehouse, folder)
    wires = ground.wires[number]
    for name, server in (
        ("GIOVANG_STREAMS_NATS_URL", "NATS"),
        ("GIOVANG_STREAMS_WAREHOUSE_URL", "TimescaleDB"),
    ):
        env[name] = through(env[name], wires[server])
    return KeptProcess("streams.warehouse", env, folder)


@contextmanager
def _ground(tree: Path, progress: Callable[[str], None]) -> Iterator[tuple[Ground, Path]]:
    """Start TimescaleDB, NATS with an empty ledger stream, and wires; stop and remove all after."""
    with chaos_folder(progress) as (folder, parts):
        progress("starting TimescaleDB and NATS, applying the schema")
        warehouse = start_analytics(folder, tree)
        parts.callback(warehouse.stop)
        run_module(
            "streams.schema",
            GIOVANG_STREAMS_SCHEMA_URL=warehouse.url("giovang_warehouse_owner"),
        )
        broker = start_broker(folder)
        parts.callback(broker.stop)
        asyncio.run(_make_stream(broker.url))
        wires = [
            {
                "TimescaleDB": parts.enter_context(Wire(warehouse.port)),
                "NATS": parts.enter_context(Wire(urlsplit(broker.url).port or 0)),
            }
            for _ in range(2)
        ]
        yield Ground(broker, warehouse, wires), folder


async def _make_stream(url: str) -> None:
    client = await nats.connect(url)
    try:
        with contextlib.suppress(NotFoundError):
            await client.jetstream().delete_stream(STREAM)
        await ledger.create_stream(client.jetstream())
    finally:
        await client.close()
