"""Streams on the transport: take, group_by, concurrent agents, channels that join at run time."""

import asyncio
from collections import defaultdict
from typing import Any

from tests.conformance.apps import (
    Apps,
    raw_topic,
    running,
    seen,
    send_numbers,
    until,
    values,
)


async def test_take_gives_everything_once_in_batches(apps: Apps, name: str) -> None:
    batches: list[list[bytes]] = []
    async with apps.producing() as producer:
        await producer.create_topic(name, 1, 1)
        await send_numbers(producer, name, range(95))
        app = apps.new()

        async def collect(stream: Any) -> None:
            async for batch in stream.take(20, within=1.0):
                batches.append(list(batch))  # noqa: PERF401 - looked at while it still grows

        app.agent(raw_topic(app, name, internal=False))(collect)
        async with running(app):
            await until(lambda: sum(map(len, batches)) >= 95, app=app, what=lambda: "95 values")
            await send_numbers(producer, name, [95])
            await until(lambda: batches[-1] == [b"95"], app=app, what=lambda: "the window's end")
        async with apps.reading(name) as reading:
            await send_numbers(producer, name, [96])
            assert values(await reading.until(1)) == [96], "finished batches are committed"
    assert [int(value) for batch in batches for value in batch] == list(range(96))
    assert max(map(len, batches)) == 20


async def test_a_batch_that_failed_is_taken_again(apps: Apps, name: str) -> None:
    """Faust's own `take` acknowledges a batch whose processing failed."""
    first: list[bytes] = []
    async with apps.producing() as producer:
        await producer.create_topic(name, 1, 1)
        await send_numbers(producer, name, range(10))
    app = apps.new(stream_wait_empty=False)
    never = asyncio.Event()

    async def fail(stream: Any) -> None:
        async for batch in stream.take(5, within=60.0):
            first.extend(batch)
            if len(first) > 5:
                await never.wait()

    app.agent(raw_topic(app, name, internal=False))(fail)
    async with running(app):
        await until(lambda: len(first) == 10, app=app, what=lambda: "the second batch")
    async with apps.reading(name) as reading:
        assert values(await reading.until(5)) == [5, 6, 7, 8, 9]


async def test_group_by_brings_a_key_together(apps: Apps, name: str) -> None:
    grouped: list[tuple[int, str, int]] = []
    app = apps.new()
    topic = app.topic(name, partitions=3, internal=True, key_type=str, value_type=int)

    async def regroup(stream: Any) -> None:
        by_rest = stream.group_by(lambda value: str(value % 7), name="rest", partitions=3)
        async for event in by_rest.events():
            key = event.key.decode() if isinstance(event.key, bytes) else event.key
            grouped.append((event.message.partition, str(key), event.value))

    app.agent(topic)(regroup)
    async with running(app):
        for number in range(70):
            await topic.send(key=f"k{number % 10}", value=number)
        await until(lambda: len(grouped) >= 70, app=app, what=lambda: f"70, {len(grouped)} came")
    assert sorted(value for _, _, value in grouped) == list(range(70))
    assert all(int(key) == value % 7 for _, key, value in grouped)
    places: defaultdict[str, set[int]] = defaultdict(set)
    for partition, key, _ in grouped:
        places[key].add(partition)
    assert all(len(partitions) == 1 for partitions in places.values())


async def test_concurrent_copies_share_and_commit_behind_the_slowest(apps: Apps, name: str) -> None:
    slow = asyncio.Event()
    done: list[int] = []
    async with apps.producing() as producer:
        await producer.create_topic(name, 1, 1)
        await send_numbers(producer, name, range(40))
    app = apps.new(stream_wait_empty=False)

    async def work(stream: Any) -> None:
        async for event in stream.events():
            if event.value == b"7":
                await slow.wait()
            done.append(int(event.value))

    app.agent(raw_topic(app, name, internal=False), concurrency=4)(work)
    async with running(app):
        await until(lambda: len(done) >= 30, app=app, what=lambda: f"30, {len(done)} done")
        await app.consumer.commit()
    async with apps.reading(name) as reading:
        again = values(await reading.until(33))
    assert again == list(range(7, 40)), "7 was never finished, so nothing behind it was committed"


async def test_a_topic_that_joins_at_run_time_is_read_in_time(apps: Apps, name: str) -> None:
    late = f"{name}.late"
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        await producer.create_topic(late, 3, 1)
        await send_numbers(producer, late, range(20))
        async with apps.reading(name) as reading:
            joined = []

            async def join() -> None:
                async for event in raw_topic(reading.app, late, internal=False).stream().events():
                    joined.append(seen(event))  # noqa: PERF401 - looked at while it still grows

            task = asyncio.create_task(join())
            await until(
                lambda: len(joined) >= 20,
                app=reading.app,
                within_s=40.0,
                what=lambda: f"20 of the new topic, {len(joined)} came",
            )
            await send_numbers(producer, name, range(5))
            assert sorted(values(await reading.until(5))) == list(range(5)), "the first goes on"
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert sorted(values(joined)) == list(range(20))
