"""A broker that is killed and started again: nothing lost, nothing twice, nothing stuck."""

import asyncio
from itertools import count
from typing import Any

from tests.conformance.apps import Apps, running, send_numbers, until, values
from tests.conformance.broker import Broker
from tests.conformance.test_tables import counting

RECOVERY_DEADLINE_S = 90.0


async def restart(broker: Broker) -> None:
    """Kill the broker and start it again, the apps running meanwhile."""
    await asyncio.to_thread(broker.kill)
    await asyncio.to_thread(broker.start)


async def test_readers_come_back_and_read_on(apps: Apps, broker: Broker, name: str) -> None:
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        await send_numbers(producer, name, range(60))
        async with apps.reading(name) as reading:
            await reading.until(60)
            await restart(broker)
            for first in (60, 90):  # at once, and when all is quiet again
                await send_numbers(producer, name, range(first, first + 30))
                await reading.until(first + 30, within_s=RECOVERY_DEADLINE_S)
            for partition in range(3):
                mine = values(m for m in reading.seen if m.partition == partition)
                assert mine == sorted(mine)
            assert sorted(values(reading.seen)) == list(range(120))
        async with apps.reading(name) as reading:
            await send_numbers(producer, name, [120])
            assert values(await reading.until(1)) == [120], "the offsets were committed"


async def test_a_flush_through_an_outage_ends_and_repeats_nothing(
    apps: Apps, broker: Broker, name: str
) -> None:
    sent: list[Any] = []
    async with apps.producing() as producer:
        await producer.create_topic(name, 1, 1)

        async def keep_sending() -> None:
            for number in count():
                sent.append(await producer.send(name, b"k", b"%d" % number, 0, None, None))
                if number % 20 == 0:
                    await asyncio.sleep(0.002)

        task = asyncio.create_task(keep_sending())
        await until(lambda: len(sent) > 200, what=lambda: "200 sent")
        await restart(broker)
        reached = len(sent) + 200
        await until(lambda: len(sent) > reached, what=lambda: "200 more sent")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        async with asyncio.timeout(RECOVERY_DEADLINE_S):
            await producer.flush()
        offsets = [future.result().offset for future in sent]
    assert offsets == sorted(set(offsets))
    async with apps.reading(name) as reading:
        stored = values(await reading.until(len(sent)))
    assert stored == list(range(len(stored))), "in order, each once"
    assert len(stored) - len(sent) in (0, 1), "the last may have left as the sender was stopped"


async def test_a_table_counts_through_an_outage(apps: Apps, broker: Broker, name: str) -> None:
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        app = apps.new()
        table, collected = counting(app, name)
        async with running(app):
            await send_numbers(producer, name, range(50))
            await until(lambda: len(collected) >= 50, app=app, what=lambda: "50 counted")
            await restart(broker)
            await send_numbers(producer, name, range(50, 100))
            await until(
                lambda: len(collected) >= 100,
                app=app,
                within_s=RECOVERY_DEADLINE_S,
                what=lambda: f"100, {len(collected)} counted",
            )
            expected = {b"k%d" % number: 10 for number in range(10)}
            assert dict(table.items()) == expected
        app = apps.new()
        table, collected = counting(app, name)
        async with running(app):
            await producer.send_and_wait(name, b"new", b"1", None, None, None)
            await until(lambda: bool(collected), app=app, what=lambda: "the next one counted")
            assert dict(table.items()) == {**expected, b"new": 1}
