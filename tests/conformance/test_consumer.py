"""The consumer: positions, seeks, marks of empty, filled and compacted topics, resets, fairness."""

import pytest
from faust.exceptions import ConsumerNotStarted
from faust.types import TP

from tests.conformance.apps import Apps, send_numbers, until, values


async def test_no_assignment_before_the_start(apps: Apps) -> None:
    with pytest.raises(ConsumerNotStarted):
        apps.new().consumer.assignment()


async def test_one_worker_is_assigned_every_partition(apps: Apps, name: str) -> None:
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        await send_numbers(producer, name, range(30))
    async with apps.reading(name) as reading:
        consumer = reading.app.consumer
        assert {tp for tp in consumer.assignment() if tp.topic == name} == {
            TP(name, partition) for partition in range(3)
        }
        assert consumer.topic_partitions(name) == 3
        assert not consumer.topic_partitions("not.there")
        assert consumer.key_partition(name, None) is None
        assert consumer.key_partition(name, b"k", 2) == 2
        messages = await reading.until(30)
        current = reading.app.consumer_generation_id
    assert {message.generation for message in messages} == {current}, "or streams drop events"


async def test_marks_and_positions(apps: Apps, name: str) -> None:
    """Offsets may be sparse, so only their order and their ends are looked at."""
    empty, filled, other = (TP(name, partition) for partition in range(3))
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        told = await send_numbers(producer, name, range(8), partition=1)
        await send_numbers(producer, name, range(8, 10), partition=2)
        told += await send_numbers(producer, name, range(10, 12), partition=1)
    first, last = told[0].offset, told[-1].offset
    async with apps.reading(name) as reading:
        await reading.until(12)
        consumer = reading.app.consumer
        high = await consumer.highwaters(empty, filled, other)
        low = await consumer.earliest_offsets(empty, filled, other)
        assert (high[empty], low[empty]) == (0, 0)
        assert (high[filled], low[filled]) == (last + 1, first)
        assert consumer.highwater(filled) == last + 1
        assert await consumer.position(filled) == last + 1
        assert await consumer.position(TP("not.there", 0)) is None


async def test_marks_of_a_compacted_topic(apps: Apps, name: str) -> None:
    async with apps.producing() as producer:
        await producer.create_topic(name, 1, 1, compacting=True)
        for number in range(20):
            told = await producer.send_and_wait(
                name, b"k%d" % (number % 2), b"%d" % number, 0, None, None
            )
        gone = await producer.send_and_wait(name, b"k0", None, 0, None, None)
    tp = TP(name, 0)
    async with apps.reading(name) as reading:
        await until(
            lambda: any(message.value is None for message in reading.seen),
            app=reading.app,
            what=lambda: "the tombstone",
        )
        high = (await reading.app.consumer.highwaters(tp))[tp]
        low = (await reading.app.consumer.earliest_offsets(tp))[tp]
        latest = {message.key: (message.offset, message.value) for message in reading.seen}
    assert latest == {b"k0": (gone.offset, None), b"k1": (told.offset, b"19")}
    assert high == gone.offset + 1
    assert low <= min(message.offset for message in reading.seen)


@pytest.mark.parametrize(
    ("reset", "expected"), [("earliest", range(15)), ("latest", range(10, 15))]
)
async def test_where_an_app_begins_that_committed_nothing(
    apps: Apps, name: str, reset: str, expected: range
) -> None:
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        await send_numbers(producer, name, range(10))
        async with apps.reading(name, consumer_auto_offset_reset=reset) as reading:
            await send_numbers(producer, name, range(10, 15))
            await reading.until(len(expected))
            await send_numbers(producer, name, [15])
            messages = await reading.until(len(expected) + 1)
    assert sorted(values(messages)) == [*expected, 15]


async def test_seek_reads_again_from_there(apps: Apps, name: str) -> None:
    tp = TP(name, 1)
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        await send_numbers(producer, name, range(30))
        told = await send_numbers(producer, name, range(100, 110), partition=1)
        async with apps.reading(name, broker_commit_interval=60.0) as reading:
            await reading.until(40)
            consumer = reading.app.consumer
            consumer.pause_partitions([tp])
            await consumer.seek(tp, told[5].offset)
            assert await consumer.position(tp) == told[5].offset
            await send_numbers(producer, name, [200], partition=0)
            assert values((await reading.until(41))[40:]) == [200], "a paused partition is silent"
            consumer.resume_partitions([tp])
            assert values((await reading.until(46))[41:]) == [105, 106, 107, 108, 109]
            await consumer.seek_wait({tp: told[8].offset + 1})
            assert values((await reading.until(47))[46:]) == [109]
            await send_numbers(producer, name, [201], partition=1)
            assert values((await reading.until(48))[47:]) == [201]


async def test_a_long_partition_starves_no_other(apps: Apps, name: str) -> None:
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        await send_numbers(producer, name, range(2400), partition=0)
        await send_numbers(producer, name, range(2400, 2410), partition=1)
        await send_numbers(producer, name, range(2410, 2420), partition=2)
    async with apps.reading(name, stream_buffer_maxsize=64) as reading:
        messages = await reading.until(2420)
    assert sorted(values(messages)) == list(range(2420))
    where = [at for at, message in enumerate(messages) if message.partition != 0]
    assert where[-1] < 1600, "read beside the long one, not after it"


async def test_full_buffers_cost_no_pauses(apps: Apps, name: str) -> None:
    """Faust's own loop sleeps a second whenever every partition's buffer is full: 125 here."""
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        await send_numbers(producer, name, range(1500))
    async with apps.reading(name, stream_buffer_maxsize=4) as reading:
        messages = await reading.until(1500)
    for partition in range(3):
        mine = [message.offset for message in messages if message.partition == partition]
        assert mine == sorted(mine)
