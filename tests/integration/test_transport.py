"""Faust on JetStream, against the real server: the conformance that exists so far.

Sending, partitions, keys, tombstones and headers; commit, resume and seek on sparse offsets; a
server that restarts. Several workers are in test_transport_sharing.py, tables that must be exact in
test_transport_tables.py.
"""

import asyncio
from itertools import count
from typing import Any

import pytest
from nats.js.errors import NotFoundError

from streams.transport import (
    Connection,
    TopicMismatchError,
    TopicMissingError,
    names,
)
from streams.transport.connection import REQUEST_TIMEOUT_S
from streams.transport.reader import PartitionReader
from streams.transport.topics import Topics
from tests.fixtures.echoes import STEADY, echo, lines
from tests.fixtures.echoes import send as send_numbers
from tests.fixtures.services import BrokerServer
from tests.fixtures.workers import WorkerProcess, eventually, eventually_async

PARTITIONS = 3
KEYS = 10


def worker_of(server: BrokerServer, name: str, *extras: str) -> WorkerProcess:
    """Start a worker of app `name` on the topic of the same name."""
    return echo(server.url, name, STEADY, *extras, partitions=PARTITIONS)


async def send(
    app: Any, topic: str, first: int, number: int, partitions: int = PARTITIONS
) -> list[int]:
    """Send numbered messages with ten keys; return their offsets."""
    numbers = range(first, first + number)
    return await send_numbers(app, topic, numbers, partitions=partitions, keys=KEYS)


async def test_what_is_sent_is_received(broker: BrokerServer, app: Any, name: str) -> None:
    producer = app.producer
    await producer.create_topic(name, 3, 1)
    sent = await producer.send_and_wait(name, b"k1", b"", None, None, {"trace": b"abc"})
    await producer.send_and_wait(name, b"k1", None, None, None, None)
    await producer.send_and_wait(name, None, b"keyless", 2, None, None)
    assert sent.partition == names.partition_for(b"k1", 3)
    with worker_of(broker, name) as worker:
        received = eventually(
            lambda: found if len(found := lines(worker)) == 3 else None,
            within_s=60,
            what="three messages",
        )
        assert worker.stop() == 0
    by_value = {line["value"]: line for line in received}
    assert by_value[""]["key"] == "k1"
    assert by_value[""]["headers"] == {"trace": "abc"}
    assert by_value[""]["offset"] == sent.offset
    assert by_value[None]["key"] == "k1"
    assert (by_value["keyless"]["key"], by_value["keyless"]["partition"]) == (None, 2)


async def test_order_holds_in_each_partition_and_commits_resume(
    broker: BrokerServer, app: Any, name: str
) -> None:
    offsets = await send(app, name, 0, 300)
    with worker_of(broker, name) as worker:
        eventually(lambda: len(lines(worker)) == 300, within_s=60, what="300 messages")
        assert worker.stop() == 0
        first = lines(worker)
    offsets += await send(app, name, 300, 50)
    with worker_of(broker, name) as worker:
        eventually(lambda: len(lines(worker)) >= 50, within_s=60, what="50 messages")
        assert worker.stop() == 0
        second = lines(worker)
    assert sorted(int(line["value"]) for line in first + second) == list(range(350))
    assert {line["offset"] for line in first + second} == set(offsets)
    for partition in range(3):
        seen = [line["offset"] for line in first + second if line["partition"] == partition]
        assert seen == sorted(seen)
        assert seen
        assert seen != list(range(seen[0], seen[0] + len(seen))), "offsets should be sparse"


async def test_a_restarted_server_loses_nothing(broker: BrokerServer, app: Any, name: str) -> None:
    await send(app, name, 0, 50)
    with worker_of(broker, name) as worker:
        eventually(lambda: len(lines(worker)) == 50, within_s=60, what="50 messages")
        broker.kill()
        broker.start()
        await send(app, name, 50, 50)
        eventually(
            lambda: {int(x["value"]) for x in lines(worker)} == set(range(100)),
            within_s=60,
            what="100 messages",
        )
        assert worker.stop() == 0
    with worker_of(broker, name) as successor:
        successor.wait_ready()
        await send(app, name, 100, 1)
        eventually(lambda: lines(successor), within_s=60, what="the next message")
        assert [x["value"] for x in lines(successor)] == ["100"], "the offsets were committed"


