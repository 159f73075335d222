"""The whole path as it is: a committed payment change until its row is in the hypertable."""

import time
from typing import LiteralString

import psycopg

from tests.bench import baselines
from tests.bench.frame import BenchError, Options, Report, percentile
from tests.bench.ground import Ground, ground, query
from tests.bench.workload import PAYMENTS_PER_COMMIT, WRITERS, Steady, Workload
from tests.fixtures.services import Server

NAME = "pipeline"
SHORT_BACKLOG_CHANGES = 4_000
FULL_BACKLOG_CHANGES = 100_000
GROWTH = 3
RATES_PER_S = (200, 1000)
SHORT_STEADY_S = 4.0
FULL_STEADY_S = 60.0
SETTLING_S = 2.0
COMMIT_PROBES = 30
LEAST_LOAD_SHARE = 0.95
ARRIVAL_TIMEOUT_S = 600.0

_COMMITS: LiteralString = """
SELECT at, count(*) FROM (
    SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 AS at
    FROM raw.payment_analytics) AS written
WHERE at > %s GROUP BY at ORDER BY at
"""

METHOD = """\
Real PostgreSQL (ledger, analytics), NATS JetStream with a sync before each acknowledgement,
Debezium and Faust as the product starts them, all on this machine, clients included. Backlog:
{backlog} payment changes in database transactions of {per_commit}, written with triggers and
synchronous commit off while nothing reads; then each reader drains the same backlog alone, from its
own slot, in the order native, bare engine, pipeline. A drain's clock runs from its first result to
its last: start-up is not counted, just-in-time compilation is. Then worker and capture are started
anew on a backlog of {larger}; cost_growth is its time per change over that of the first. native is
CREATE SUBSCRIPTION of the same table to a second cluster, timed by polling it every millisecond;
bare engine is Debezium with the product's settings less boundaries and heartbeats and a handler
that only counts, timed by its batches; pipeline is timed by the commit stamps of the hypertable's
rows (pg_xact_commit_timestamp). Latency: {rates} changes a second, {steady:g} s of each, by
{writers} writers, one database transaction each, all triggers on, the first {settling:g} s left
out; from the moment the writing client has its commit acknowledged to the commit stamp of the row
in the hypertable, same clock. PostgreSQL takes that stamp just before it flushes the commit, so add
sink_commit_p50_ms, measured by {probes} commits of one row on the same cluster, for the moment the
row is visible."""


def run(options: Options) -> Report:
    """Measure the path from a committed payment change to its row in the hypertable."""
    backlog = SHORT_BACKLOG_CHANGES if options.short else FULL_BACKLOG_CHANGES
    steady_s = SHORT_STEADY_S if options.short else FULL_STEADY_S
    with ground(options) as services:
        figures, base = _measure(services, options, backlog, steady_s)
    method = " ".join(METHOD.split()).format(
        backlog=backlog,
        larger=GROWTH * backlog,
        per_commit=PAYMENTS_PER_COMMIT,
        rates=" and ".join(map(str, RATES_PER_S)),
        steady=steady_s,
        writers=WRITERS,
        settling=SETTLING_S,
        probes=COMMIT_PROBES,
    )
    for per_s in RATES_PER_S:
        written = figures[f"latency_load_per_s_at_{per_s}"]
        if written < per_s * LEAST_LOAD_SHARE:
            method += f" NOT AS INTENDED: no more than {written:.0f} of {per_s}/s were written."
    return Report(
        bench=NAME,
        machine=options.machine,
        seed=options.seed,
        method=method,
        figures=figures,
        baselines=base,
        ratios={
            "drain_vs_native": figures["drain_per_s"] / base["native_drain_per_s"],
            "drain_vs_bare_engine": figures["drain_per_s"] / base["bare_engine_drain_per_s"],
            "cost_growth": figures["drain_per_s"] / figures["larger_drain_per_s"],
        },
    )


