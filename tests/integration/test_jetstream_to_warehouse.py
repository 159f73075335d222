"""From the ledger stream to the hypertables, with the real NATS, Faust and TimescaleDB.

What must hold: every event has one effect, whatever dies and however often it is read; a
warehouse that is away costs time, not events; a poison event stops nothing and is kept.
"""

import json
import re
import resource
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from ingest.contract import HEADER_EVENT_ID, SCHEMA_VERSION, STREAM
from streams.contract import (
    DEADLETTER_STREAM,
    WAREHOUSE_DEADLETTER_SUBJECT,
    DeadLetterHeader,
    Table,
)
from tests.fixtures import ledger_stream as ledger
from tests.fixtures.services import BrokerServer, DatabaseServer
from tests.fixtures.warehouse import (
    COUNT,
    GROUP_STREAM,
    Warehouse,
    ledger_client,
    publish,
    worker,
    worker_settings,
)
from tests.fixtures.workers import eventually, eventually_async

LIVES = 800
# A worker that kept a backlog of this many events in memory would grow by many times the limit.
BACKLOG_LIVES = 1500
MOST_GROWTH_MIB = 20
OFFSET_SUBJECT = "faust.group.giovang-warehouse.offset.ledger.0"

ROWS = """
SELECT event_id, time, merchant_id, amount_vnd, amount_usd, currency, chain, payer_country,
       status, payment_id, exception, asset_amount, fee_vnd, payer_address, position, ordinal,
       committed_at, recorded_at
FROM raw.payment_analytics ORDER BY position, ordinal
"""
TABLE_ROWS = "SELECT t::text FROM {} AS t ORDER BY 1"
EVENTS = "SELECT event_id FROM {} ORDER BY position, ordinal"
LEDGER = {
    "payment": Table.PAYMENT_ANALYTICS,
    "entry": Table.LEDGER_ENTRIES,
    "posting": Table.LEDGER_POSTINGS,
    "payout": Table.PAYOUTS,
}
NOT_BALANCED = """
SELECT entry_id, asset FROM raw.ledger_postings
GROUP BY entry_id, asset
HAVING (sum(amount_minor), count(*)) <> (0, CASE asset WHEN 'USDC' THEN 2 ELSE 4 END)
"""
WAITERS = """
SELECT count(*) FROM pg_stat_activity
WHERE application_name = 'giovang-warehouse' AND wait_event_type = 'Lock'
"""
OUT_OF_ORDER = """
SELECT count(*) FROM (
    SELECT recorded_at < lag(recorded_at) OVER (ORDER BY position, ordinal) AS earlier
    FROM raw.payment_analytics
) AS steps WHERE earlier
"""


@pytest.fixture
def warehouse(analytics_database: DatabaseServer) -> Warehouse:
    """The migrated warehouse without rows."""
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


async def committed_offset(client: Client) -> int | None:
    try:
        stored = await client.jetstream().get_last_msg(GROUP_STREAM, OFFSET_SUBJECT)
    except NotFoundError:
        return None
    offset: int | None = json.loads(stored.data or b"")["offset"]
    return offset


async def wait_for_offset(client: Client, wanted: int, within_s: float = 60.0) -> None:
    async def reached() -> bool:
        return await committed_offset(client) == wanted

    await eventually_async(reached, within_s=within_s, what=f"offset {wanted} committed")


