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
BATCHES = 50
PAUSE_S = 0.01
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
    work = Work(cluster)
    async with asyncio.timeout(DEADLINE_S):
        publishing = asyncio.create_task(work.publish_on())
        for _ in range(2):
            await work.goes_on()
            leader = await cluster.leader(STREAM)
            with cluster.dead(leader):
                await work.goes_on()
            await asyncio.to_thread(cluster.wait_healthy)
        await work.goes_on()
        work.ending = True
        await publishing
    assert work.failures > 0, "no publisher met a death"
    ids = await stored_ids(jetstream, STREAM)
    assert (
        ids
        == [message.event_id for number in range(1, len(ids)) for message in whole(number)][
            : len(ids)
        ]
    )


def whole(position: int) -> list[Message]:
    """Return a database transaction, the same for the same position."""
    return batch(position, random.Random(position).choice(SIZES[:-1]))


class Work:
    """Publishes by one publisher after the other, at whichever server answers."""

    def __init__(self, cluster: Cluster) -> None:
        self._urls = cluster.urls
        self._published = 0
        self.failures = 0
        self.ending = False

    async def publish_on(self) -> None:
        """Publish until told to end."""
        while not self.ending:
            try:
                await self._publish(self._urls[self.failures % SIZE])
            except IngestError:
                self.failures += 1
                await asyncio.sleep(PAUSE_S)

    async def goes_on(self) -> None:
        """Wait until so many batches more were published."""
        wanted = self._published + BATCHES

        async def look() -> bool:
            return self._published >= wanted

        await eventually_async(look, within_s=DEADLINE_S, what="publishing goes on")

    async def _publish(self, url: str) -> None:
        client = await publisher.connect(url, "one after the other")
        try:
            state = await publisher.stream_state(client.jetstream(), STREAM)
            assert state is not None
            sender = LedgerPublisher(client, STREAM, state.last_sequence, state.replicas)
            await sender.open()
            last = state.last_id or EventId(1, 0)
            while not self.ending:
                messages = whole(last.position)[last.ordinal :] or whole(last.position + 1)
                await sender.publish(messages)
                self._published += 1
                last = messages[-1].event_id
                await asyncio.sleep(PAUSE_S)
        finally:
            await client.close()