def _measure(
    services: Ground, options: Options, backlog: int, steady_s: float
) -> tuple[dict[str, float], dict[str, float]]:
    workload = Workload(services.ledger_url, options.seed)
    workload.add_merchants()
    baselines.prepare(services)
    options.progress(f"writing a backlog of {backlog} changes")
    payments = workload.backlog(backlog)
    options.progress("draining it by native logical replication")
    native = baselines.native_drain_per_s(services, payments)
    options.progress("draining it by the bare Debezium engine")
    bare = baselines.bare_engine_drain(services, backlog).per_s
    rooms = services.warehouse(), services.capture()
    figures = {"backlog_changes": float(backlog)}
    figures["drain_per_s"], figures["capture_start_to_first_row_s"] = _drain(
        services, options, rooms, backlog
    )
    for room in reversed(rooms):
        room.stop()
    options.progress(f"writing a backlog of {GROWTH * backlog} changes")
    workload.backlog(GROWTH * backlog)
    figures["larger_drain_per_s"], _ = _drain(services, options, rooms, GROWTH * backlog)
    for per_s in RATES_PER_S:
        options.progress(f"{per_s} changes a second for {steady_s:g} s")
        rows_before = _rows(services)
        steady = workload.steady(per_s=per_s, duration_s=steady_s)
        latencies = _latencies_ms(services, steady, rows_before)
        figures[f"latency_p50_ms_at_{per_s}"] = percentile(latencies, 0.50)
        figures[f"latency_p99_ms_at_{per_s}"] = percentile(latencies, 0.99)
        figures[f"latency_load_per_s_at_{per_s}"] = steady.written_per_s
    figures["sink_commit_p50_ms"] = percentile(_commit_times_ms(services), 0.50)
    return figures, {"native_drain_per_s": native, "bare_engine_drain_per_s": bare}


def _drain(
    services: Ground, options: Options, rooms: tuple[Server, Server], changes: int
) -> tuple[float, float]:
    """Start worker and capture on a backlog; return rows a second, and seconds to the first row."""
    options.progress(f"starting the Faust worker, then capture: draining {changes} changes")
    rows_before = _rows(services)
    warehouse, capture = rooms
    # Capture says that it is ready only when the backlog is done, which has its own deadline here.
    capture.probe = lambda: True
    warehouse.start()
    begun = time.time()
    capture.start()
    _wait_for_rows(services, rows_before + changes)
    drain, first_row_at = _drain_per_s(services, begun)
    return drain, first_row_at - begun


def _wait_for_rows(services: Ground, rows: int) -> None:
    deadline = time.monotonic() + ARRIVAL_TIMEOUT_S
    while (arrived := _rows(services)) < rows:
        if time.monotonic() > deadline:
            raise BenchError(f"{arrived} of {rows} rows arrived in the hypertable")
        time.sleep(0.1)
    if arrived > rows:
        raise BenchError(f"{arrived} rows arrived for {rows} changes")


def _rows(services: Ground) -> int:
    return int(query(services.analytics_url, "SELECT count(*) FROM raw.payment_analytics")[0][0])


def _drain_per_s(services: Ground, begun: float) -> tuple[float, float]:
    """Return rows a second since `begun` and the Unix time of the first commit, by its stamps."""
    commits = query(services.analytics_url, _COMMITS, begun)
    if len(commits) < 2:
        raise BenchError("the whole backlog arrived in one commit: too small to measure")
    (first_at, first_rows), (last_at, _) = commits[0], commits[-1]
    rows = sum(count for _, count in commits)
    return (rows - first_rows) / (last_at - first_at), first_at


def _latencies_ms(services: Ground, steady: Steady, rows_before: int) -> list[float]:
    """Return how long each change of a steady load took to the hypertable, once all are there."""
    acknowledged = steady.acknowledged
    _wait_for_rows(services, rows_before + len(acknowledged))
    settled = min(acknowledged.values()) + SETTLING_S
    arrived = query(
        services.analytics_url,
        "SELECT payment_id, status, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8"
        " FROM raw.payment_analytics",
    )
    latencies = [
        (at - acknowledged[payment, status]) * 1000
        for payment, status, at in arrived
        if acknowledged.get((payment, status), 0.0) >= settled
    ]
    expected = sum(1 for at in acknowledged.values() if at >= settled)
    if len(latencies) != expected:
        raise BenchError(f"{len(latencies)} of {expected} measured changes found in the hypertable")
    return latencies


def _commit_times_ms(services: Ground) -> list[float]:
    """Time commits of one row on the sink's cluster: what the stamp leaves out."""
    times = []
    with psycopg.connect(services.analytics_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE bench_commits (at timestamptz)")
        for _ in range(COMMIT_PROBES):
            connection.execute("BEGIN")
            connection.execute("INSERT INTO bench_commits VALUES (now())")
            begun = time.perf_counter()
            connection.execute("COMMIT")
            times.append((time.perf_counter() - begun) * 1000)
    return times
