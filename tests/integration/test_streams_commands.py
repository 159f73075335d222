"""The commands of the streams room as a data engineer meets them.

Dead letters listed, read, mended, given back, made by the real worker out of poison events; and
how the processors stand. The commands are run as `./giovang deadletter` and `./giovang streams
status` run them.
"""

import json
import subprocess
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from nats.aio.client import Client
from nats.js.errors import APIError

from ingest.contract import HEADER_EVENT_ID
from streams.contract import DEADLETTER_STREAM, DISCARDED_STREAM
from tests.fixtures import ledger_stream as ledger
from tests.fixtures.services import BrokerServer, DatabaseServer, free_port
from tests.fixtures.warehouse import (
    Warehouse,
    ledger_client,
    publish,
    run_command,
    scraped,
    worker,
    worker_settings,
)
from tests.fixtures.workers import eventually

WRONG_COUNTRY = "VNM"
KNOWN = "SELECT event_id, payer_country FROM raw.payment_analytics ORDER BY position, ordinal"


@pytest.fixture
def warehouse(analytics_database: DatabaseServer) -> Warehouse:
    found = Warehouse(analytics_database)
    found.clear()
    return found


@pytest.fixture
async def client(nats_server: BrokerServer) -> AsyncIterator[Client]:
    async with ledger_client(nats_server) as connected:
        yield connected


@pytest.fixture
def environment(
    nats_server: BrokerServer, analytics_database: DatabaseServer, tmp_path: Path
) -> dict[str, str]:
    return worker_settings(nats_server, analytics_database, tmp_path)


