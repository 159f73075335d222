"""Faust on JetStream, against the real server: the conformance that exists so far.

Sending, partitions, keys, tombstones and headers; commit, resume and seek on sparse offsets; a
server that restarts; a standby that takes over after a death; a former owner that is fenced.
"""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from itertools import count
from typing import Any
from uuid import uuid4

import faust
import pytest
from faust.types import TP
from yarl import URL

from streams.transport import (
    Connection,
    TopicMismatchError,
    TopicMissingError,
    WorkerFencedError,
    names,
)
from streams.transport.group import Group
from streams.transport.reader import PartitionReader
from streams.transport.topics import Topics
from tests.fixtures.services import BrokerServer
from tests.fixtures.workers import WorkerProcess, eventually, eventually_async

LEASE_S = 2.0


@pytest.fixture
def name() -> str:
    """A name that no other test uses."""
    return f"t.{uuid4().hex[:12]}"


@pytest.fixture
async def connection(nats_server: BrokerServer) -> AsyncIterator[Connection]:
    """An open connection; what the test created is deleted at its end."""
    opened = Connection([URL(nats_server.url)], "test")
    await opened.open()
    yield opened
    for stream in await opened.jetstream.streams_info():
        if str(stream.config.name).startswith("FAUST_"):
            await opened.jetstream.delete_stream(str(stream.config.name))
    await opened.close()


@pytest.fixture
async def app(
    nats_server: BrokerServer,
    connection: Connection,  # noqa: ARG001 - it deletes what the app created
    name: str,
) -> AsyncIterator[Any]:
    """An app whose producer runs."""
    made = faust.App(f"app-{name}", broker=nats_server.url, web_enabled=False)
    await made.producer.start()
    yield made
    await made.producer.stop()


def echo(server: BrokerServer, name: str, *extras: str, partitions: int = 3) -> WorkerProcess:
    """Start a worker of app `name` on the topic of the same name."""
    return WorkerProcess(
        "-m",
        "tests.fixtures.echo_worker",
        server.url,
        name,
        name,
        str(partitions),
        *extras,
        env={},
    )


def lines(worker: WorkerProcess) -> list[dict[str, Any]]:
    """What the worker processed so far."""
    whole = worker.output.read_text().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]


async def send(app: Any, topic: str, first: int, number: int, partitions: int = 3) -> list[int]:
    """Send numbered messages with ten keys; return their offsets."""
    await app.producer.create_topic(topic, partitions, 1)
    futures = [
        await app.producer.send(topic, f"k{n % 10}".encode(), str(n).encode(), None, None, None)
        for n in range(first, first + number)
    ]
    await app.producer.flush()
    return [future.result().offset for future in futures]


async def test_what_is_sent_is_received(nats_server: BrokerServer, app: Any, name: str) -> None:
    producer = app.producer
    await producer.create_topic(name, 3, 1)
    sent = await producer.send_and_wait(name, b"k1", b"", None, None, {"trace": b"abc"})
    await producer.send_and_wait(name, b"k1", None, None, None, None)
    await producer.send_and_wait(name, None, b"keyless", 2, None, None)
    assert sent.partition == names.partition_for(b"k1", 3)
    with echo(nats_server, name) as worker:
        received = eventually(
            lambda: found if len(found := lines(worker)) == 3 else None,
            within_s=20,
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
    nats_server: BrokerServer, app: Any, name: str
) -> None:
    offsets = await send(app, name, 0, 300)
    with echo(nats_server, name) as worker:
        eventually(lambda: len(lines(worker)) == 300, within_s=20, what="300 messages")
        assert worker.stop() == 0
        first = lines(worker)
    offsets += await send(app, name, 300, 50)
    with echo(nats_server, name) as worker:
        eventually(lambda: len(lines(worker)) >= 50, within_s=20, what="50 messages")
        assert worker.stop() == 0
        second = lines(worker)
    assert sorted(int(line["value"]) for line in first + second) == list(range(350))
    assert {line["offset"] for line in first + second} == set(offsets)
    for partition in range(3):
        seen = [line["offset"] for line in first + second if line["partition"] == partition]
        assert seen == sorted(seen)
        assert seen
        assert seen != list(range(seen[0], seen[0] + len(seen))), "offsets should be sparse"


async def test_a_standby_takes_over_after_a_death(
    nats_server: BrokerServer, app: Any, name: str
) -> None:
    await send(app, name, 0, 100)
    with echo(nats_server, name) as owner:
        eventually(lambda: len(lines(owner)) == 100, within_s=20, what="100 messages")
        with echo(nats_server, name) as standby:
            await send(app, name, 100, 100)
            eventually(lambda: len(lines(owner)) == 200, within_s=20, what="200 messages")
            owner.listen()
            standby.listen()
            assert (owner.ready, standby.ready) == (True, False)
            assert lines(standby) == [], "only the owner consumes"
            owner.kill()
            await send(app, name, 200, 100)
            values = eventually(
                lambda: (
                    found
                    if {*range(200, 300)} <= {*(found := [int(x["value"]) for x in lines(standby)])}
                    else None
                ),
                within_s=15,
                what="the standby's messages",
            )
            assert len(values) == len(set(values)), "nothing twice within one owner"
            assert standby.stop() == 0


