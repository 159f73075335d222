"""The risk worker in trouble: its alerts are those of an undisturbed run, once, byte for byte.

Two workers, one of which stands by, real NATS and TimescaleDB. While payments go on coming, the
worker is killed, TimescaleDB is away, the worker is frozen until its successor has done its work,
and NATS is killed.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import nats
import psycopg
import pytest

from ingest.contract import STREAM, ChangeEvent, EventId
from tests.chaos.keeper import Keeper
from tests.chaos.streams import Feed, serves, stands_by
from tests.fixtures import ledger_stream as ledger
from tests.fixtures.capture import KeptProcess, poll
from tests.fixtures.risk import RULES, as_rows, expected, published, read, rules, shopping, stored
from tests.fixtures.services import BrokerServer, DatabaseServer
from tests.fixtures.warehouse import Warehouse, worker_settings

SEED = 20260301
MOST_EVENTS = 100_000
EVENTS_A_BATCH = 15
RECOVERY_TIMEOUT_S = 150.0
REACHED = "SELECT position, ordinal FROM raw.watermark WHERE source = 'risk'"


class Shopping:
    """Payments without end, the same for the same seed."""

    def __init__(self) -> None:
        self._source: Iterator[ChangeEvent] = shopping(SEED, MOST_EVENTS)
        self.events: list[ChangeEvent] = []

    def following(self, count: int) -> list[ledger.Message]:
        """Return the batch that comes after so many."""
        wanted = count + EVENTS_A_BATCH
        self.events += [next(self._source) for _ in range(wanted - len(self.events))]
        return [ledger.event_message(event) for event in self.events[count:wanted]]


class Trouble:
    """What happens to the workers and their servers."""

    def __init__(
        self, keeper: Keeper, feed: Feed, broker: BrokerServer, server: DatabaseServer
    ) -> None:
        self._keeper = keeper
        self._feed = feed
        self._broker = broker
        self._server = server
        self._warehouse = Warehouse(server)

    def catch_up(self, what: str) -> None:
        """Wait until what is on the stream now was judged."""
        self._wait(self._reached(self._feed.last), f"all is judged: {what}")

    def kill_the_worker(self) -> None:
        self._keeper.kill(self._active())

    def take_the_warehouse_away(self) -> None:
        """Payments go on coming meanwhile."""
        self._server.kill()
        try:
            self._more_payments()
        finally:
            self._server.start()

    def freeze_the_worker(self) -> None:
        """It is continued when its successor has judged what came, and must end by itself."""
        frozen = self._active()
        child = frozen.process
        assert child is not None
        frozen.freeze()
        try:
            for _ in range(2):  # one batch may have been on its way
                self._more_payments()
            self.catch_up("a worker is frozen")
        finally:
            frozen.thaw()
        self._wait(lambda: child.poll() is not None, "the frozen worker ends")
        assert child.returncode != 0, "a worker that was fenced says that all is well"

    def restart_nats(self) -> None:
        self._broker.kill()
        self._broker.start()

    def _more_payments(self) -> None:
        before = self._feed.last
        self._wait(lambda: self._feed.last > before, "payments meanwhile")

    def _active(self) -> KeptProcess:
        """Return the worker that has the partition, once one says so."""
        found: list[KeptProcess] = []

        def look() -> bool:
            found[:] = filter(serves, self._keeper.processes)
            return bool(found)

        self._wait(look, "a worker has the partition")
        return found[0]

    def _reached(self, wanted: EventId) -> Callable[[], bool]:
        def look() -> bool:
            try:
                rows = self._warehouse.query(REACHED)
            except psycopg.OperationalError:
                return False  # the server is just starting
            return bool(rows) and EventId(*rows[0]) >= wanted

        return look

    def _wait(self, question: Callable[[], bool], what: str) -> None:
        def look() -> bool:
            self._keeper.check()
            self._feed.check()
            return question()

        poll(look, what=what, timeout_s=RECOVERY_TIMEOUT_S)


@pytest.mark.timeout(900)
def test_trouble_changes_no_byte_of_the_alerts(
    broker: BrokerServer, analytics_database: DatabaseServer, tmp_path: Path
) -> None:
    warehouse, source = Warehouse(analytics_database), Shopping()
    warehouse.clear()
    asyncio.run(_make_stream(broker.url))
    with ExitStack() as parts:
        workers = [_worker(broker, analytics_database, tmp_path / name) for name in ("one", "two")]
        keeper = parts.enter_context(Keeper(workers, lambda one: one.ready or stands_by(one)))
        feed = parts.enter_context(Feed(broker.url, source.following))
        trouble = Trouble(keeper, feed, broker, analytics_database)
        for strike in (
            trouble.kill_the_worker,
            trouble.take_the_warehouse_away,
            trouble.freeze_the_worker,
            trouble.restart_nats,
        ):
            strike()
            trouble.catch_up(strike.__name__)
        feed.end()
        trouble.catch_up("the end")
        assert keeper.stop_all() == [0, 0]
    count, alerts = asyncio.run(_kept(broker.url))
    wanted = expected(rules(), read(source.events[:count]))
    assert len(wanted) > 100
    assert alerts == [alert.to_bytes() for alert in wanted]
    assert stored(warehouse) == as_rows(wanted)


def _worker(broker: BrokerServer, warehouse: DatabaseServer, folder: Path) -> KeptProcess:
    """Return a risk worker with small rules and small batches, not started."""
    folder.mkdir()
    (folder / "rules.toml").write_text(RULES)
    env = worker_settings(broker, warehouse, folder)
    env["GIOVANG_STREAMS_RULES_FILE"] = str(folder / "rules.toml")
    env["GIOVANG_STREAMS_BATCH_SIZE"] = "20"
    return KeptProcess("streams.risk", env, folder)


async def _make_stream(url: str) -> None:
    client = await nats.connect(url)
    try:
        await ledger.create_stream(client.jetstream())
    finally:
        await client.close()


async def _kept(url: str) -> tuple[int, list[bytes]]:
    """Return how many payments are on the stream, and the alerts that were published."""
    client = await nats.connect(url)
    try:
        state = (await client.jetstream().stream_info(STREAM)).state
        return state.last_seq, await published(client)
    finally:
        await client.close()
