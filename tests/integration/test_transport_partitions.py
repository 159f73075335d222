"""A topic is given more partitions: each key's order holds, and tables stay exact.

Message number n is the (n // KEYS + 1)th of its key, so every count that a worker ever tells of it
must be that one, and whoever reads numbers of a key must read them in order, whatever partition the
key is in.
"""

import asyncio
import json
import random
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from itertools import count
from typing import Any

import pytest
from faust.types import TP
from nats.js.errors import NoStreamResponseError

from streams.transport import (
    Connection,
    PartitionsRefusedError,
    TopicMovedError,
    add_partitions,
    names,
)
from streams.transport.group import Group
from streams.transport.layouts import History, history_of, scan
from streams.transport.membership import Membership
from streams.transport.reader import Record
from streams.transport.topics import Changelogs, Topics, TopicShape
from tests.fixtures.echo_worker import WINDOW_S
from tests.fixtures.echoes import STEADY, echo, lines, sending_app, values
from tests.fixtures.grower import kill_at, run_command
from tests.fixtures.services import BrokerServer
from tests.fixtures.workers import WorkerProcess, eventually, eventually_async

KEYS = 12
FEW, MANY = 4, 6
PARTITIONS_OF_MANY = {names.partition_for(f"k{n}".encode(), MANY) for n in range(KEYS)}


@pytest.fixture
async def app(broker: BrokerServer, connection: Connection, name: str) -> AsyncIterator[Any]:  # noqa: ARG001
    """An app whose producer runs, with a topic of few partitions."""
    async with sending_app(broker, name) as made:
        await made.producer.create_topic(name, FEW, 1)
        yield made


async def send(app: Any, topic: str, numbers: Iterable[int]) -> list[Any]:
    """Send numbered messages over the keys; return what the producer says of each."""
    futures = [
        await app.producer.send(topic, f"k{n % KEYS}".encode(), str(n).encode(), None, None, None)
        for n in numbers
    ]
    await app.producer.flush()
    return [future.result() for future in futures]


def processed(*workers: WorkerProcess, numbers: range) -> None:
    """Wait until the workers have processed all numbers."""
    eventually(
        lambda: set(numbers) <= set(values(*workers)),
        within_s=60,
        what=f"{numbers} by {len(workers)} workers",
    )


def assert_in_order_and_counted(*workers: WorkerProcess) -> None:
    """The numbers of a key in order, and every count exact."""
    of_key: defaultdict[str, list[int]] = defaultdict(list)
    for line in lines(*workers):
        of_key[line["key"]].append(int(line["value"]))
        assert line["count"] == int(line["value"]) // KEYS + 1, line
    assert all(seen == sorted(seen) for seen in of_key.values()), "order of each key"


async def changelog(connection: Connection, name: str) -> dict[Any, tuple[int, int]]:
    """What the table's changelog holds of each key: its partition and its value."""
    stream, topic = names.group_stream(name), f"{name}-counts-changelog"
    root = f"{names.GROUP_ROOT}.{names.token(name)}.table.{names.token(topic)}"
    info = await connection.jetstream.stream_info(stream, subjects_filter=f"{root}.>")
    found = {}
    for subject in info.state.subjects or {}:
        stored = await connection.jetstream.get_last_msg(stream, subject)
        key = json.dumps(json.loads(names.decode_key(stored.headers) or b""))
        assert key not in found, f"{key} twice"
        found[key] = int(subject.split(".")[-2]), json.loads(stored.data or b"")
    return found


async def nobody_lives(connection: Connection, name: str) -> bool:
    """Tell whether an app has no member any more."""
    return not await Membership(connection, name).members()