async def test_a_stopped_and_continued_owner_ends_itself(
    nats_server: BrokerServer, app: Any, name: str
) -> None:
    await send(app, name, 0, 30)
    with echo(nats_server, name) as owner, echo(nats_server, name) as standby:
        pair = (owner, standby)
        eventually(lambda: any(lines(each) for each in pair), within_s=20, what="an owner")
        former, heir = pair if lines(owner) else pair[::-1]
        eventually(lambda: len(lines(former)) == 30, within_s=20, what="30 messages")
        former.signal(signal.SIGSTOP)
        await send(app, name, 30, 30)
        eventually(
            lambda: {*range(30, 60)} <= {int(x["value"]) for x in lines(heir)},
            within_s=20,
            what="the heir's messages",
        )
        former.signal(signal.SIGCONT)
        assert former.process.wait(timeout=20) != 0
        assert "ownership passed to worker" in former.errors.read_text()
        await send(app, name, 60, 1)
        eventually(lambda: lines(heir)[-1]["value"] == "60", within_s=10, what="it goes on")
        assert heir.stop() == 0


async def test_a_restarted_server_loses_nothing(
    nats_server: BrokerServer, app: Any, name: str
) -> None:
    await send(app, name, 0, 50)
    with echo(nats_server, name) as worker:
        eventually(lambda: len(lines(worker)) == 50, within_s=20, what="50 messages")
        nats_server.kill()
        nats_server.start()
        await send(app, name, 50, 50)
        eventually(
            lambda: {int(x["value"]) for x in lines(worker)} == set(range(100)),
            within_s=30,
            what="100 messages",
        )
        assert worker.stop() == 0
    with echo(nats_server, name) as successor:
        successor.wait_ready()
        await send(app, name, 100, 1)
        eventually(lambda: lines(successor), within_s=10, what="the next message")
        assert [x["value"] for x in lines(successor)] == ["100"], "the offsets were committed"


async def test_publishing_through_a_restart_keeps_order_and_repeats_nothing(
    nats_server: BrokerServer, connection: Connection, app: Any, name: str
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

    await eventually_async(lambda: sent(200), within_s=10, what="200 sent")
    await asyncio.to_thread(nats_server.kill)
    await asyncio.to_thread(nats_server.start)
    reached = len(futures) + 200
    await eventually_async(lambda: sent(reached), within_s=20, what="200 more sent")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await app.producer.flush()
    assert app.producer.connection.client.stats["reconnects"] == 1
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
    async with asyncio.timeout(15):
        found = reader.take(100)
        while len(found) < 5:
            await reader.check()
            await asyncio.sleep(0.1)
            found += reader.take(100)
    await reader.stop()
    assert [record.data for record in found] == [b"%d" % number for number in range(10, 15)]


async def test_a_former_owner_is_fenced(connection: Connection, name: str) -> None:
    tp = TP(name, 0)
    first, second = (Group(connection, name, lease_s=LEASE_S, replicas=1) for _ in range(2))
    await first.ensure()
    assert await first.acquire()
    await first.adopt([tp])
    assert await first.commit({tp: 7})
    assert not await second.acquire()
    assert second.owner == first.member
    # The first is stopped: it does not renew.
    await eventually_async(second.acquire, within_s=LEASE_S * 3, what="the lease expired")
    await second.adopt([tp])
    assert second.generation > first.generation
    assert second.committed(tp) == 7
    assert not await first.commit({tp: 9}), "continued, it must not commit"
    with pytest.raises(WorkerFencedError, match=second.member):
        await first.renew()
    assert await second.commit({tp: 8})
    await second.release()
    assert await first.acquire(), "a lease given back is free at once"
    await first.adopt([tp])
    assert first.committed(tp) == 8


async def test_an_expired_lease_nobody_took_is_taken_back(
    connection: Connection, name: str
) -> None:
    tp = TP(name, 0)
    group = Group(connection, name, lease_s=LEASE_S, replicas=1)
    await group.ensure()
    assert await group.acquire()
    await group.adopt([tp])

    async def expired() -> bool:
        stream, subject = names.group_stream(name), names.owner_subject(name)
        return await connection.last_message(stream, subject) is None

    await eventually_async(expired, within_s=LEASE_S * 3, what="the lease expired")
    await group.renew()
    assert await group.commit({tp: 3})


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


async def test_a_table_is_recovered_from_its_changelog(
    nats_server: BrokerServer, app: Any, name: str
) -> None:
    await send(app, name, 0, 100)
    with echo(nats_server, name, "table") as worker:
        eventually(lambda: len(lines(worker)) == 100, within_s=20, what="100 messages")
        assert worker.stop() == 0
    await send(app, name, 100, 10)
    with echo(nats_server, name, "table") as worker:
        eventually(lambda: len(lines(worker)) == 10, within_s=30, what="10 messages")
        assert worker.stop() == 0
        assert {line["key"]: line["count"] for line in lines(worker)} == {
            f"k{number}": 11 for number in range(10)
        }


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
    async with asyncio.timeout(10):
        while len(taken) < number:
            taken += reader.take(number - len(taken))
            await reader.replenish()
            await asyncio.sleep(0.01)
    return taken