def deadletter(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return run_command("streams.letters", environment, *arguments)


def listed(environment: dict[str, str], *arguments: str) -> list[dict[str, Any]]:
    done = deadletter(environment, "list", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def payment(ordinal: int, **changes: Any) -> ledger.Message:
    """One payment's row; all of them belong to the same merchant, and so to one key."""
    at = ledger.START + timedelta(hours=1)
    row = ledger.payment_row(77, "created", at, **changes)
    return ledger.event_message(
        ledger.change("payments", row, position=1_002_500, ordinal=ordinal, at=at)
    )


async def poisoned(
    client: Client, warehouse: Warehouse, environment: dict[str, str]
) -> list[ledger.Message]:
    """Have the worker meet three poison events of one key and one of another; return all."""
    other = ledger.event_message(
        ledger.change(
            "merchants",
            ledger.merchant_row(3, "a\0b"),
            position=1_002_500,
            ordinal=4,
            at=ledger.START,
        )
    )
    messages = await publish(
        client,
        [
            payment(1, payer_country=WRONG_COUNTRY),
            payment(2, amount_minor="12.5"),
            payment(3, payer_country=WRONG_COUNTRY),
            other,
            payment(5),
        ],
    )
    with worker(environment) as running:
        warehouse.wait_for(messages[-1])
        assert running.stop() == 0
    return messages


async def test_a_letter_tells_why_and_nobody_is_waited_for_for_ever(
    client: Client, warehouse: Warehouse, environment: dict[str, str]
) -> None:
    messages = await poisoned(client, warehouse, environment)
    letters = {letter["sequence"]: letter for letter in listed(environment)}
    assert sorted(letters) == [1, 2, 3, 4]
    second = letters[2]
    assert second["consumer"] == "giovang-warehouse"
    assert second["subject"] == "ledger.payment.created"
    assert second["event_id"] == messages[1].headers[HEADER_EVENT_ID]
    assert second["attempt"] == 1
    assert "not an integer of minor units" in second["reason"]
    assert "PoisonEventError" in second["traceback"]
    assert "in amount" in second["traceback"]
    assert second["payload"].encode() == messages[1].payload
    assert "RowRefusedError" in letters[1]["traceback"]

    shown = deadletter(environment, "show", str(second["letter"]))
    assert shown.returncode == 0
    assert '"amount_minor": "12.5"' in shown.stdout
    assert "Traceback" in shown.stdout
    table = deadletter(environment, "list", "--consumer", "giovang-warehouse", "--limit", "2")
    assert table.stdout.count("giovang-warehouse") == 2
    assert listed(environment, "--consumer", "giovang-realtime") == []
    missing = deadletter(environment, "show", "99")
    assert missing.returncode == 1
    assert missing.stderr == "giovang: there is no dead letter 99; list shows those there are\n"

    nowhere = f"postgresql://giovang_streams@127.0.0.1:{free_port()}/analytics"
    away = deadletter({**environment, "GIOVANG_STREAMS_WAREHOUSE_URL": nowhere}, "retry", "1")
    assert away.returncode == 2
    assert away.stderr.startswith("giovang: letter 1 was not tried: warehouse away")
    no_nats = {**environment, "GIOVANG_STREAMS_NATS_URL": f"nats://127.0.0.1:{free_port()}"}
    silent = deadletter(no_nats, "list")
    assert silent.returncode == 2
    assert "NATS does not answer" in silent.stderr
    wrong = deadletter(environment, "retry")
    assert wrong.returncode == 2
    assert wrong.stderr == "giovang: name letters, or say --all or --consumer NAME\n"
    stream = await client.jetstream().stream_info(DEADLETTER_STREAM)
    assert stream.state.messages == 4


async def test_a_retry_keeps_the_order_of_a_key_until_its_first_letter_is_discarded(
    client: Client, warehouse: Warehouse, environment: dict[str, str]
) -> None:
    messages = await poisoned(client, warehouse, environment)
    letters = listed(environment)
    before = {letter["sequence"]: letter["letter"] for letter in letters}
    tried = {letter["sequence"]: letter["attempt"] for letter in letters}
    # The column now takes what it refused; the second event is wrong in itself.
    warehouse.execute("ALTER TABLE raw.payment_analytics ALTER COLUMN payer_country TYPE char(3)")
    try:
        done = deadletter(environment, "retry", "--all")
        again = deadletter(environment, "retry", "--consumer", "giovang-warehouse")
    finally:
        warehouse.clear()
        warehouse.execute(
            "ALTER TABLE raw.payment_analytics ALTER COLUMN payer_country TYPE char(2)"
        )
    assert done.returncode == 1
    told = done.stdout.splitlines()
    assert told[0].startswith(f"letter {before[1]} done: event ")
    assert told[1].startswith(f"letter {before[2]} failed again: not an integer")
    assert told[2] == f"letter {before[3]} waits for letter {before[2]}, of the same key"
    assert told[3].startswith(f"letter {before[4]} failed again: ")
    assert again.returncode == 1
    left = {letter["sequence"]: letter for letter in listed(environment)}
    assert sorted(left) == [2, 3, 4]
    again_tried = [left[sequence]["attempt"] - tried[sequence] for sequence in (2, 3, 4)]
    assert again_tried == [2, 0, 2]
    await discarded(client, environment, left, messages[1])


async def discarded(
    client: Client,
    environment: dict[str, str],
    left: dict[int, dict[str, Any]],
    message: ledger.Message,
) -> None:
    """Discard the letter of the second event, for which the third has to wait."""
    second = left[2]
    number = str(second["letter"])
    refused = deadletter(environment, "discard", number, "--why", "  ")
    assert refused.returncode == 2
    assert refused.stderr.startswith("giovang: say why")
    missing = deadletter(environment, "discard", number, "99999", "--why", "a slip")
    assert (missing.returncode, missing.stdout) == (1, ""), "one of two letters was discarded"

    why = "a wrong amount typed in a test, ticket 17: đã xác nhận"
    done = deadletter({**environment, "SUDO_USER": "linh"}, "discard", number, "--why", why)
    assert done.returncode == 0, done.stderr
    (kept,) = json.loads(deadletter(environment, "discarded", "--json").stdout)
    assert (kept["discarded_by"], kept["why"], kept["record"]) == ("linh", why, 1)
    assert kept["discarded_at"] > second["failed_at"]
    assert {name: kept[name] for name in second} == second
    assert kept["payload"].encode() == message.payload
    assert deadletter(environment, "discarded").stdout.count("linh") == 1
    with pytest.raises(APIError):
        await client.jetstream().delete_msg(DISCARDED_STREAM, 1)
    assert (await client.jetstream().stream_info(DISCARDED_STREAM)).state.messages == 1
    assert (await client.jetstream().stream_info(DEADLETTER_STREAM)).state.messages == 2

    # The column refuses the third again, but it was tried.
    again = deadletter(environment, "retry", "--all")
    assert again.stdout.startswith(f"letter {left[3]['letter']} failed again: ")
    assert "waits" not in again.stdout


async def test_a_corrected_event_has_its_one_effect(
    client: Client, warehouse: Warehouse, environment: dict[str, str], tmp_path: Path
) -> None:
    messages = await poisoned(client, warehouse, environment)
    letter = next(one for one in listed(environment) if one["sequence"] == 1)
    document = orjson.loads(letter["payload"])
    document["after"]["payer_country"] = "VN"
    file = tmp_path / "corrected.json"
    file.write_bytes(orjson.dumps({**document, "ordinal": 9}))
    number = str(letter["letter"])
    refused = deadletter(environment, "retry", number, "--payload", str(file))
    assert refused.returncode == 2
    assert "not a change event" in refused.stderr or "is not that of" in refused.stderr
    file.write_bytes(messages[2].payload)
    refused = deadletter(environment, "retry", number, "--payload", str(file))
    assert refused.returncode == 2
    assert "the letter's is" in refused.stderr
    assert len(listed(environment)) == 4, "a refused correction changed something"

    file.write_bytes(orjson.dumps(document))
    place = warehouse.place()
    done = deadletter(environment, "retry", number, "--payload", str(file))
    assert done.returncode == 0, done.stderr
    mended, last = messages[0].headers[HEADER_EVENT_ID], messages[4].headers[HEADER_EVENT_ID]
    assert warehouse.query(KNOWN) == [(mended, "VN"), (last, "VN")]
    assert warehouse.place() == place, "an old event moved the watermark"
    assert len(listed(environment)) == 3
    gone = deadletter(environment, "retry", number)
    assert gone.returncode == 1


async def test_status_tells_who_reads_how_far_and_what_waits(
    client: Client, warehouse: Warehouse, environment: dict[str, str]
) -> None:
    def status() -> tuple[int, dict[str, Any], list[str]]:
        done = run_command("streams.status", environment, "--json", "--watch", "0.1")
        assert done.stdout, done.stderr
        document = json.loads(done.stdout)
        found = {one["consumer"]: one for one in document["processors"]}
        return done.returncode, found["giovang-warehouse"], document["complaints"]

    code, standing, complaints = status()
    assert code == 1
    assert (standing["owner"], standing["partitions"]) == ("", [])
    assert "giovang-warehouse is run by nobody" in complaints

    messages = await publish(client, ledger.lives(0, 20))
    port = free_port()
    with worker({**environment, "GIOVANG_STREAMS_METRICS_PORT": str(port)}) as running:
        warehouse.wait_for(messages[-1])

        def caught_up() -> dict[str, Any] | None:
            standing = status()[1]
            done = [part["committed"] for part in standing["partitions"]]
            return standing if done == [len(messages)] else None

        standing = eventually(caught_up, within_s=60, what="all is committed")
        assert standing["owner"]
        assert standing["generation"] > 0
        (partition,) = standing["partitions"]
        assert (partition["behind_events"], partition["lag_ms"]) == (0, 0)
        assert partition["committed_at"] is not None
        assert partition["events_per_s"] >= 0
        eventually(
            lambda: scraped(port, committed_sequence=len(messages)), within_s=60, what="metrics"
        )
        # It saw itself commit only what it commits from now on.
        messages += await publish(client, ledger.lives(20, 5))
        first = eventually(
            lambda: scraped(port, committed_sequence=len(messages)),
            within_s=60,
            what="the next ones",
        )
        assert first["last_commit_timestamp_seconds"] <= time.time()
        assert (first["active"], first["blocked"], first["lag_events"]) == (1, 0, 0)
        assert first["events_total"] == first["rows_total"] == len(messages)
        assert running.stop() == 0
    more = await publish(client, ledger.lives(25, 5))
    code, standing, complaints = status()
    assert code == 1
    (partition,) = standing["partitions"]
    assert partition["behind_events"] == len(more)
    assert partition["lag_ms"] > 60_000, "the events are of months ago"
    assert any("s behind on ledger" in sentence for sentence in complaints)
    shown = run_command("streams.status", environment)
    assert f"{len(more)} events" in shown.stdout
    assert "giovang-realtime is run by nobody" in shown.stdout