def everything(warehouse: Warehouse) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table, as it is and when it was recorded."""
    return {table: warehouse.query(TABLE_ROWS.format(table)) for table in Table}


def verify_exactly(warehouse: Warehouse, messages: Iterable[ledger.Message]) -> None:
    """Check that each event of the ledger has its one row, and that entries are whole."""
    expected: dict[str, list[str]] = {noun: [] for noun in LEDGER}
    for message in messages:
        expected[message.subject.split(".")[1]].append(message.headers[HEADER_EVENT_ID])
    for noun, table in LEDGER.items():
        found = [row[0] for row in warehouse.query(EVENTS.format(table))]
        assert found == expected[noun], table
    assert warehouse.query(NOT_BALANCED) == []


async def test_kills_lose_and_repeat_nothing(
    client: Client, warehouse: Warehouse, environment: dict[str, str]
) -> None:
    messages = await publish(client, ledger.lives(0, LIVES))
    expected = 3 * LIVES
    # Small batches, so that a fast machine too is killed in the middle of its work.
    small = {**environment, "GIOVANG_STREAMS_BATCH_SIZE": "20"}
    for share in (5, 4, 3):
        with worker(small) as running:
            warehouse.wait_for_rows(expected // share, within_s=120)
            running.kill()
    assert warehouse.value(COUNT) < expected, "the kills came too late to prove anything"
    with worker(environment) as running:
        warehouse.wait_for(messages[-1])
        await wait_for_offset(client, len(messages) + 1)
        assert running.stop() == 0
        assert running.output.read_bytes() == b""
    verify_exactly(warehouse, messages)
    rows = warehouse.query(ROWS)
    assert warehouse.value(OUT_OF_ORDER) == 0
    first, last = rows[0], rows[-1]
    assert first[1:13] == (
        ledger.START,
        f"mer_{0:026d}",
        25000,
        Decimal("1.00"),
        "USDT",
        "solana",
        None,
        "created",
        f"pay_{0:026d}",
        None,
        Decimal("1.005"),
        0,
    )
    assert (last[8], last[12], last[13]) == ("completed", 250, f"payer{(LIVES - 1) % 17}")


async def test_a_replay_from_the_start_changes_nothing(
    client: Client, warehouse: Warehouse, environment: dict[str, str]
) -> None:
    at = ledger.START + timedelta(days=1)
    messages = await publish(
        client,
        [
            ledger.event_message(
                ledger.change(
                    "merchants", ledger.merchant_row(1), position=10, ordinal=1, at=ledger.START
                )
            ),
            *ledger.lives(0, 100),
            ledger.event_message(
                ledger.change(
                    "refunds",
                    ledger.refund_row(3, "requested", at),
                    position=2_000_000,
                    ordinal=1,
                    at=at,
                )
            ),
            ledger.event_message(
                ledger.change(
                    "merchants",
                    ledger.merchant_row(1, "Quán mới"),
                    before=ledger.merchant_row(1),
                    position=2_000_000,
                    ordinal=2,
                    at=at,
                )
            ),
            ledger.heartbeat(2000, at + timedelta(minutes=1)),
        ],
    )
    with worker(environment) as running:
        warehouse.wait_for(messages[-1])
        await wait_for_offset(client, len(messages) + 1)
        assert running.stop() == 0
    before = everything(warehouse)
    assert warehouse.query("SELECT name, position FROM raw.merchants") == [("Quán mới", 2_000_000)]
    assert warehouse.query("SELECT status, amount_vnd FROM raw.refunds") == [("requested", 5000)]
    committed = warehouse.value("SELECT committed_through FROM raw.watermark")
    assert committed == at + timedelta(minutes=1)

    await client.jetstream().purge_stream(GROUP_STREAM)
    with worker(environment) as running:
        running.wait_ready()
        await wait_for_offset(client, len(messages) + 1)
        assert running.stop() == 0
    assert everything(warehouse) == before


async def test_a_stopped_warehouse_costs_time_not_events(
    client: Client, warehouse: Warehouse, environment: dict[str, str]
) -> None:
    messages = await publish(client, ledger.lives(0, 50))
    with worker(environment) as running:
        warehouse.wait_for(messages[-1])
        running.wait_ready()
        warehouse.server.stop()
        try:
            messages += await publish(client, ledger.lives(50, 50))
            eventually(
                lambda: "warehouse away" in running.listen(), within_s=60, what="status says so"
            )
        finally:
            warehouse.server.start()
        messages += await publish(client, ledger.lives(100, 50))
        warehouse.wait_for(messages[-1])

        warehouse.server.stop()
        try:
            messages += await publish(client, ledger.lives(150, 50))
            eventually(
                lambda: "warehouse away" in running.listen(), within_s=60, what="status says so"
            )
            assert running.stop(within_s=30) == 0, "in time, without finishing the batch"
        finally:
            warehouse.server.start()
    with worker(environment) as successor:
        warehouse.wait_for(messages[-1])
        assert successor.stop() == 0
    verify_exactly(warehouse, messages)


async def test_a_warehouse_killed_under_load_gets_everything_once(
    client: Client, warehouse: Warehouse, environment: dict[str, str]
) -> None:
    at = ledger.START + timedelta(days=2)
    asked = ledger.payout_row(1, "requested", at)
    change = ledger.change("payouts", asked, position=5_000_000, ordinal=1, at=at)
    payout = ledger.event_message(change)
    small = {**environment, "GIOVANG_STREAMS_BATCH_SIZE": "50"}
    messages = await publish(client, ledger.lives(0, LIVES))
    with worker(small) as running:
        for turn, share in enumerate((4, 2)):
            warehouse.wait_for_rows(3 * LIVES // share)
            warehouse.server.kill()
            # So something waits, however late the kill came.
            messages += await publish(client, ledger.lives(LIVES + 50 * turn, 50))
            eventually(
                lambda: "warehouse away" in running.listen(), within_s=60, what="status says so"
            )
            committed = await committed_offset(client) or 1
            assert committed <= len(messages), "killed too late"
            warehouse.server.start()
        messages += await publish(client, [payout])
        warehouse.wait_for(messages[-1])
        assert running.stop() == 0
    verify_exactly(warehouse, messages)


async def test_a_slow_warehouse_holds_the_stream_back_and_not_in_memory(
    client: Client, warehouse: Warehouse, environment: dict[str, str]
) -> None:
    messages = await publish(client, ledger.lives(0, 20))
    with worker({**environment, "GIOVANG_STREAMS_BATCH_SIZE": "100"}) as running:
        warehouse.wait_for(messages[-1])
        with psycopg.connect(warehouse.url) as holder:
            holder.execute("LOCK TABLE raw.ledger_postings IN SHARE MODE")
            messages += await publish(client, ledger.lives(20, 20))
            eventually(lambda: warehouse.value(WAITERS), within_s=60, what="the worker waits")
            before_mib = resident_mib(running.process.pid)
            messages += await publish(client, ledger.lives(40, BACKLOG_LIVES))
            # PostgreSQL ends the wait for the lock, and the worker says that it waits itself.
            eventually(
                lambda: behind(running.listen(), "warehouse away") >= 10 * BACKLOG_LIVES,
                within_s=60,
                what="it says so, and that nothing of the backlog is done",
            )
            eventually(lambda: warehouse.value(WAITERS), within_s=60, what="it tries again")
            assert resident_mib(running.process.pid) - before_mib < MOST_GROWTH_MIB
            holder.rollback()
        warehouse.wait_for(messages[-1], within_s=120)
        assert running.stop() == 0
    verify_exactly(warehouse, messages)


def resident_mib(pid: int) -> float:
    """Return how much memory a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def behind(status: str, reason: str) -> int:
    """Return how many events behind a worker says it is for `reason`, 0 where it says nothing."""
    found = re.search(rf"{reason}.*; (\d+) events behind", status)
    return int(found[1]) if found else 0


