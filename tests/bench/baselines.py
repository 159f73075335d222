"""What the pipeline is compared with: PostgreSQL's own logical replication, and Debezium alone.

Both read the same backlog as the product, each from a replication slot of its own that was made
before the backlog was written, and each while nothing else runs.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from infra.stack.process import base_environment
from ingest.checkpoint import Done, offset_key, offset_value
from ingest.settings import IngestSettings
from tests.bench.frame import BenchError
from tests.bench.ground import Ground, query
from tests.bench.workload import STATUSES, payment_id
from tests.fixtures.services import CHECKOUT

PUBLICATION = "bench_payments"
NATIVE_SLOT = "bench_native"
NATIVE_DATABASE = "bench_native"
BARE_SLOT = "bench_bare"
DRAIN_TIMEOUT_S = 300.0
_CHANGES_SEEN = """
SELECT coalesce(sum(array_position(ARRAY['created', 'pending', 'confirming', 'failed'], status)), 0)
FROM payments
"""
_LAST_CHANGE_SEEN = "SELECT EXISTS (SELECT FROM payments WHERE id = %(id)s AND status = 'failed')"


def prepare(ground: Ground) -> None:
    """Make the publication, the subscriber's table and both slots; nothing flows yet."""
    query(ground.ledger_url, "CREATE PUBLICATION bench_payments FOR TABLE payments")
    _prepare_native(ground)
    _prepare_bare(ground)


def native_drain_per_s(ground: Ground, payments: range) -> float:
    """Let a subscription apply the backlog; returns changes a second, seen by polling.

    The clock runs from the first poll that sees rows, whose changes do not count, to the first that
    sees the last change; so connecting and starting do not count. (Commit stamps cannot serve here:
    a subscriber keeps those of the publisher.)
    """
    url = ground.analytics.superuser_url(NATIVE_DATABASE)
    query(url, "ALTER SUBSCRIPTION bench_native ENABLE")
    with psycopg.connect(url, autocommit=True) as subscriber:
        deadline = time.monotonic() + DRAIN_TIMEOUT_S
        _poll(subscriber, "SELECT EXISTS (SELECT FROM payments)", None, deadline)
        begun = time.monotonic()
        seen = subscriber.execute(_CHANGES_SEEN).fetchone()
        assert seen is not None, "an aggregate has a row"
        last = {"id": payment_id(payments[-1])}
        _poll(subscriber, _LAST_CHANGE_SEEN, last, deadline)
        seconds = time.monotonic() - begun
    query(url, "ALTER SUBSCRIPTION bench_native DISABLE")
    changes = len(payments) * len(STATUSES) - int(seen[0])
    if changes <= 0:
        raise BenchError("native replication was done before it was looked at: too small a backlog")
    return changes / seconds


def _poll(
    connection: psycopg.Connection[tuple[object, ...]],
    question: LiteralString,
    values: dict[str, str] | None,
    deadline: float,
) -> None:
    """Ask again and again, a millisecond apart, until the answer is true."""
    while connection.execute(question, values).fetchone() != (True,):
        if time.monotonic() > deadline:
            raise BenchError("native replication did not finish in time")
        time.sleep(0.001)


@dataclass(frozen=True, slots=True)
class BareDrain:
    """What Debezium alone took: changes a second, and the seconds of processor time for all."""

    per_s: float
    cpu_s: float


def bare_engine_drain(ground: Ground, changes: int) -> BareDrain:
    """Run Debezium with an empty handler over the backlog.

    The clock runs from the first batch handed over to the last, so starting Java does not count.
    """
    answer = subprocess.run(
        [sys.executable, "-m", "tests.bench.bare_engine", str(changes)],
        cwd=CHECKOUT,
        env={
            **base_environment(ground.folder),
            **ground.ingest_environment(),
            "GIOVANG_INGEST_SLOT": BARE_SLOT,
            "GIOVANG_INGEST_PUBLICATION": PUBLICATION,
        },
        capture_output=True,
        text=True,
        timeout=DRAIN_TIMEOUT_S + 30,
        check=False,
    )
    if answer.returncode != 0:
        raise BenchError(f"the bare engine failed: {answer.stderr[-2000:]}")
    counted = json.loads(answer.stdout.splitlines()[-1])
    return BareDrain(counted["changes"] / counted["seconds"], counted["cpu_seconds"])


def _prepare_native(ground: Ground) -> None:
    columns = query(
        ground.ledger_url,
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = 'payments'::regclass AND attnum > 0 AND NOT attisdropped"
        " ORDER BY attnum",
    )
    definition = sql.SQL(", ").join(
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(kind)) for name, kind in columns
    )
    server = ground.analytics
    query(server.superuser_url(), "CREATE DATABASE bench_native")
    publisher = make_conninfo(ground.ledger_url)
    query(
        ground.ledger_url, "SELECT pg_create_logical_replication_slot('bench_native', 'pgoutput')"
    )
    with psycopg.connect(server.superuser_url(NATIVE_DATABASE), autocommit=True) as subscriber:
        subscriber.execute(
            sql.SQL("CREATE TABLE payments ({}, PRIMARY KEY (id))").format(definition)
        )
        subscriber.execute(
            sql.SQL(
                "CREATE SUBSCRIPTION bench_native CONNECTION {} PUBLICATION bench_payments"
                " WITH (create_slot = false, slot_name = bench_native, copy_data = false,"
                " enabled = false)"
            ).format(sql.Literal(publisher))
        )


def _prepare_bare(ground: Ground) -> None:
    """Make slot and stored offset as `ingest.provision` does for the product's own slot."""
    settings = IngestSettings(
        database_url=ground.ledger.url("giovang_capture"),
        nats_url=ground.nats_url,
        slot=BARE_SLOT,
        publication=PUBLICATION,
    )
    table = sql.Identifier("capture", settings.offset_table)
    with psycopg.connect(ground.ledger.url("giovang_capture"), autocommit=True) as ledger:
        begun = ledger.execute(
            "SELECT lsn - '0/0' FROM pg_create_logical_replication_slot(%s, 'pgoutput')",
            (BARE_SLOT,),
        ).fetchone()
        assert begun is not None, "a slot that was made has a place"
        ledger.execute(
            sql.SQL(
                "CREATE TABLE {} (id text NOT NULL, offset_key text, offset_val text,"
                " record_insert_ts timestamp NOT NULL, record_insert_seq integer NOT NULL)"
            ).format(table)
        )
        ledger.execute(
            sql.SQL("INSERT INTO {} VALUES ('1', %s, %s, clock_timestamp(), 1)").format(table),
            (offset_key(settings), json.dumps(offset_value(Done(int(begun[0]), 0)))),
        )
