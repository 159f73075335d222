"""Hop: stream to alerts. Real NATS, real TimescaleDB, the real worker with small rules.

What it must find is what the engine finds of the same events, judged one after the other.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import nats
import psycopg
import pytest
from nats.aio.client import Client
from yarl import URL

from infra.stack.process import base_environment
from ingest.contract import STREAM, ChangeEvent
from streams.contract import (
    DEADLETTER_STREAM,
    RISK_FLAGGED_SUBJECT,
    RISK_STREAM,
    RISK_SUBJECTS,
)
from streams.risk.engine import Alert
from streams.risk.flagging import Flagging
from streams.transport import Connection
from tests.fixtures import ledger_stream as ledger
from tests.fixtures.risk import RULES, arrival, expected, read, rules, shopping
from tests.fixtures.services import CHECKOUT, BrokerServer, DatabaseServer
from tests.fixtures.warehouse import Warehouse, publish, worker_settings
from tests.fixtures.workers import WorkerProcess, eventually

EVENTS = list(shopping(seed=7, count=300))
ROWS = """
SELECT alert_id, merchant_id, payment_id, event_id, rule_id, rule_version, rule_set, severity,
       score, reasons, occurred_at
FROM raw.risk_alerts ORDER BY event_id, alert_id
"""
REACHED = "SELECT position, ordinal FROM raw.watermark WHERE source = 'risk'"


@pytest.fixture
def warehouse(analytics_database: DatabaseServer) -> Warehouse:
    found = Warehouse(analytics_database)
    found.clear()
    return found


@pytest.fixture
async def client(broker: BrokerServer) -> AsyncIterator[Client]:
    connected = await nats.connect(broker.url)
    await forget(connected)
    await ledger.create_stream(connected.jetstream())
    yield connected
    await connected.close()


@pytest.fixture
def environment(
    broker: BrokerServer, analytics_database: DatabaseServer, tmp_path: Path
) -> dict[str, str]:
    (tmp_path / "rules.toml").write_text(RULES)
    return {
        **worker_settings(broker, analytics_database, tmp_path),
        "GIOVANG_STREAMS_RULES_FILE": str(tmp_path / "rules.toml"),
        "GIOVANG_STREAMS_BATCH_SIZE": "40",
    }


async def forget(client: Client, keeping: str | None = None) -> None:
    """Delete all streams but one: alerts, the worker's place and its state."""
    for stream in await client.jetstream().streams_info():
        if stream.config.name != keeping:
            await client.jetstream().delete_stream(str(stream.config.name))


def worker(environment: dict[str, str]) -> WorkerProcess:
    return WorkerProcess("-m", "streams.risk", env=environment)


def wait_for(warehouse: Warehouse, last: ChangeEvent) -> None:
    wanted = [(last.position, last.ordinal)]
    eventually(lambda: warehouse.query(REACHED) == wanted, within_s=60, what=f"watermark {last.id}")


async def published(client: Client) -> list[bytes]:
    """Return every alert on the stream, in order."""
    jetstream = client.jetstream()
    state = (await jetstream.stream_info(RISK_STREAM)).state
    found = []
    for sequence in range(state.first_seq, state.last_seq + 1):
        message = await jetstream.get_msg(RISK_STREAM, sequence)
        assert message.subject == RISK_FLAGGED_SUBJECT
        found.append(message.data or b"")
    return found


def as_rows(alerts: list[Alert]) -> list[tuple[Any, ...]]:
    """Return the rows of alerts, as text where PostgreSQL has a moment."""
    rows = []
    for alert in alerts:
        told = json.loads(alert.to_bytes())
        del told["schema"]
        rows.append(tuple(told.values()))
    return sorted(rows, key=lambda row: (row[3], row[0]))


def stored(warehouse: Warehouse) -> list[tuple[Any, ...]]:
    return [(*row[:-1], row[-1].strftime("%Y-%m-%dT%H:%M:%S.%fZ")) for row in warehouse.query(ROWS)]


async def test_restart_kill_and_replay_change_no_byte_of_the_alerts(
    client: Client, warehouse: Warehouse, environment: dict[str, str]
) -> None:
    wanted = expected(rules(), read(EVENTS))
    messages = [ledger.event_message(event) for event in EVENTS]
    # Stopped in order it goes on behind what it committed, so all it remembers is its table.
    with worker(environment) as running:
        await publish(client, messages[:100])
        wait_for(warehouse, EVENTS[99])
        assert running.stop() == 0
    with worker(environment) as running:
        await publish(client, messages[100:170])
        wait_for(warehouse, EVENTS[169])
        running.kill()
    with worker(environment) as running:
        await publish(client, messages[170:])
        wait_for(warehouse, EVENTS[-1])
        assert running.stop() == 0
    assert await published(client) == [alert.to_bytes() for alert in wanted]
    assert stored(warehouse) == as_rows(wanted)

    # Once more from nothing, in batches of another size.
    warehouse.clear()
    await forget(client, keeping=STREAM)
    with worker({**environment, "GIOVANG_STREAMS_BATCH_SIZE": "1000"}) as running:
        wait_for(warehouse, EVENTS[-1])
        assert running.stop() == 0
    assert await published(client) == [alert.to_bytes() for alert in wanted]
    assert stored(warehouse) == as_rows(wanted)


