"""Tables on the transport: changelogs, recovery, deletions, windows, a recovery that fails."""

import asyncio
from datetime import timedelta
from typing import Any

from tests.conformance.apps import Apps, raw_topic, running, seen, send_numbers, until

KEYS = 10


def counting(app: Any, topic: str) -> tuple[Any, list[Any]]:
    """Give `app` an agent that counts the events of each key; `-1` forgets the key."""
    table = app.Table("counts", default=int, key_type=bytes, value_type=int, partitions=3)
    collected: list[Any] = []

    async def count(stream: Any) -> None:
        async for event in stream.events():
            if event.value == b"-1":
                del table[event.key]
            else:
                table[event.key] += 1
            collected.append(seen(event))

    app.agent(raw_topic(app, topic))(count)
    return table, collected


async def arrived(app: Any, collected: list[Any], number: int) -> None:
    """Wait until `number` events were processed."""
    await until(
        lambda: len(collected) >= number,
        app=app,
        what=lambda: f"{number} events, {len(collected)} came",
    )


async def test_a_table_is_recovered_from_its_changelog(apps: Apps, name: str) -> None:
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        await send_numbers(producer, name, range(100))
        for lives in (1, 2, 3):
            app = apps.new()
            table, collected = counting(app, name)
            async with running(app):
                await send_numbers(producer, name, range(100, 110))
                expected = 110 if lives == 1 else 10
                await arrived(app, collected, expected)
                wanted = {b"k%d" % number: 10 + lives for number in range(KEYS)}
                assert dict(table.items()) == wanted


async def test_a_deleted_key_stays_deleted(apps: Apps, name: str) -> None:
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        await send_numbers(producer, name, range(KEYS))
        await producer.send_and_wait(name, b"k3", b"-1", None, None, None)
        app = apps.new()
        table, collected = counting(app, name)
        async with running(app):
            await arrived(app, collected, KEYS + 1)
            assert b"k3" not in table
        app = apps.new()
        table, collected = counting(app, name)
        async with running(app):
            await producer.send_and_wait(name, b"k4", b"1", None, None, None)
            await arrived(app, collected, 1)
            assert dict(table.items()) == {
                b"k%d" % number: 1 + (number == 4) for number in range(KEYS) if number != 3
            }


def counting_by_the_hour(app: Any, topic: str) -> list[int]:
    """Give `app` an agent that counts the events of an hour; return what it counted."""
    table = app.Table("windowed", default=int, key_type=str, partitions=3).tumbling(
        timedelta(hours=1), expires=timedelta(hours=3)
    )
    counted: list[int] = []

    async def count(stream: Any) -> None:
        async for _ in stream.events():
            table["all"] += 1
            counted.append(table["all"].value())

    app.agent(raw_topic(app, topic, internal=False))(count)
    return counted


async def test_a_windowed_table_is_recovered(apps: Apps, name: str) -> None:
    """Its windows are the messages' own time, which the transport must carry."""
    hour = 1_600_000_000.0
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        for expected in ([1, 2, 3, 4, 5, 1], [6, 7, 8, 9, 10, 2]):
            app = apps.new()
            counted = counting_by_the_hour(app, name)
            async with running(app):
                for at in (*[hour] * 5, hour + 3600):
                    await producer.send_and_wait(name, b"k", b"v", 0, at, None)
                await arrived(app, counted, 6)
            assert counted == expected


async def test_a_recovery_that_fails_ends_the_worker(apps: Apps, name: str) -> None:
    """Faust logs the error and waits for ever, alive and idle."""

    def with_table(app: Any) -> list[Any]:
        # Bytes are written as they are, and read back as JSON: Faust's defaults.
        table = app.Table("refused", default=int, partitions=3)
        collected: list[Any] = []

        async def count(stream: Any) -> None:
            async for event in stream.events():
                table[event.key] += 1
                collected.append(seen(event))

        app.agent(raw_topic(app, name))(count)
        return collected

    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        await send_numbers(producer, name, range(10))
    app = apps.new()
    collected = with_table(app)
    async with running(app):
        await arrived(app, collected, 10)
    app = apps.new()
    with_table(app)
    starting = asyncio.create_task(app.start())
    try:
        await until(lambda: bool(app.crashed), what=lambda: "the worker's end")
    finally:
        async with asyncio.timeout(60):
            await app.stop()
            await asyncio.gather(starting, return_exceptions=True)
    assert "refused" in str(app.crash_reason), "it names the table"
