"""Tables on JetStream are exact: after any end of a worker they hold what was committed, no more.

Message number n is the (n // KEYS + 1)th of its key. So whatever is killed, frozen or moved, every
count that a worker ever tells of it must be that one: one more, and an event counted twice; one
less, and an event was lost.
"""

import json
import signal
from typing import Any

from streams.transport import Connection, look, names
from tests.fixtures.echo_worker import WINDOW_S
from tests.fixtures.echoes import (
    echo,
    lines,
    owned_by,
    send,
    values,
)
from tests.fixtures.services import BrokerServer
from tests.fixtures.workers import WorkerProcess, eventually, eventually_async

KEYS = 12


def processed(*workers: WorkerProcess, numbers: range) -> None:
    """Wait until the workers have processed all numbers."""
    eventually(
        lambda: set(numbers) <= set(values(*workers)),
        within_s=90,
        what=f"{numbers} by {len(workers)} workers",
    )


def assert_exact(*workers: WorkerProcess, keys: int = KEYS) -> None:
    """Every count that was ever told is the number of events of its key until then."""
    for line in lines(*workers):
        assert line["count"] == int(line["value"]) // keys + 1, line


async def changelog(connection: Connection, name: str) -> dict[str, int]:
    """What the table's changelog holds of each key."""
    stream = names.group_stream(name)
    root = names.changelog_root(name, f"{name}-counts-changelog")
    info = await connection.jetstream.stream_info(stream, subjects_filter=f"{root}.>")
    found = {}
    for subject in info.state.subjects or {}:
        stored = await connection.jetstream.get_last_msg(stream, subject)
        key = names.decode_key(stored.headers)
        found[json.loads(key or b"")] = json.loads(stored.data or b"")
    return found


async def test_a_table_is_exact_after_kills(
    broker: BrokerServer, connection: Connection, app: Any, name: str
) -> None:
    slowly = ("table", "pause=0.002")
    await app.producer.create_topic(name, 4, 1)
    with echo(broker.url, name, *slowly) as one, echo(broker.url, name, *slowly) as two:
        await owned_by(connection, name, one, two)
        await send(app, name, range(1200))
        processed(one, two, numbers=range(60))
        one.kill()
        with echo(broker.url, name, *slowly) as three:
            await owned_by(connection, name, two, three)
            await send(app, name, range(1200, 1800))
            eventually(lambda: values(three), within_s=60, what="the third is at it")
            two.kill()
            processed(one, two, three, numbers=range(1800))
            assert_exact(one, two, three)
            for each in (one, two, three):
                assert len(values(each)) == len(set(values(each))), "nothing twice in one worker"
            assert three.stop() == 0
            assert await changelog(connection, name) == {f"k{n}": 150 for n in range(KEYS)}


async def test_a_frozen_worker_changes_no_table(
    broker: BrokerServer, connection: Connection, app: Any, name: str
) -> None:
    slowly = ("table", "pause=0.005")
    await app.producer.create_topic(name, 4, 1)
    with echo(broker.url, name, *slowly) as former, echo(broker.url, name, *slowly) as heir:
        await owned_by(connection, name, former, heir)
        shared = await look(connection, name)
        await send(app, name, range(600))
        eventually(lambda: len(values(former)) > 20, within_s=60, what="it is at it")
        former.signal(signal.SIGSTOP)

        async def taken_over() -> bool:
            view = await look(connection, name)
            return bool(view and shared and view.generation > shared.generation)

        # Even where it had finished all before it froze.
        await eventually_async(taken_over, within_s=60, what="a generation without it")
        processed(former, heir, numbers=range(600))
        former.signal(signal.SIGCONT)
        assert former.process.wait(timeout=60) != 0
        assert "ownership passed to worker" in former.errors.read_text()
        assert_exact(former, heir)
        assert heir.stop() == 0
        assert await changelog(connection, name) == {f"k{n}": 50 for n in range(KEYS)}
    with echo(broker.url, name, "table") as successor:
        await send(app, name, range(600, 660))
        processed(successor, numbers=range(600, 660))
        assert_exact(successor)
        assert successor.stop() == 0


async def test_an_unfinished_event_leaves_no_trace_in_a_table(
    broker: BrokerServer, connection: Connection, app: Any, name: str
) -> None:
    # Two agents, so that an event of each partition is in hand, its table changed, when one moves.
    at_both = ("table", "concurrency=2")
    with echo(broker.url, name, *at_both, partitions=2) as stuck:
        await send(app, name, range(24), partitions=2)
        processed(stuck, numbers=range(24))
        for partition in (0, 1):
            key = b"hung%d" % partition
            await app.producer.send_and_wait(name, key, b"hang", partition, None, None)
        patient = {"PATIENT": "1"}
        with echo(broker.url, name, "table", partitions=2, env=patient) as other:
            await owned_by(connection, name, stuck, other)
            await send(app, name, range(24, 48), partitions=2)
            processed(stuck, other, numbers=range(48))
            for line in lines(stuck, other):
                expected = 1 if line["value"] == "hang" else int(line["value"]) // KEYS + 1
                assert line["count"] == expected, line
            hung = [
                [x["key"] for x in lines(each) if x["value"] == "hang"] for each in (stuck, other)
            ]
            assert sorted(map(len, hung)) == [1, 1], "read again where its partition is now"
            assert (stuck.stop(), other.stop()) == (0, 0)


async def test_more_keys_than_a_batch_holds(
    broker: BrokerServer, connection: Connection, app: Any, name: str
) -> None:
    keys = 1200
    await send(app, name, range(keys), keys=keys, partitions=2)
    rarely = ("table", "commit=60")
    with echo(broker.url, name, *rarely, partitions=2) as worker:
        processed(worker, numbers=range(keys))
        assert_exact(worker, keys=keys)
        worker.kill()
    with echo(broker.url, name, *rarely, partitions=2) as worker:
        await send(app, name, range(keys, 2 * keys), keys=keys, partitions=2)
        processed(worker, numbers=range(keys, 2 * keys))
        assert_exact(worker, keys=keys)
        assert worker.stop() == 0
    assert await changelog(connection, name) == {f"k{n}": 2 for n in range(keys)}


async def test_a_windowed_table_recovers_and_expires(
    broker: BrokerServer, connection: Connection, app: Any, name: str
) -> None:
    await send(app, name, range(120))
    with echo(broker.url, name, "windows") as worker:
        processed(worker, numbers=range(120))
        assert_exact(worker)
        worker.kill()
    await send(app, name, range(120, 180))
    with echo(broker.url, name, "windows") as worker:
        processed(worker, numbers=range(120, 180))
        assert_exact(worker)
        assert worker.stop() == 0
    subject = f"{names.changelog_root(name, f'{name}-counts-changelog')}.>"
    stored = await connection.jetstream.get_last_msg(names.group_stream(name), subject)
    lifetime = (stored.headers or {})["Nats-TTL"]
    assert lifetime == f"{3 * WINDOW_S}s", "what expires it, and two windows"
