"""Workers of one Faust app share its partitions: joining, leaving, busy, interrupted and cut off.

How they are killed and frozen is in test_transport_tables.py.
"""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from faust.types import TP

from streams.transport import Connection, GroupView, look
from streams.transport.group import Group
from tests.fixtures.echoes import (
    STEADY,
    echo,
    lines,
    owned_by,
    send,
    values,
)
from tests.fixtures.services import BrokerServer
from tests.fixtures.wire import Wire
from tests.fixtures.workers import WorkerProcess, eventually, eventually_async


@pytest.fixture
def wire(broker: BrokerServer) -> Iterator[Wire]:
    """A connection to the server that can be stalled."""
    with Wire(urlsplit(broker.url).port or 0) as made:
        yield made


async def shared_by(
    connection: Connection, app: Any, name: str, *workers: WorkerProcess, partitions: int = 4
) -> None:
    """Wait until each of the workers owns partitions and has processed something of its own."""
    await owned_by(connection, name, *workers)
    mark = await send(app, name, range(-12, 0), partitions=partitions)
    eventually(
        lambda: all(any(line["offset"] in mark for line in lines(each)) for each in workers),
        within_s=60,
        what="all at work",
    )


def processed(*workers: WorkerProcess, numbers: range) -> None:
    """Wait until the workers have processed all numbers."""
    eventually(
        lambda: set(numbers) <= set(values(*workers)),
        within_s=60,
        what=f"{numbers} by {len(workers)} workers",
    )


def in_order(*workers: WorkerProcess) -> None:
    """Assert that the first time each number was processed follows the order of its key."""
    by_key: defaultdict[str, list[int]] = defaultdict(list)
    for line in lines(*workers):
        if line["value"].isdigit() and int(line["value"]) not in by_key[line["key"]]:
            by_key[line["key"]].append(int(line["value"]))
    for key, seen in by_key.items():
        assert seen == sorted(seen), f"order of {key}"


def owners(view: GroupView | None) -> tuple[int, str]:
    """Return the generation and who owns partitions in it."""
    assert view is not None
    return view.generation, view.owner


def busy(*workers: WorkerProcess) -> bool:
    """Tell whether a worker has come to the end of the event that keeps its loop busy."""
    return any(line["value"] == "block" for line in lines(*workers))


def partitions_of(worker: WorkerProcess, numbers: range) -> set[int]:
    """Return the partitions of the numbers that a worker processed."""
    told = lines(worker)
    return {each["partition"] for each in told if each["value"] in map(str, numbers)}


async def test_workers_share_partitions_come_and_go(
    broker: BrokerServer, connection: Connection, app: Any, name: str
) -> None:
    # With standbys to place, Faust's assignor fills workers up instead of evening them out.
    alone = ("standbys=0",)
    await send(app, name, range(60))
    with echo(broker.url, name, *alone) as first:
        processed(first, numbers=range(60))
        with echo(broker.url, name, *alone) as second, echo(broker.url, name, *alone) as third:
            everyone = (first, second, third)
            await shared_by(connection, app, name, *everyone)
            await send(app, name, range(60, 160))
            processed(*everyone, numbers=range(160))
            shares = [partitions_of(worker, range(60, 160)) for worker in everyone]
            assert sorted(map(len, shares)) == [1, 1, 2], "evenly, and each partition once"
            before = await look(connection, name)
            await app.producer.send_and_wait(name, b"k0", b"block", None, None, None)
            eventually(lambda: busy(*everyone), within_s=60, what="the end of its work")
            assert owners(await look(connection, name)) == owners(before), "a busy loop is alive"
            assert first.stop() == 0, "the leader leaves"
            await send(app, name, range(160, 260))
            processed(*everyone, numbers=range(260))
            assert second.stop() == 0
            await send(app, name, range(260, 300))
            processed(*everyone, numbers=range(300))
            assert partitions_of(third, range(260, 300)) == {0, 1, 2, 3}
            assert third.stop() == 0
            assert sorted(values(*everyone)) == list(range(300)), "each event once"
            in_order(*everyone)


async def test_a_worker_cut_off_stops_before_its_successor_starts(
    broker: BrokerServer, connection: Connection, app: Any, name: str, wire: Wire
) -> None:
    await app.producer.create_topic(name, 1, 1)
    through = f"nats://127.0.0.1:{wire.port}"
    with echo(through, name, "pause=0.03", partitions=1) as former:
        await shared_by(connection, app, name, former, partitions=1)
        before = owners(await look(connection, name))
        with echo(broker.url, name, partitions=1) as heir:

            async def joined() -> bool:
                return owners(await look(connection, name))[0] > before[0]

            await eventually_async(joined, within_s=60, what="a generation with the heir")
            await send(app, name, range(300), partitions=1)
            eventually(lambda: len(values(former)) > 3, within_s=60, what="it is at it")
            wire.stall()
            await send(app, name, range(300, 312), partitions=1)  # the heir has work for certain
            processed(former, heir, numbers=range(312))
            stopped_at, started_at = lines(former)[-1]["at"], lines(heir)[0]["at"]
            assert stopped_at < started_at, "two agents at once"
            in_order(former, heir)
            wire.release()
            assert former.process.wait(timeout=60) != 0
            assigned = former.errors.read_text().count("Executing _on_partitions_assigned")
            assert assigned == 1, "one that stands by disturbs nobody"
            assert heir.stop() == 0


async def test_a_short_interruption_costs_no_ownership(
    connection: Connection, app: Any, name: str, wire: Wire
) -> None:
    with echo(f"nats://127.0.0.1:{wire.port}", name, STEADY) as worker:
        await send(app, name, range(20))
        processed(worker, numbers=range(20))
        before = await look(connection, name)
        wire.cut()
        await send(app, name, range(20, 40))
        processed(worker, numbers=range(40))
        assert owners(await look(connection, name)) == owners(before)
        assert worker.stop() == 0
        assert sorted(values(worker)) == list(range(40)), "each event once"


async def test_a_former_owner_is_fenced(connection: Connection, name: str) -> None:
    tp, second_tp = TP(name, 0), TP(name, 1)
    former, heir = (Group(connection, name, replicas=1) for _ in range(2))
    await former.ensure()
    assert await former.adopt([tp, second_tp], 1)
    assert await former.commit({tp: 7, second_tp: 3}) is not None
    assert await heir.adopt([tp], 2)
    assert heir.committed(tp) == 7
    assert await former.commit({tp: 9}) is None, "fenced"
    assert await former.commit({tp: 9, second_tp: 4}) is None, "all or nothing"
    assert await former.commit({second_tp: 4}) is not None, "still its own"
    assert await heir.commit({tp: 8}) is not None
    assert not await former.adopt([tp], 1), "an older generation takes nothing back"
    assert await heir.commit({tp: 9}) is not None
    assert await former.adopt([tp], 3)
    assert former.committed(tp) == 9
