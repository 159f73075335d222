"""Hop: stream to alerts. Real NATS, real TimescaleDB, the real worker with small rules.

What it must find is what the engine finds of the same events, judged one after the other.
"""

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import nats
import psycopg
import pytest
from nats.aio.client import Client
from yarl import URL

from ingest.contract import STREAM, ChangeEvent
from streams.contract import (
    RISK_STREAM,
    RISK_SUBJECTS,
)
from streams.risk.flagging import Flagging
from streams.transport import Connection
from tests.fixtures import ledger_stream as ledger
from tests.fixtures.risk import (
    RULES,
    as_rows,
    expected,
    published,
    read,
    rules,
    shopping,
    stored,
)
from tests.fixtures.services import BrokerServer, DatabaseServer, free_port
from tests.fixtures.warehouse import Warehouse, publish, run_command, scraped, worker_settings
from tests.fixtures.workers import WorkerProcess, eventually

EVENTS = list(shopping(seed=7, count=300))
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


async def test_a_letter_given_back_leads_to_what_it_would_have_led_to(
    client: Client, warehouse: Warehouse, environment: dict[str, str], tmp_path: Path
) -> None:
    """However many payments the worker has judged since; and given back twice, nothing more."""
    wanted = expected(rules(), read(EVENTS))
    # Of those that found something together with others, one in the middle.
    found = next(alert for alert in wanted[len(wanted) // 2 :] if "velocity" in alert.rule_id)
    place = next(number for number, event in enumerate(EVENTS) if event.id == found.event_id)
    event = EVENTS[place]
    poison = replace(event, after={**event.row, "amount_minor": "much"})
    events = [*EVENTS[:place], poison, *EVENTS[place + 1 :]]
    await publish(client, [ledger.event_message(one) for one in events])
    port = free_port()
    with worker({**environment, "GIOVANG_STREAMS_METRICS_PORT": str(port)}) as running:
        told = eventually(
            lambda: scraped(port, committed_sequence=len(EVENTS), dead_letters_waiting=1),
            within_s=60,
            what="metrics",
        )
        assert (told["dead_letters_total"], told["lag_events"]) == (1, 0)
        assert running.stop() == 0
    readable = [one for one in read(events) if one.offset != place + 1]
    left = [alert.to_bytes() for alert in expected(rules(), readable)]
    assert await published(client) == left

    status = run_command("streams.status", environment, "--json", "--watch", "0.1")
    (shown,) = (
        one for one in json.loads(status.stdout)["processors"] if one["consumer"] == "giovang-risk"
    )
    assert shown["dead_letters"] == 1
    assert [(one["topic"], one["committed"]) for one in shown["partitions"]] == [("ledger", 300)]
    again = run_command("streams.letters", environment, "retry", "--all")
    assert again.returncode == 1
    assert "failed again: not an integer of minor units" in again.stdout
    assert await published(client) == left
    (letter,) = json.loads(run_command("streams.letters", environment, "list", "--json").stdout)
    assert (letter["consumer"], letter["sequence"]) == ("giovang-risk", place + 1)
    file = tmp_path / "corrected.json"
    file.write_bytes(event.to_bytes())
    number = str(letter["letter"])
    done = run_command("streams.letters", environment, "retry", number, "--payload", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    mended = [alert for alert in wanted if alert.event_id == event.id]
    assert await published(client) == left + [alert.to_bytes() for alert in mended]
    rows = [row for row in stored(warehouse) if row[3] == event.id]
    assert rows == as_rows(mended)


async def test_a_worker_without_its_warehouse_tells_for_how_long_payments_wait(
    client: Client, environment: dict[str, str]
) -> None:
    """Also one that has finished nothing yet."""
    await publish(client, map(ledger.event_message, EVENTS[:7]))
    nowhere = f"postgresql://giovang_streams@127.0.0.1:{free_port()}/analytics"
    port = free_port()
    settings = {
        "GIOVANG_STREAMS_WAREHOUSE_URL": nowhere,
        "GIOVANG_STREAMS_METRICS_PORT": str(port),
    }
    with worker({**environment, **settings}):
        told = eventually(
            lambda: scraped(port, blocked=1, lag_events=7), within_s=60, what="metrics"
        )
    age = datetime.now(UTC) - EVENTS[0].committed_at
    assert told["lag_seconds"] == pytest.approx(age.total_seconds(), abs=120)
    assert (told["active"], told["dead_letters_waiting"]) == (1, 0)


def test_wrong_rules_end_the_worker_with_a_sentence_each(environment: dict[str, str]) -> None:
    path = Path(environment["GIOVANG_STREAMS_RULES_FILE"])
    path.write_text(RULES.replace("limit = 3", "limit = 0").replace("score = 80", "score = 800"))
    done = run_command("streams.risk", environment)
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