@pytest.mark.parametrize("table", ["table", "windows"])
async def test_keys_move_with_their_order_and_their_state(
    broker: BrokerServer, connection: Connection, app: Any, name: str, table: str
) -> None:
    await send(app, name, range(60))
    with echo(broker.url, name, table, STEADY, partitions=FEW) as before:
        processed(before, numbers=range(60))
        assert before.stop() == 0
        await send(app, name, range(60, 120))  # nobody processes these in the former partitions
        told: list[str] = []
        await add_partitions(connection, [name], MANY, dry_run=True, say=told.append)
        assert f"app {name}: 12 keys in 1 tables to move, 60 events not processed yet" in told
        assert (await Topics(connection, {}).load(name)).partitions == FEW, "a dry run"
        done = run_command(broker.url, "--topic", name, "--partitions", str(MANY))
        assert (done.returncode, done.stderr) == (0, "")
        sent = await send(app, name, range(120, 180))  # by a producer that knew of few
        assert {each.partition for each in sent} == PARTITIONS_OF_MANY
        with echo(broker.url, name, table, STEADY, partitions=MANY) as after:
            processed(after, numbers=range(60, 180))
            assert after.stop() == 0
            assert sorted(values(before, after)) == list(range(180)), "each event once"
            assert_in_order_and_counted(before, after)
            assert {line["partition"] for line in lines(after)} == PARTITIONS_OF_MANY
    stored = await changelog(connection, name)
    assert len(stored) == KEYS
    for key, (partition, told_count) in stored.items():
        plain = json.loads(key)[0] if table == "windows" else json.loads(key)
        assert (partition, told_count) == (names.partition_for(plain.encode(), MANY), 15)
    if table == "windows":
        subject = f"{names.changelog_root(name, f'{name}-counts-changelog')}.>"
        last = await connection.jetstream.get_last_msg(names.group_stream(name), subject)
        left_s = int((last.headers or {})["Nats-TTL"].removesuffix("s"))
        assert 3 * WINDOW_S - 300 < left_s <= 3 * WINDOW_S
    told.clear()
    await add_partitions(connection, [name], MANY, say=told.append)
    assert told[0] == f"topic {name}: 6 partitions are there already"


async def test_killed_at_every_step_and_told_again(
    broker: BrokerServer, connection: Connection, app: Any, name: str
) -> None:
    await send(app, name, range(480))
    slowly = ("table", "pause=0.005", "lease=15")
    with echo(broker.url, name, *slowly, partitions=FEW) as frozen:
        eventually(lambda: len(values(frozen)) > 60, within_s=60, what="it is at it")
        frozen.signal(signal.SIGSTOP)
        with pytest.raises(PartitionsRefusedError, match="has workers alive"):
            await add_partitions(connection, [name], MANY)
        await eventually_async(
            lambda: nobody_lives(connection, name), within_s=60, what="the lease is over"
        )
        kill_at(broker.url, name, MANY, "decided")
        with pytest.raises(PartitionsRefusedError, match="finish that first"):
            await add_partitions(connection, [name], MANY + 1)
        kill_at(broker.url, name, MANY, "takes events", "fenced", "copied", "about to switch")
        with echo(broker.url, name, "table", partitions=MANY) as early:
            assert early.process.wait(timeout=60) != 0
            assert not lines(early)
            assert "streams.transport partitions" in early.errors.read_text()
        kill_at(broker.url, name, MANY, "are in their new")
        frozen.signal(signal.SIGCONT)
        assert frozen.process.wait(timeout=60) != 0
        await add_partitions(connection, [name], MANY)
        await send(app, name, range(480, 600))
        with echo(broker.url, name, "table", partitions=MANY) as after:
            processed(frozen, after, numbers=range(600))
            assert after.stop() == 0
            assert len(values(after)) == len(set(values(after))), "nothing twice in one worker"
            assert_in_order_and_counted(frozen)
            assert_in_order_and_counted(after)
    stored = await changelog(connection, name)
    assert {each for _, each in stored.values()} == {50}, "exact, and nothing left behind"
    assert len(stored) == KEYS