async def test_a_poison_event_is_kept_and_its_neighbours_pass(
    client: Client, warehouse: Warehouse, environment: dict[str, str]
) -> None:
    good = list(ledger.lives(0, 4))
    at = ledger.START + timedelta(hours=1)

    def payment(ordinal: int, **changes: Any) -> ledger.Message:
        row = ledger.payment_row(77, "created", at, **changes)
        return ledger.event_message(
            ledger.change("payments", row, position=1_002_500, ordinal=ordinal, at=at)
        )

    def with_payload(message: ledger.Message, payload: bytes) -> ledger.Message:
        return ledger.Message(message.subject, message.headers, payload)

    future = payment(3)
    poison = [
        with_payload(payment(1), b'{"schema": 1, '),
        with_payload(
            future, future.payload.replace(b'"schema":%d' % SCHEMA_VERSION, b'"schema":99')
        ),
        payment(4, amount_minor="12.5"),
        payment(5, payer_country="VNM"),  # passes every check of ours; the column refuses it
        payment(6, amount_minor="9" * 20),  # too large for the column
        ledger.event_message(
            ledger.change(
                "merchants", ledger.merchant_row(9, "a\0b"), position=1_002_500, ordinal=7, at=at
            )
        ),
    ]
    messages = await publish(client, [*good[:25], *poison, *good[25:]])
    with worker(environment) as running:
        warehouse.wait_for(messages[-1])
        await wait_for_offset(client, len(messages) + 1)
        eventually(lambda: "6 dead letters" in running.listen(), within_s=60, what="status says so")
        assert running.stop() == 0
    verify_exactly(warehouse, good)
    letters = [
        await client.jetstream().get_msg(DEADLETTER_STREAM, seq=number) for number in range(1, 7)
    ]
    assert sorted(letter.data or b"" for letter in letters) == sorted(
        message.payload for message in poison
    )
    for letter in letters:
        headers = letter.headers or {}
        assert letter.subject == WAREHOUSE_DEADLETTER_SUBJECT
        assert headers[DeadLetterHeader.REASON.value]
        sequence = int(headers[DeadLetterHeader.SEQUENCE.value])
        assert 26 <= sequence <= 31
        assert letter.data == poison[sequence - 26].payload
        assert headers[HEADER_EVENT_ID] == poison[sequence - 26].headers[HEADER_EVENT_ID]
        assert int(headers[DeadLetterHeader.ATTEMPT.value]) >= 1
    assert (await client.jetstream().stream_info(DEADLETTER_STREAM)).state.messages == 6


async def test_a_missing_ledger_stream_is_a_clear_error(
    client: Client, environment: dict[str, str]
) -> None:
    await client.jetstream().delete_stream(STREAM)
    with worker(environment) as running:
        assert running.process.wait(timeout=60) != 0
        assert "JetStream stream 'LEDGER' does not exist" in running.errors.read_text()
    with pytest.raises(NotFoundError):
        await client.jetstream().stream_info(STREAM)


async def test_a_batch_that_cannot_be_written_is_not_committed(
    client: Client, warehouse: Warehouse, environment: dict[str, str]
) -> None:
    messages = await publish(client, ledger.lives(0, 20))
    grant = "INSERT ON raw.payment_analytics {} giovang_streams"
    warehouse.execute(f"REVOKE {grant.format('FROM')}")
    try:
        with worker(environment) as running:
            assert running.process.wait(timeout=60) != 0
            assert "permission denied" in running.errors.read_text()
    finally:
        warehouse.execute(f"GRANT {grant.format('TO')}")
    assert await committed_offset(client) is None
    assert warehouse.place() is None
    with worker(environment) as running:
        warehouse.wait_for(messages[-1])
        assert running.stop() == 0
    verify_exactly(warehouse, messages)
