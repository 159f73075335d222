"""What one worker does: agents on our transport, and the warehouse processor, on a backlog."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final, LiteralString

import nats
import psycopg
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig
from psycopg import sql

from infra.stack.process import base_environment
from streams.contract import Table
from streams.transport import names
from tests.bench.frame import BenchError, Options, Report
from tests.bench.ground import Ground, ground, query
from tests.bench.streams_worker import BUFFER
from tests.fixtures import ledger_stream
from tests.fixtures.services import CHECKOUT

NAME = "streams"
TOPIC: Final = "bench"
PARTITIONS: Final = 4
KINDS: Final = ("trivial", "take", "table")
EVENT_BYTES: Final = 250
PULL: Final = 1000
TIMEOUT_S: Final = 180.0
POLL_S: Final = 0.2
TABLES: Final = (Table.PAYMENT_ANALYTICS, Table.LEDGER_ENTRIES, Table.LEDGER_POSTINGS)

METHOD = """\
Real NATS JetStream with a sync before each acknowledgement, real TimescaleDB, each worker a process
of its own, all on this machine. Agents: {events} events of {bytes} bytes with headers on a topic of
{partitions} partitions, shared by {workers} worker(s), each number of them for itself. They begin
together when the topic is filled; the first {buffer} events of each worker, some of which wait in
its memory by then, are not counted; the time is from the first that counts to the last of all.
take is of 1,000 within 0.1 s; table updates one of 1,000 keys for each event. raw_pull is nats-py
alone, one process, pulling the same events with two requests of 1,000 under way and acknowledging
nothing. Warehouse: {lives} payments' lives on the ledger's stream, each ten events (three states,
an entry, six postings) and ten rows in three hypertables, by the one worker that its order allows,
with the product's settings, timed by the commit stamps of the rows (pg_xact_commit_timestamp); copy
is one plain COPY a table of the same rows, from memory, into tables without index or chunk, with
their commit."""

_COMMITS: Final[LiteralString] = """
    SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 AS at, count(*) FROM (
        SELECT xmin FROM raw.payment_analytics UNION ALL SELECT xmin FROM raw.ledger_entries
        UNION ALL SELECT xmin FROM raw.ledger_postings) AS written
    GROUP BY at ORDER BY at
"""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is read, and by how many workers."""

    events: int
    lives: int
    workers: tuple[int, ...]


SHORT: Final = Size(12_000, 600, (1,))
FULL: Final = Size(100_000, 10_000, (1, 2, 4))


def run(options: Options) -> Report:
    """Measure events a second of workers beside a raw pull, and the warehouse beside COPY."""
    size = SHORT if options.short else FULL
    figures: dict[str, float] = {}
    with ground(options) as services:
        options.progress(f"publishing {size.events} events, and {size.lives} payments' lives")
        try:
            raw_pull = asyncio.run(_raw_pull(services, size))
            for kind, workers in product(KINDS, size.workers):
                options.progress(f"reading them by agents of {workers} workers: {kind}")
                name = kind if workers == 1 else f"{kind}_{workers}_workers"
                figures[f"{name}_per_s"] = asyncio.run(
                    _agents_per_s(services, kind, workers, size.events)
                )
        except TimeoutError as error:
            raise BenchError(f"not done within {TIMEOUT_S:g} s") from error
        options.progress("draining the lives into the warehouse")
        figures["warehouse_per_s"] = _warehouse_per_s(services, 10 * size.lives)
        options.progress("copying the same rows")
        copy = _copy_per_s(services)
    return Report(
        bench=NAME,
        machine=options.machine,
        seed=options.seed,
        method=" ".join(METHOD.split()).format(
            events=size.events,
            bytes=EVENT_BYTES,
            partitions=PARTITIONS,
            workers=", ".join(map(str, size.workers)),
            buffer=BUFFER,
            lives=size.lives,
        ),
        figures=figures,
        baselines={"raw_pull_per_s": raw_pull, "copy_per_s": copy},
        ratios={
            "trivial_vs_raw_pull": figures["trivial_per_s"] / raw_pull,
            "warehouse_vs_copy": figures["warehouse_per_s"] / copy,
        },
    )


async def _raw_pull(services: Ground, size: Size) -> float:
    """Publish the backlog of the agents and the ledger's; return the rate of a raw pull."""
    async with _connected(services) as client:
        await client.jetstream().add_stream(
            name=names.topic_stream(TOPIC),
            subjects=[names.topic_subjects(TOPIC)],
            allow_atomic=True,
            metadata={names.PARTITIONS_METADATA: str(PARTITIONS), names.COMPACTING_METADATA: "0"},
        )
        await ledger_stream.publish(client, ledger_stream.lives(0, size.lives))
        await ledger_stream.publish(client, _events(size.events))
        return await _raw_pull_per_s(client, size.events)


@asynccontextmanager
async def _connected(services: Ground) -> AsyncIterator[Client]:
    client = await nats.connect(services.nats_url)
    try:
        yield client
    finally:
        await client.close()