async def test_an_alert_with_a_row_is_not_published_again(
    client: Client,
    warehouse: Warehouse,
    broker: BrokerServer,
    analytics_database: DatabaseServer,
) -> None:
    """However long ago that was: the stream's own memory of message ids is purged in between."""
    wanted = expected(rules(), read(EVENTS))
    flagging = Flagging(
        Connection([URL(broker.url)], "test"), analytics_database.url("giovang_streams"), 1
    )
    try:
        await flagging.flag(wanted[:3], None)
        assert len(await published(client)) == 3
        await client.jetstream().delete_stream(RISK_STREAM)
        await client.jetstream().add_stream(name=RISK_STREAM, subjects=[RISK_SUBJECTS])
        await flagging.flag(wanted[:5], None)
        await flagging.flag(wanted[:5], None)
    finally:
        await flagging.close()
    assert await published(client) == [alert.to_bytes() for alert in wanted[3:5]]
    assert stored(warehouse) == as_rows(wanted[:5])


async def test_a_poison_event_is_a_letter_that_only_a_replay_can_answer(
    client: Client, warehouse: Warehouse, environment: dict[str, str]
) -> None:
    poison = arrival(1, ledger.START, payer_country="VNM")
    await publish(client, [ledger.event_message(event) for event in (poison, EVENTS[50])])
    with worker(environment) as running:
        wait_for(warehouse, EVENTS[50])
        assert running.stop() == 0
    letters = (await client.jetstream().stream_info(DEADLETTER_STREAM, subjects_filter=">")).state
    assert letters.subjects == {"deadletter.risk": 1}
    done = run("streams.letters", environment, "retry", "--all")
    assert done.returncode == 1
    assert "giovang-risk has moved on from event 1: replay the stream" in done.stdout
    done = run("streams.status", environment, "--json", "--watch", "0.1")
    (shown,) = [
        one for one in json.loads(done.stdout)["processors"] if one["consumer"] == "giovang-risk"
    ]
    assert shown["dead_letters"] == 1
    assert {one["committed"] for one in shown["partitions"] if one["topic"] == "ledger"} == {2}


def run(
    module: str, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=CHECKOUT,
        env={**base_environment(Path(environment["GIOVANG_STREAMS_STATE_DIR"])), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_wrong_rules_end_the_worker_with_a_sentence_each(environment: dict[str, str]) -> None:
    path = Path(environment["GIOVANG_STREAMS_RULES_FILE"])
    path.write_text(RULES.replace("limit = 3", "limit = 0").replace("score = 80", "score = 800"))
    done = run("streams.risk", environment)
    assert done.returncode == 2
    assert [line.partition(": ")[2][:22] for line in done.stderr.splitlines()] == [
        "rule 'wallet-velocity'",
        "rule 'structuring': sc",
    ]


def test_merchants_see_their_own_alerts_and_no_table(
    analytics_database: DatabaseServer, warehouse: Warehouse
) -> None:
    for number, merchant in enumerate(("mer_1", "mer_2", "mer_2")):
        values = f"now(), 'a{number}', '{merchant}', 'pay_1', 'e', 'r', 1, 's', 'low', 1, '{{}}'"
        warehouse.execute(
            "INSERT INTO raw.risk_alerts (occurred_at, alert_id, merchant_id, payment_id, event_id,"  # noqa: S608
            f" rule_id, rule_version, rule_set, severity, score, reasons) VALUES ({values})"
        )
    count = "SELECT count(*) FROM risk.alerts"
    url = analytics_database.url("giovang_dashboards")
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as dashboards:
        seen = {}
        for merchant in ("", "mer_1", "mer_2", "mer_3"):
            dashboards.execute("SELECT set_config('giovang.merchant_id', %s, false)", (merchant,))
            seen[merchant] = dashboards.execute(count).fetchone()
        assert seen == {"": (0,), "mer_1": (1,), "mer_2": (2,), "mer_3": (0,)}
        for forbidden in ("SELECT 1 FROM raw.risk_alerts", "DELETE FROM risk.alerts"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                dashboards.execute(forbidden.encode())
        chunks = warehouse.query("SELECT show_chunks('raw.risk_alerts')::text")
        assert chunks
        for (chunk,) in chunks:
            with (
                contextlib.closing(dashboards.cursor()) as cursor,
                pytest.raises(psycopg.errors.InsufficientPrivilege),
            ):
                cursor.execute(f"SELECT 1 FROM {chunk}".encode())  # noqa: S608
