"""The whole path as it is: a committed payment change until its row is in the hypertable."""

import time
from collections.abc import Callable

import psycopg

from tests.bench import baselines
from tests.bench.frame import BenchError, Options, Report, percentile
from tests.bench.ground import Ground, ground, query
from tests.bench.workload import PAYMENTS_PER_COMMIT, WRITERS, Steady, Workload

NAME = "pipeline"
SHORT_BACKLOG_CHANGES = 8_000
FULL_BACKLOG_CHANGES = 100_000
RATE_PER_S = 200
# A short run gives the steady load what is left of its minute, between these.
SHORT_STEADY_S = (5.0, 10.0)
SHORT_BUDGET_S = 52.0
FULL_STEADY_S = 60.0
SETTLING_S = 2.0
COMMIT_PROBES = 30
LEAST_LOAD_SHARE = 0.95
ARRIVAL_TIMEOUT_S = 600.0

METHOD = """\
Real PostgreSQL (ledger, analytics), NATS JetStream with a sync before each acknowledgement,
Debezium and Faust as the product starts them, all on this machine, clients included. Backlog:
{backlog} payment changes in database transactions of {per_commit}, written with triggers and
synchronous commit off while nothing reads; then each reader drains the same backlog alone, from its
own slot, in the order native, bare engine, pipeline. A drain's clock runs from its first result to
its last: start-up is not counted, just-in-time compilation is. native is CREATE SUBSCRIPTION of the
same table to a second cluster, timed by polling it every millisecond; bare engine is Debezium with
the product's settings less boundaries and heartbeats and a handler that only counts, timed by its
batches; pipeline is timed by the commit stamps of the hypertable's rows (pg_xact_commit_timestamp).
Latency: {rate} changes a second for {steady:g} s by {writers} writers, one database transaction
each, all triggers on, the first {settling:g} s left out; from the moment the writing client has its
commit acknowledged to the commit stamp of the row in the hypertable, same clock. PostgreSQL takes
that stamp just before it flushes the commit, so add sink_commit_p50_ms, measured by {probes}
commits of one row on the same cluster, for the moment the row is visible."""


def run(options: Options) -> Report:
    """Measure the path from a committed payment change to its row in the hypertable."""
    backlog = SHORT_BACKLOG_CHANGES if options.short else FULL_BACKLOG_CHANGES
    begun = time.monotonic()

    def steady_s() -> float:
        left = SHORT_BUDGET_S - (time.monotonic() - begun)
        return (
            min(max(left, SHORT_STEADY_S[0]), SHORT_STEADY_S[1]) if options.short else FULL_STEADY_S
        )

    with ground(options) as services:
        figures, base = _measure(services, options, backlog, steady_s)
    method = " ".join(METHOD.split()).format(
        backlog=backlog,
        per_commit=PAYMENTS_PER_COMMIT,
        rate=RATE_PER_S,
        writers=WRITERS,
        steady=figures["latency_load_s"],
        settling=SETTLING_S,
        probes=COMMIT_PROBES,
    )
    written = figures["latency_load_per_s"]
    if written < RATE_PER_S * LEAST_LOAD_SHARE:
        method += f" NOT AS INTENDED: the machine was too busy to write more than {written:.0f}/s."
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
        },
    )


def _measure(
    services: Ground, options: Options, backlog: int, choose_steady_s: Callable[[], float]
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

    options.progress("starting the Faust worker, then capture: draining it by the pipeline")
    services.warehouse().start()
    begun = time.time()
    services.capture().start()
    _wait_for_rows(services, backlog)
    drain, first_row_at = _drain_per_s(services)

    steady_s = round(choose_steady_s(), 1)
    options.progress(f"{RATE_PER_S} changes a second for {steady_s:g} s")
    rows_before = _rows(services)
    steady = workload.steady(per_s=RATE_PER_S, duration_s=steady_s)
    latencies = _latencies_ms(services, steady, rows_before)
    figures = {
        "drain_per_s": drain,
        "latency_p50_ms_at_200": percentile(latencies, 0.50),
        "latency_p99_ms_at_200": percentile(latencies, 0.99),
        "latency_load_per_s": steady.written_per_s,
        "latency_load_s": steady_s,
        "backlog_changes": float(backlog),
        "capture_start_to_first_row_s": first_row_at - begun,
        "sink_commit_p50_ms": percentile(_commit_times_ms(services), 0.50),
    }
    return figures, {"native_drain_per_s": native, "bare_engine_drain_per_s": bare}


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


def _drain_per_s(services: Ground) -> tuple[float, float]:
    """Return rows a second and the Unix time of the first commit, by the sink's stamps."""
    commits = query(
        services.analytics_url,
        "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 AS at, count(*)"
        " FROM raw.payment_analytics GROUP BY at ORDER BY at",
    )
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