def _events(count: int) -> Iterator[ledger_stream.Message]:
    """The agents' backlog: the partitions in turn."""
    headers = {"Giovang-Event-Id": "0" * 25, "Giovang-Key": "mer_" + "0" * 26}
    for number in range(count):
        text = json.dumps({"number": number, "text": ""}).encode()
        payload = text[:-2] + b"x" * (EVENT_BYTES - len(text)) + text[-2:]
        subject = f"{names.topic_root(TOPIC)}.{number % PARTITIONS}"
        yield ledger_stream.Message(subject, headers, payload)


async def _raw_pull_per_s(client: Client, count: int) -> float:
    """Pull all events by a consumer in memory, with two requests under way, and look at none."""
    stream = names.topic_stream(TOPIC)
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, mem_storage=True)
    consumer = (await client.jetstream().add_consumer(stream, config)).name
    inbox = client.new_inbox()
    subscription = await client.subscribe(inbox)

    async def ask() -> None:
        await client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", b"%d" % PULL, reply=inbox
        )

    began, read = 0.0, 0
    async with asyncio.timeout(TIMEOUT_S):
        await ask()
        await ask()
        async for _ in subscription.messages:
            if not read:
                began = time.perf_counter()
            read += 1
            if read == count:
                break
            if read % PULL == 0:
                await ask()
    took_s = time.perf_counter() - began
    await subscription.unsubscribe()
    return (count - 1) / took_s


async def _agents_per_s(services: Ground, kind: str, workers: int, events: int) -> float:
    """Have so many workers share the partitions of an empty topic, then fill it and begin."""
    async with AsyncExitStack() as parts, asyncio.timeout(TIMEOUT_S):
        client = await parts.enter_async_context(_connected(services))
        await client.jetstream().purge_stream(names.topic_stream(TOPIC))
        running = [
            await parts.enter_async_context(_worker(services, kind, workers, number, events))
            for number in range(workers)
        ]
        await asyncio.gather(*(one.shared(PARTITIONS // workers) for one in running))
        await ledger_stream.publish(client, _events(events))
        for one in running:
            one.begin()
        told = await asyncio.gather(*(one.done() for one in running))
    took_s = max(one["ended_s"] for one in told) - min(one["began_s"] for one in told)
    return sum(one["events"] for one in told) / took_s


class Worker:
    """A worker process and what it says."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process = process
        self._log = log

    async def shared(self, partitions: int) -> None:
        """Wait until it has exactly so many partitions."""
        while (await self._said()).get("partitions") != partitions:
            continue

    def begin(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"begin\n")

    async def done(self) -> dict[str, float]:
        """Wait until all of its events are done."""
        while "ended_s" not in (words := await self._said()):
            continue
        return words

    async def _said(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise BenchError(f"a worker ended: {self._log.read_text()[-500:]}")
        words: dict[str, float] = json.loads(line)
        return words


@asynccontextmanager
async def _worker(
    services: Ground, kind: str, workers: int, number: int, events: int
) -> AsyncIterator[Worker]:
    app_id = f"bench-{kind}-{workers}"
    home = services.folder / f"{app_id}-{number}"
    home.mkdir()
    log = home / "log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.bench.streams_worker", kind, services.nats_url),
            *(app_id, TOPIC, str(PARTITIONS), str(events // PARTITIONS)),
            cwd=CHECKOUT,
            env=base_environment(home),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
        )
    try:
        yield Worker(process, log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _warehouse_per_s(services: Ground, rows: int) -> float:
    """Have the product's worker drain the ledger's stream, all of whose events are rows."""
    worker = services.warehouse()
    worker.start()
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        commits = query(services.analytics_url, _COMMITS)
        arrived = sum(count for _, count in commits)
        if arrived >= rows:
            break
        if time.monotonic() > deadline:
            raise BenchError(f"{arrived} of {rows} rows arrived in the warehouse")
        time.sleep(POLL_S)
    worker.stop()
    if arrived > rows or len(commits) < 2:
        raise BenchError(f"{arrived} rows of {rows} events in {len(commits)} commits")
    (first_at, first_rows), (last_at, _) = commits[0], commits[-1]
    return float((rows - first_rows) / (last_at - first_at))


def _copy_per_s(services: Ground) -> float:
    """Copy the rows that the warehouse has now into plain tables."""
    took_s, copied = 0.0, 0
    with psycopg.connect(services.analytics_url) as connection:
        for table in TABLES:
            schema, name = table.split(".")
            source, target = sql.Identifier(schema, name), sql.Identifier(f"bench_{name}")
            connection.execute(sql.SQL("CREATE TABLE {} (LIKE {})").format(target, source))
            with connection.cursor().copy(
                sql.SQL("COPY (SELECT * FROM {}) TO STDOUT").format(source)
            ) as outgoing:
                rows = b"".join(bytes(block) for block in outgoing)
            connection.commit()
            began = time.perf_counter()
            cursor = connection.cursor()
            with cursor.copy(sql.SQL("COPY {} FROM STDIN").format(target)) as incoming:
                incoming.write(rows)
            connection.commit()
            took_s += time.perf_counter() - began
            copied += cursor.rowcount
    return copied / took_s
