"""Commits: only behind finished work, before partitions are given away, and kept by the broker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from faust.types import TP

from tests.conformance.apps import (
    START_DEADLINE_S,
    STOP_DEADLINE_S,
    Apps,
    Seen,
    raw_topic,
    running,
    seen,
    send_numbers,
    until,
    values,
)


async def hold(app: Any, topic: str) -> list[Any]:
    """Give `app` an agent that keeps its events and acknowledges none."""
    held: list[Any] = []

    async def keep(stream: Any) -> None:
        async for event in stream.noack().events():
            held.append(event)  # noqa: PERF401 - acknowledged while it still grows

    app.agent(raw_topic(app, topic, internal=False))(keep)
    return held


async def read_all(apps: Apps, topic: str, number: int) -> list[Seen]:
    """Run the next worker of the app until it has seen `number` messages."""
    async with apps.reading(topic) as reading:
        return await reading.until(number)


async def test_commits_stay_behind_unfinished_work(apps: Apps, name: str) -> None:
    """Offsets of one partition are sparse here, and acknowledged in another order than read."""
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        for number in range(12):  # others lie in between
            await send_numbers(producer, name, [number], partition=1)
            await send_numbers(producer, name, [100 + number], partition=number % 2 * 2)
        app = apps.new(broker_commit_interval=60.0, stream_wait_empty=False)
        held = await hold(app, name)
        async with running(app):
            await until(lambda: len(held) == 24, app=app, what=lambda: f"24, {len(held)} came")
            mine = {int(event.value): event for event in held if event.message.partition == 1}
            for number in (3, 1, 0, 2, 11, 10, 9, 6, 8, 7):  # 4 and 5 are still being worked on
                mine[number].ack()
            for event in held:
                if event.message.partition != 1:
                    event.ack()
            assert await app.consumer.commit()
            assert not await app.consumer.commit(), "nothing new"
        await send_numbers(producer, name, [12], partition=1)
    again = values(await read_all(apps, name, 9))
    assert sorted(again) == list(range(4, 13)), "from the first unfinished one, and nothing else"
    assert again == sorted(again)


async def test_late_acknowledgements_are_committed(apps: Apps, name: str) -> None:
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        told = await send_numbers(producer, name, range(5), partition=1)
        app = apps.new(broker_commit_interval=60.0, stream_wait_empty=False)
        held = await hold(app, name)
        async with running(app):
            await until(lambda: len(held) == 5, app=app, what=lambda: "5 messages")
            for event in held[1:]:
                event.ack()
            assert not await app.consumer.commit(), "the first is not finished"
            held[0].ack()
            assert await app.consumer.commit({TP(name, 1)})
        await send_numbers(producer, name, [5], partition=1)
        (only,) = await read_all(apps, name, 1)
        assert only.value == b"5"
        assert only.offset > told[-1].offset


async def test_finished_work_is_committed_by_time_and_at_the_end(apps: Apps, name: str) -> None:
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        await send_numbers(producer, name, range(50))
        for interval_s in (0.1, 60.0):
            async with apps.reading(name, broker_commit_interval=interval_s) as reading:
                await reading.until(50)
                assert sorted(values(reading.seen)) == list(range(50))
            await send_numbers(producer, name, range(50))


async def test_what_was_finished_is_committed_before_it_is_revoked(apps: Apps, name: str) -> None:
    """A second worker joins; whoever owns a partition then begins behind the finished work."""
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        await send_numbers(producer, name, range(60))
        async with apps.reading(name, broker_commit_interval=60.0) as first:
            await first.until(60)
            async with second_worker(apps, name) as second:
                await send_numbers(producer, name, range(60, 120))
                await until(
                    lambda: len(first.seen) + len(second) >= 120,
                    app=first.app,
                    what=lambda: f"120, {len(first.seen)} and {len(second)} came",
                )
                both = values(first.seen) + values(second)
    assert sorted(both) == list(range(120)), "each once, though all was acknowledged since a minute"


async def test_workers_share_partitions_and_hand_them_over(apps: Apps, name: str) -> None:
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        await send_numbers(producer, name, range(30))
        async with apps.reading(name, broker_commit_interval=60.0) as first:
            await first.until(30)
            async with second_worker(apps, name) as second:

                async def send_and_read(numbers: range) -> None:
                    await send_numbers(producer, name, numbers)
                    await until(
                        lambda: len(first.seen) + len(second) >= numbers.stop,
                        app=first.app,
                        what=lambda: f"{numbers}, {len(first.seen)} and {len(second)} came",
                    )

                sent = 30
                async with asyncio.timeout(START_DEADLINE_S):
                    while not second:  # until it is assigned something
                        await send_and_read(range(sent, sent + 30))
                        sent += 30
            await send_and_read(range(sent, sent + 30))
            theirs = {message.partition for message in second}
            assert 0 < len(theirs) < 3, "some, not all"
            assert {message.generation for message in second}.isdisjoint({0, None})
    assert sorted(values(first.seen) + values(second)) == list(range(sent + 30)), "each once"
    for partition in range(3):
        for worker in (first.seen, second):
            mine = [message.offset for message in worker if message.partition == partition]
            assert mine == sorted(mine)


@asynccontextmanager
async def second_worker(apps: Apps, topic: str) -> AsyncIterator[list[Seen]]:
    """Run another worker of the same app, which may be assigned nothing; yield what it saw."""
    app = apps.new(broker_commit_interval=60.0)
    collected: list[Seen] = []

    async def collect(stream: Any) -> None:
        async for event in stream.events():
            collected.append(seen(event))  # noqa: PERF401 - looked at while it still grows

    app.agent(raw_topic(app, topic, internal=False))(collect)
    # A worker that stands by may count as started only once it is assigned something.
    starting = asyncio.create_task(app.start())
    try:
        yield collected
    finally:
        async with asyncio.timeout(STOP_DEADLINE_S):
            await app.stop()
            await asyncio.gather(starting, return_exceptions=True)