async def test_no_event_lands_in_a_former_partition(
    broker: BrokerServer, connection: Connection, app: Any, name: str
) -> None:
    futures: list[asyncio.Future[Any]] = []

    async def keep_sending() -> None:
        for number in count():
            key = f"k{number % KEYS}".encode()
            futures.append(
                await app.producer.send(name, key, str(number).encode(), None, None, None)
            )
            await asyncio.sleep(0.001)

    async def sent(number: int) -> bool:
        return len(futures) >= number

    about_to_read = Topics(connection, {})
    await about_to_read.load(name)
    sending = asyncio.create_task(keep_sending())
    await eventually_async(lambda: sent(200), within_s=30, what="200 sent")
    await add_partitions(connection, [name], MANY)
    reached = len(futures) + 200
    await eventually_async(lambda: sent(reached), within_s=30, what="200 more sent")
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    await app.producer.flush()
    placed = [future.result() for future in futures]
    assert {each.partition for each in placed[-KEYS:]} == PARTITIONS_OF_MANY
    with pytest.raises(TopicMovedError, match="has 6 partitions now"):
        await about_to_read.confirm(name)
    with pytest.raises(NoStreamResponseError):
        await connection.jetstream.publish(f"{names.topic_root(name)}.1", b"as before")
    with echo(broker.url, name, "table", STEADY, partitions=MANY) as newcomer:
        processed(newcomer, numbers=range(len(futures)))
        assert newcomer.stop() == 0
        assert sorted(values(newcomer)) == list(range(len(futures))), "each event once"
        assert_in_order_and_counted(newcomer)


def is_of(record: Record, shape: TopicShape, history: History | None, partition: int) -> bool:
    """Tell whether a message is to be processed in a partition."""
    if history is None:
        return record.subject == shape.filter(partition)
    return history.wants(partition)(record) and (
        shape.origin(record.subject) == (shape.layout, partition)
        or shape.origin(record.subject)[0] < shape.layout
    )


class Reader:
    """An app without workers: reads as they do, and commits as much as it is told to."""

    def __init__(self, connection: Connection, app_id: str, topic: str) -> None:
        self.connection = connection
        self.app_id = app_id
        self.topic = topic
        self.group = Group(connection, app_id, replicas=1)

    async def remaining(self) -> dict[TP, list[Record]]:
        """Take the partitions over, and return what is left to process of each."""
        await self.group.ensure()
        shape = await Topics(self.connection, {}).load(self.topic)
        history = await history_of(self.connection, self.app_id, shape)
        tps = [TP(self.topic, number) for number in range(shape.partitions)]
        generation = await Membership(self.connection, self.app_id).generation()
        assert await self.group.adopt(tps, generation.number if generation else 0)
        return {
            tp: [
                record
                async for records in scan(
                    self.connection,
                    shape.stream,
                    f"{names.topic_root(self.topic)}.>",
                    self.group.committed(tp) or 1,
                )
                for record in records
                if is_of(record, shape, history, tp.partition)
            ]
            for tp in tps
        }

    async def process(self, chance: random.Random, left: dict[TP, list[Record]]) -> list[Record]:
        """Commit some of the first of each partition, of some nothing; return them."""
        done = []
        for tp, records in left.items():
            some = records[: chance.randint(0, len(records))]
            if some:
                assert await self.group.commit({tp: some[-1].sequence + 1}) is not None
                done += some
        return done


@pytest.mark.parametrize("seed", range(4))
async def test_an_app_that_was_behind_in_every_layout(
    connection: Connection, app: Any, name: str, seed: int
) -> None:
    chance = random.Random(seed)
    reader, producer = Reader(connection, name, name), app.producer
    processed_once: list[int] = []
    sent: list[int] = []
    of_key: defaultdict[bytes | None, list[int]] = defaultdict(list)
    for partitions in (FEW, 5, 9, 10):
        await add_partitions(connection, [name], partitions)
        for _ in range(chance.randint(0, 60)):
            key = chance.choice([b"%d" % n for n in range(15)] + [None])
            told = await producer.send_and_wait(name, key, b"", None, None, None)
            sent.append(told.offset)
        if chance.random() < 0.8:  # else the app sees nothing of this layout
            left = await reader.remaining()
            for record in await reader.process(chance, left):
                processed_once.append(record.sequence)
                of_key[names.decode_key(record.headers)].append(record.sequence)
    for tp, records in (await reader.remaining()).items():
        for record in records:
            key = names.decode_key(record.headers)
            assert key is None or tp.partition == names.partition_for(key, 10)
            processed_once.append(record.sequence)
            of_key[key].append(record.sequence)
    assert sorted(processed_once) == sent, "each once"
    of_key.pop(None, None)
    assert all(seen == sorted(seen) for seen in of_key.values()), "order of each key"


