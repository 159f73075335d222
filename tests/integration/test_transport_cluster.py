"""Topics with three replicas: a server dies or is cut off, and no message is lost or overtaken.

One worker reads while numbered messages are sent; what was sent must be stored once and read once,
each key in order. How long nothing could be stored or was read is printed, not judged.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

import faust

from streams.transport import names
from tests.fixtures.cluster import SIZE, Cluster
from tests.fixtures.workers import eventually_async

KEYS = 5
PAUSE_S = 0.01
AT_LEAST = 50
# An election takes seconds, and more on a busy machine; the worker keeps its partitions meanwhile.
RECOVERY_DEADLINE_S = 90.0
LEASE_S = 60.0


class Load:
    """A worker that reads a topic, a sender of numbered messages, and the time of each step."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.topic = f"t{uuid4().hex[:8]}"
        self.app: Any = faust.App(
            f"app-{self.topic}",
            broker=cluster.urls,
            Stream="streams.transport:Stream",
            datadir=str(folder),
            web_enabled=False,
            topic_disable_leader=True,
            topic_replication_factor=SIZE,
            broker_session_timeout=LEASE_S,
            broker_heartbeat_interval=1.0,
            broker_commit_interval=0.5,
            broker_request_timeout=RECOVERY_DEADLINE_S,
            stream_recovery_delay=0.0,
            stream_wait_empty=True,
        )
        self.sent: list[asyncio.Future[Any]] = []
        self.stored_at: dict[int, float] = {}
        self.read: list[tuple[bytes, int, int, float]] = []
        topic = self.app.topic(
            self.topic,
            internal=True,
            partitions=2,
            replicas=SIZE,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
        )

        async def note(stream: Any) -> None:
            async for event in stream.events():
                number = int(event.value)
                self.read.append((event.key, number, event.message.offset, monotonic()))

        self.app.agent(topic)(note)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Load"]:
        """Read and send for the length of a block; at its end wait until all is read."""
        async with asyncio.timeout(RECOVERY_DEADLINE_S):
            await self.app.start()
        sending = asyncio.create_task(self._send())
        try:
            await self.reads_on()
            yield self
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            await self.all_read()
            async with asyncio.timeout(RECOVERY_DEADLINE_S):
                await self.app.stop()

    async def move_to(self, url: str) -> None:
        """Let the worker's connections be to one server."""
        for connection in (self.app.consumer.connection, self.app.producer.connection):
            client = connection.client

            async def is_there(client: Any = client) -> bool:
                if client.is_connected and client.connected_url.netloc not in url:
                    await client.force_reconnect()
                return bool(client.is_connected) and client.connected_url.netloc in url

            await eventually_async(is_there, within_s=RECOVERY_DEADLINE_S, what=f"moved to {url}")

    async def reads_on(self) -> None:
        """Wait until so many messages that are sent from now on have been read."""
        first = len(self.read)

        async def is_read() -> bool:
            return len(self.read) >= first + AT_LEAST

        await eventually_async(is_read, within_s=RECOVERY_DEADLINE_S, what="reading goes on")

    async def all_read(self) -> None:
        """Wait until every message is stored and read."""
        async with asyncio.timeout(RECOVERY_DEADLINE_S):
            await self.app.producer.flush()

        async def missing() -> list[Any]:
            came = {number for _, number, _, _ in self.read}
            return [(n, f) for n, f in enumerate(self.sent) if n not in came]

        async def is_read() -> bool:
            return not await missing()

        try:
            await eventually_async(is_read, within_s=RECOVERY_DEADLINE_S, what="all is read")
        except AssertionError as error:
            raise AssertionError(f"not read: {(await missing())[:5]}") from error

    async def _send(self) -> None:
        while True:
            number = len(self.sent)
            future = await self.app.producer.send(
                self.topic, b"k%d" % (number % KEYS), b"%d" % number, None, None, None
            )
            self.sent.append(future)
            future.add_done_callback(
                lambda _, number=number: self.stored_at.setdefault(number, monotonic())
            )
            await asyncio.sleep(PAUSE_S)

    def check(self) -> None:
        """Stored once and read once, each key in order."""
        offsets = [future.result().offset for future in self.sent]
        assert len(set(offsets)) == len(offsets), "stored once"
        # The sender may have been stopped between a message's leaving and its being noted.
        numbers = [number for _, number, _, _ in self.read if number < len(self.sent)]
        assert sorted(numbers) == list(range(len(self.sent))), "read once"
        by_number = {number: offset for _, number, offset, _ in self.read}
        assert [by_number[number] for number in range(len(offsets))] == offsets
        for key in range(KEYS):
            mine = [number for name, number, _, _ in self.read if name == b"k%d" % key]
            assert mine == sorted(mine), "each key in order"

    def report(self, what: str, since: float) -> dict[str, float]:
        """Print, and return, the longest pauses in storing and in reading after a moment."""
        pauses = {
            "nothing_stored_s": longest_pause(sorted(self.stored_at.values()), since),
            "nothing_read_s": longest_pause([at for *_, at in self.read], since),
        }
        print(f"\n{what}: {pauses}, {len(self.sent)} messages")  # noqa: T201 - a measurement
        return pauses


def longest_pause(moments: list[float], since: float) -> float:
    """Return the longest time between two moments, in seconds, of those after `since`."""
    after = [since, *(moment for moment in moments if moment > since)]
    return round(max(b - a for a, b in pairwise(after)), 2)


async def through(load: Load, fault: AbstractContextManager[None]) -> float:
    """Let a fault come, be met, and go; return when it came."""
    came_at = monotonic()
    with fault:
        await load.reads_on()
    await load.reads_on()
    return came_at


async def test_servers_die(cluster: Cluster, tmp_path: Path, record_property: Any) -> None:
    load = Load(cluster, tmp_path)
    await asyncio.to_thread(cluster.wait_healthy)
    async with load.running():
        for place in ("another", "leader"):
            leader = await cluster.leader(names.topic_stream(load.topic))
            victim = leader if place == "leader" else (leader + 1) % SIZE
            came_at = await through(load, cluster.dead(victim))
            record_property(f"{place} killed", load.report(f"{place} killed", came_at))
            await asyncio.to_thread(cluster.wait_healthy)
    load.check()


async def test_a_server_is_cut_off(cluster: Cluster, tmp_path: Path, record_property: Any) -> None:
    """The leader, with the worker's connections to it: alive, and of no use."""
    load = Load(cluster, tmp_path)
    await asyncio.to_thread(cluster.wait_healthy)
    async with load.running():
        leader = await cluster.leader(names.topic_stream(load.topic))
        await load.move_to(cluster.urls[leader])
        came_at = await through(load, cluster.cut_off(leader))
    load.check()
    record_property("leader cut off", load.report("leader cut off", came_at))
