"""Capture alone: how fast it drains a backlog, and how long a commit takes to the stream."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import nats
import psutil
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from ingest.contract import HEADER_COMMITTED_AT, STREAM
from tests.bench import baselines
from tests.bench.frame import BenchError, Options, Report, percentile
from tests.bench.ground import Ground, ground
from tests.bench.workload import PAYMENTS_PER_COMMIT, Workload
from tests.fixtures.services import Server

NAME = "capture"
SHORT_BACKLOG_CHANGES = 12_000
FULL_BACKLOG_CHANGES = 200_000
SHORT_STEADY_S = 3.0
FULL_STEADY_S = 30.0
SETTLING_S = 1.0
# Changes a second, and changes in one database transaction.
LOADS = ((200, 1), (1000, 1), (5000, 10))
ACK_PROBES = 30
LEAST_LOAD_SHARE = 0.95
ARRIVAL_TIMEOUT_S = 300.0
_PAYMENTS = "ledger.payment.>"
_PROBES = "BENCH_PROBES"
_FETCH = 1000
_POLL_S = 0.02

METHOD = """\
Real PostgreSQL, NATS JetStream with a sync before each acknowledgement, and the capture process as
the product starts it, all on this machine, clients included. Backlog: {backlog} payment changes in
database transactions of {per_commit}, three in four updates with both images, written while
nothing reads; then each reader drains the same backlog alone, from its own slot, in the order
native, bare engine, capture. A drain's clock runs from its first result to its last: start-up is
not counted, just-in-time compilation is. native is CREATE SUBSCRIPTION of the same table to a
second cluster, timed by polling it every millisecond; bare engine is Debezium with the product's
settings less boundaries and heartbeats and a handler that only counts, timed by its batches;
capture is timed by JetStream's own stamps of the stored messages. CPU is the process's own, from
the first result to the last. Latency: {steady:g} s of each load, triggers off, synchronous commit
on, the first {settling:g} s left out; from PostgreSQL's commit stamp, which it takes just before it
flushes the commit, to JetStream's stamp of the stored message, same clock. JetStream stamps before
it syncs; publish_ack_p50_ms, measured by {probes} messages of 1 KiB on the same server, is the
whole of storing one. rss_mb is the greatest resident memory of the capture process in the run, in
millions of bytes."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """When one change was committed and stored, Unix seconds."""

    committed_at: float
    stored_at: float


def run(options: Options) -> Report:
    """Measure capture from the committed change to the stored message."""
    backlog = SHORT_BACKLOG_CHANGES if options.short else FULL_BACKLOG_CHANGES
    steady_s = SHORT_STEADY_S if options.short else FULL_STEADY_S
    with ground(options) as services:
        figures, base, notes = _measure(services, options, backlog, steady_s)
    method = " ".join(METHOD.split()).format(
        backlog=backlog,
        per_commit=PAYMENTS_PER_COMMIT,
        steady=steady_s,
        settling=SETTLING_S,
        probes=ACK_PROBES,
    )
    return Report(
        bench=NAME,
        machine=options.machine,
        seed=options.seed,
        method=" ".join((method, *notes)),
        figures=figures,
        baselines=base,
        ratios={
            "drain_vs_bare_engine": figures["drain_per_s"] / base["bare_engine_drain_per_s"],
            "drain_vs_native": figures["drain_per_s"] / base["native_drain_per_s"],
        },
    )


def _measure(
    services: Ground, options: Options, backlog: int, steady_s: float
) -> tuple[dict[str, float], dict[str, float], list[str]]:
    workload = Workload(services.ledger_url, options.seed)
    workload.add_merchants()
    baselines.prepare(services)
    options.progress(f"writing a backlog of {backlog} changes")
    payments = workload.backlog(backlog)
    options.progress("draining it by native logical replication")
    native = baselines.native_drain_per_s(services, payments)
    options.progress("draining it by the bare Debezium engine")
    bare = baselines.bare_engine_drain(services, backlog)
    options.progress("draining it by capture")
    capture = services.capture()
    figures = _drain(services, capture, backlog)
    figures["backlog_changes"] = float(backlog)
    notes, told = [], backlog
    for per_s, per_commit in LOADS:
        options.progress(f"{per_s} changes a second for {steady_s:g} s")
        cpu_s, began = _cpu_s(capture), time.monotonic()
        changes = workload.paced(per_s=per_s, duration_s=steady_s, per_commit=per_commit)
        _wait_for(services, told + changes)
        used = (_cpu_s(capture) - cpu_s) / (time.monotonic() - began)
        arrivals = _arrivals(services)[told:]
        moments = [arrival.committed_at for arrival in arrivals]
        written_per_s = changes / (max(moments) - min(moments))
        latencies = _latencies_ms(arrivals)
        told += changes
        figures[f"latency_p50_ms_at_{per_s}"] = percentile(latencies, 0.50)
        figures[f"latency_p99_ms_at_{per_s}"] = percentile(latencies, 0.99)
        figures[f"cpu_percent_at_{per_s}"] = 100 * used
        if written_per_s < per_s * LEAST_LOAD_SHARE:
            notes.append(
                f"NOT AS INTENDED: the machine was too busy to write more than {written_per_s:.0f} "
                f"of {per_s} changes a second."
            )
    figures["publish_ack_p50_ms"] = percentile(_publish_times_ms(services), 0.50)
    figures["rss_mb"] = _peak_bytes(capture) / 1e6
    return (
        figures,
        {
            "native_drain_per_s": native,
            "bare_engine_drain_per_s": bare.per_s,
            "bare_engine_drain_cpu_s": bare.cpu_s,
        },
        notes,
    )


def _drain(services: Ground, capture: Server, backlog: int) -> dict[str, float]:
    """Start capture and let it publish the backlog; returns rate and processor time."""
    # It says that it is ready only when the backlog is done, which has its own deadline here.
    capture.probe = lambda: True
    begun = time.time()
    capture.start()
    _wait_for(services, 1)
    cpu_s = _cpu_s(capture)
    _wait_for(services, backlog)
    cpu_s = _cpu_s(capture) - cpu_s
    stored = Counter(arrival.stored_at for arrival in _arrivals(services))
    first, last = min(stored), max(stored)
    if first == last:
        raise BenchError("the whole backlog was stored at one moment: too small to measure")
    return {
        "drain_per_s": (backlog - stored[first]) / (last - first),
        "drain_cpu_s": cpu_s,
        "start_to_first_event_s": first - begun,
    }


def _latencies_ms(arrivals: list[Arrival]) -> list[float]:
    settled = min(arrival.committed_at for arrival in arrivals) + SETTLING_S
    return [
        (arrival.stored_at - arrival.committed_at) * 1000
        for arrival in arrivals
        if arrival.committed_at >= settled
    ]


def _cpu_s(server: Server) -> float:
    used = psutil.Process(server.pid).cpu_times()
    return float(used.user + used.system)


def _peak_bytes(server: Server) -> int:
    for line in Path(f"/proc/{server.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise BenchError("the kernel does not tell the greatest memory of a process")


def _ask(services: Ground, work: Callable[[Any], Awaitable[Any]]) -> Any:
    """Run `work` with JetStream on a connection of its own; `BenchError` where it fails."""

    async def connected() -> Any:
        client = await nats.connect(services.nats_url, allow_reconnect=False)
        try:
            return await work(client.jetstream())
        finally:
            await client.close()

    try:
        return asyncio.run(asyncio.wait_for(connected(), ARRIVAL_TIMEOUT_S))
    except (NatsError, TimeoutError, OSError) as error:
        raise BenchError(f"JetStream does not answer: {error!r}") from error


def _wait_for(services: Ground, changes: int) -> None:
    """Wait until the stream holds so many payment changes."""

    async def wait(jetstream: Any) -> None:
        deadline = time.monotonic() + ARRIVAL_TIMEOUT_S
        while True:
            info = await jetstream.stream_info(STREAM, subjects_filter=_PAYMENTS)
            held = sum((info.state.subjects or {}).values())
            if held >= changes:
                return
            if time.monotonic() > deadline:
                raise BenchError(f"{held} of {changes} changes arrived on the stream")
            await asyncio.sleep(_POLL_S)

    _ask(services, wait)


def _arrivals(services: Ground) -> list[Arrival]:
    """Read the stamps of every payment change on the stream, in its order."""

    async def read(jetstream: Any) -> list[Arrival]:
        info = await jetstream.stream_info(STREAM, subjects_filter=_PAYMENTS)
        wanted = sum(info.state.subjects.values())
        reader = await jetstream.pull_subscribe(
            _PAYMENTS,
            stream=STREAM,
            config=ConsumerConfig(
                deliver_policy=DeliverPolicy.ALL, ack_policy=AckPolicy.NONE, headers_only=True
            ),
        )
        found: list[Arrival] = []
        while len(found) < wanted:
            for message in await reader.fetch(min(_FETCH, wanted - len(found)), timeout=10):
                committed = datetime.fromisoformat(message.headers[HEADER_COMMITTED_AT])
                found.append(Arrival(committed.timestamp(), message.metadata.timestamp.timestamp()))
        return found

    arrivals: list[Arrival] = _ask(services, read)
    return arrivals


def _publish_times_ms(services: Ground) -> list[float]:
    """Time single messages from publishing to acknowledgement, on a stream of their own."""

    async def publish(jetstream: Any) -> list[float]:
        await jetstream.add_stream(name=_PROBES, subjects=["bench.probe"])
        times = []
        for _ in range(ACK_PROBES):
            begun = time.perf_counter()
            await jetstream.publish("bench.probe", bytes(1024))
            times.append((time.perf_counter() - begun) * 1000)
        return times

    times: list[float] = _ask(services, publish)
    return times