async def test_publishing_through_a_restart_keeps_order_and_repeats_nothing(
    broker: BrokerServer, connection: Connection, app: Any, name: str
) -> None:
    await app.producer.create_topic(name, 1, 1)
    futures: list[asyncio.Future[Any]] = []

    async def keep_sending() -> None:
        for number in count():
            value = str(number).encode()
            futures.append(await app.producer.send(name, b"k", value, None, None, None))
            if number % 20 == 0:
                await asyncio.sleep(0.001)

    task = asyncio.create_task(keep_sending())

    async def sent(number: int) -> bool:
        await asyncio.sleep(0)
        return len(futures) >= number

    await eventually_async(lambda: sent(200), within_s=60, what="200 sent")
    await asyncio.to_thread(broker.kill)
    await asyncio.to_thread(broker.start)
    reached = len(futures) + 200
    await eventually_async(lambda: sent(reached), within_s=60, what="200 more sent")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await app.producer.flush()
    assert app.producer.connection.client.stats["reconnects"] > 0
    offsets = [future.result().offset for future in futures]
    assert offsets == sorted(offsets)
    assert len(set(offsets)) == len(offsets)
    reader = await reading(connection, name, 0, start=1)
    stored = await collect(reader, len(futures))
    await reader.stop()
    assert [record.data for record in stored] == [b"%d" % n for n in range(len(futures))]


async def test_seek_and_sparse_offsets(connection: Connection, app: Any, name: str) -> None:
    offsets = await send(app, name, 0, 90)
    partition = names.partition_for(b"k3", 3)
    mine = [
        offset
        for number, offset in enumerate(offsets)
        if names.partition_for(f"k{number % 10}".encode(), 3) == partition
    ]
    assert mine != list(range(mine[0], mine[0] + len(mine)))
    reader = await reading(connection, name, partition, start=1)
    assert [record.sequence for record in await collect(reader, len(mine))] == mine
    middle = mine[len(mine) // 2]
    await reader.start(middle)
    assert [r.sequence for r in await collect(reader, 3)] == [x for x in mine if x >= middle][:3]
    await reader.start(middle + 1)
    assert (await collect(reader, 1))[0].sequence == next(x for x in mine if x > middle)
    await reader.stop()
    topics = Topics(connection, {})
    assert await topics.bounds(name, partition) == (mine[0], mine[-1] + 1)


async def test_a_reader_whose_consumer_vanished_goes_on(
    connection: Connection, app: Any, name: str
) -> None:
    await send(app, name, 0, 10, partitions=1)
    reader = await reading(connection, name, 0, start=1)
    await collect(reader, 10)
    stream = names.topic_stream(name)
    for consumer in await connection.jetstream.consumers_info(stream):
        await connection.jetstream.delete_consumer(stream, consumer.name)
    await send(app, name, 10, 5, partitions=1)
    async with asyncio.timeout(60):
        found = reader.take(100)
        while len(found) < 5:
            await reader.check()
            await asyncio.sleep(0.1)
            found += reader.take(100)
    await reader.stop()
    assert [record.data for record in found] == [b"%d" % number for number in range(10, 15)]


async def test_streams_are_declared_or_missed_never_guessed(
    connection: Connection, name: str
) -> None:
    topics = Topics(connection, {"mirror": "NOT_THERE"})
    with pytest.raises(TopicMissingError, match="NOT_THERE"):
        await topics.load("mirror")
    with pytest.raises(TopicMissingError):
        await topics.load(name)
    with pytest.raises(TopicMissingError):
        await topics.create("mirror", partitions=1, replicas=1)
    await topics.create(name, partitions=2, replicas=1)
    await topics.create(name, partitions=2, replicas=1)
    with pytest.raises(TopicMismatchError, match="2 partitions"):
        await topics.create(name, partitions=3, replicas=1)


async def test_what_is_gone_is_deleted_without_an_error(
    connection: Connection, app: Any, name: str
) -> None:
    first, second = await send(app, name, 0, 2, partitions=1)
    stream = names.topic_stream(name)
    async with asyncio.timeout(REQUEST_TIMEOUT_S):  # so the server was not taken to be away
        for sequence in (first, first, second + 100):
            await connection.delete(stream, sequence)
    assert (await connection.jetstream.stream_info(stream)).state.first_seq == second
    with pytest.raises(NotFoundError, match="stream not found"):
        await connection.delete("NOT_THERE", 1)


async def reading(
    connection: Connection, topic: str, partition: int, *, start: int
) -> PartitionReader:
    """Return a reader that stands at `start`."""
    shape = await Topics(connection, {}).load(topic)
    reader = PartitionReader(
        connection,
        stream=shape.stream,
        subject_filter=shape.filter(partition),
        on_arrival=lambda: None,
    )
    await reader.start(start)
    return reader


async def collect(reader: PartitionReader, number: int) -> list[Any]:
    """Take at least `number` records, waiting for them."""
    taken: list[Any] = []
    async with asyncio.timeout(60):
        while len(taken) < number:
            taken += reader.take(number - len(taken))
            await reader.replenish()
            await asyncio.sleep(0.01)
    return taken