async def test_a_compacted_topic_keeps_the_last_of_each_key(
    connection: Connection, app: Any, name: str
) -> None:
    topic, producer = f"{name}-state", app.producer
    await producer.create_topic(topic, FEW, 1, compacting=True)
    wanted = {}
    for value in (b"1", b"2"):
        for number in range(KEYS):
            key = b"k%d" % number
            await producer.send_and_wait(topic, key, value, None, None, None)
            wanted[key] = value
    await add_partitions(connection, [topic], MANY)
    for number in range(0, KEYS, 3):
        key = b"k%d" % number
        await producer.send_and_wait(topic, key, b"3", None, None, None)
        wanted[key] = b"3"
    found = {}
    for tp, records in (await Reader(connection, name, topic).remaining()).items():
        for record in records:
            key = names.decode_key(record.headers) or b""
            assert tp.partition == names.partition_for(key, MANY)
            found[key] = record.data
    assert found == wanted


async def test_refusals(broker: BrokerServer, connection: Connection, app: Any, name: str) -> None:
    async def refused(*topics: str, partitions: int = MANY, apps: Iterable[str] = ()) -> str:
        with pytest.raises(PartitionsRefusedError) as refusal:
            await add_partitions(connection, topics, partitions, apps=list(apps))
        return str(refusal.value)

    assert "none can be taken away" in await refused(name, partitions=FEW - 1)
    assert "none that an app declared" in await refused("LEDGER")
    assert "has read none of these topics" in await refused(name, apps=["nobody"])
    other, _ = await two_topics_and_a_table(connection, app, name)
    assert "name all of them, each with --topic" in await refused(name)
    stale = f"{names.changelog_root(name, 'counts')}.0.{names.key_token(b'k')}"
    await connection.jetstream.publish(stale, b"1", headers={names.KEY_HEADER: "aw=="})
    assert "do not say by which key" in await refused(name, other)
    await connection.jetstream.purge_stream(names.group_stream(name), subject=stale)
    chosen = (names.partition_for(b"k", FEW) + 1) % FEW
    await app.producer.send_and_wait(other, b"k", b"", chosen, None, None)
    assert "whoever sends them chooses partitions" in await refused(name, other)
    told = run_command(broker.url, "--topic", name, "--partitions", "3")
    assert told.returncode == 1
    assert told.stderr.startswith("not done: ")
    assert told.stderr.count("\n") == 1
    shape = await Topics(connection, {}).load(name)
    assert (shape.partitions, shape.layout) == (FEW, 0), "a refusal changes nothing"


async def two_topics_and_a_table(
    connection: Connection, app: Any, name: str
) -> tuple[str, TopicShape]:
    """Make what an app leaves that reads two topics of as many partitions, and has a table."""
    other, tables = f"{name}-other", Changelogs(name, lambda topic: topic == "counts")
    await app.producer.create_topic(other, FEW, 1)
    shape = await Topics(connection, {}, tables).create(
        "counts", partitions=FEW, replicas=1, compacting=True
    )
    group = Group(connection, name, replicas=1)
    assert await group.adopt([TP(topic, 0) for topic in (name, other)], 0)
    return other, shape


async def test_topics_that_tables_keep_together_move_together(
    connection: Connection, app: Any, name: str
) -> None:
    other, shape = await two_topics_and_a_table(connection, app, name)
    source = {names.SOURCE_HEADER: names.encode_source(b"k1", b"day 1 of k1"), "Nats-TTL": "900s"}
    headers = (names.encode_headers(b"day 1 of k1", b"5", None, None) or {}) | source
    subject = shape.subject(names.partition_for(b"k1", FEW), b"day 1 of k1")
    await connection.jetstream.publish(subject, b"5", headers=headers)
    await add_partitions(connection, [name, other], MANY, apps=[name])
    now = await Topics(connection, {}, Changelogs(name, lambda topic: topic == "counts")).load(
        "counts"
    )
    assert now.partitions == MANY
    where = now.subject(names.partition_for(b"k1", MANY), b"day 1 of k1")
    stored = await connection.jetstream.get_last_msg(names.group_stream(name), where)
    assert stored.data == b"5"
    assert 890 < int((stored.headers or {})["Nats-TTL"].removesuffix("s")) <= 900
    for topic in (name, other):
        topic_shape = await Topics(connection, {}).load(topic)
        assert topic_shape.partitions == MANY
        assert await history_of(connection, name, topic_shape) is not None
