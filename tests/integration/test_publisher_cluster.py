"""The ledger stream's publisher at three servers: fenced and in order, whoever leads or dies."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import StreamConfig
from nats.js.errors import NotFoundError

from ingest import publisher
from ingest.contract import EventId
from ingest.envelope import Message
from ingest.errors import IngestError
from ingest.publisher import LedgerPublisher
from tests.fixtures.cluster import SIZE, Cluster
from tests.fixtures.racers import SIZES, batch, race, stored_ids
from tests.fixtures.workers import eventually_async

SEED = 20260723
STREAM = "LEDGER"
TRANSACTIONS = 600
DEADLINE_S = 240.0


@pytest.fixture
async def jetstream(cluster: Cluster) -> AsyncIterator[JetStreamContext]:
    """Servers that are whole, with an empty stream of three replicas."""
    await asyncio.to_thread(cluster.wait_healthy)
    client = Client()
    await client.connect(servers=cluster.urls)
    context = client.jetstream(timeout=30)
    with contextlib.suppress(NotFoundError):
        await context.delete_stream(STREAM)
    await context.add_stream(
        StreamConfig(name=STREAM, subjects=["ledger.>"], num_replicas=SIZE, allow_atomic=True)
    )
    yield context
    await client.close()


@pytest.mark.usefixtures("jetstream")
async def test_two_publishers_never_interleave(cluster: Cluster) -> None:
    async with asyncio.timeout(DEADLINE_S):
        await race(cluster.urls[:2], STREAM, SEED)


async def test_a_leader_dies(cluster: Cluster, jetstream: JetStreamContext) -> None:
    """Who publishes on begins where the stream ends, within a database transaction too."""
    chance = random.Random(SEED)
    wanted = [
        message.event_id
        for position in range(1, TRANSACTIONS + 1)
        for message in batch(position, chance.choice(SIZES[:-1]))
    ]
    work = Work(cluster, wanted)
    async with asyncio.timeout(DEADLINE_S):
        publishing = asyncio.create_task(work.publish_all())
        for share in (0.25, 0.6):
            await work.reaches(share)
            leader = await cluster.leader(STREAM)
            with cluster.dead(leader):
                await work.reaches(share + 0.1)
            await asyncio.to_thread(cluster.wait_healthy)
        await publishing
    assert work.failures > 0, "no publisher met a death"
    assert await stored_ids(jetstream, STREAM) == wanted


class Work:
    """Publishes what is wanted, by one publisher after the other, at whichever server answers."""

    def __init__(self, cluster: Cluster, wanted: list[EventId]) -> None:
        self._urls = cluster.urls
        self._wanted = wanted
        self._done = 0
        self.failures = 0

    async def publish_all(self) -> None:
        """Publish until all is on the stream."""
        while self._done < len(self._wanted):
            try:
                await self._publish(self._urls[self.failures % SIZE])
            except IngestError:
                self.failures += 1
                await asyncio.sleep(0.1)

    async def reaches(self, share: float) -> None:
        """Wait until such a share of it is on the stream."""

        async def look() -> bool:
            return self._done >= share * len(self._wanted)

        await eventually_async(look, within_s=DEADLINE_S, what=f"{share:.0%} published")

    async def _publish(self, url: str) -> None:
        client = await publisher.connect(url, "one after the other")
        try:
            state = await publisher.stream_state(client.jetstream(), STREAM)
            assert state is not None
            self._done = 0 if state.last_id is None else self._wanted.index(state.last_id) + 1
            sender = LedgerPublisher(client, STREAM, state.last_sequence, state.replicas)
            await sender.open()
            while self._done < len(self._wanted):
                messages = self._following()
                await sender.publish(messages)
                self._done += len(messages)
        finally:
            await client.close()

    def _following(self) -> list[Message]:
        """Return the rest of the database transaction that is next."""
        first = self._wanted[self._done]
        rest = self._wanted[self._done :]
        size = next((n for n, each in enumerate(rest) if each.position != first.position), None)
        return batch(first.position, first.ordinal - 1 + len(rest[:size]))[first.ordinal - 1 :]
