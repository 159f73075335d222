"""From the ledger stream to the hypertables, with the real NATS, Faust and TimescaleDB.

What must hold: every event has one effect, whatever dies and however often it is read; a
warehouse that is away costs time, not events; a poison event stops nothing and is kept.
"""

import json
from collections.abc import AsyncIterator, Iterable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.js.errors import NotFoundError

from ingest.contract import HEADER_EVENT_ID, SCHEMA_VERSION, STREAM
from streams.contract import DEADLETTER_STREAM, WAREHOUSE_DEADLETTER_SUBJECT, DeadLetterHeader
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

OFFSET_SUBJECT = "faust.group.giovang-warehouse.offset.ledger.0"

ROWS = """
SELECT event_id, time, merchant_id, amount_vnd, amount_usd, currency, chain, payer_country,
       status, payment_id, exception, asset_amount, fee_vnd, payer_address, position, ordinal,
       committed_at, recorded_at
FROM raw.payment_analytics ORDER BY position, ordinal
"""
EVERYTHING = """
SELECT md5(coalesce((SELECT string_agg(p::text, '|' ORDER BY p.event_id)
                     FROM raw.payment_analytics p), '')),
       (SELECT string_agg(r::text, '|' ORDER BY r.event_id) FROM raw.refunds r),
       (SELECT string_agg(m::text, '|' ORDER BY m.merchant_id) FROM raw.merchants m),
       (SELECT w::text FROM raw.watermark w)
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


async def wait_for_offset(client: Client, wanted: int, within_s: float = 30.0) -> None:
    async def reached() -> bool:
        return await committed_offset(client) == wanted

    await eventually_async(reached, within_s=within_s, what=f"offset {wanted} committed")


def payment_ids(messages: Iterable[ledger.Message]) -> list[str]:
    return [
        message.headers[HEADER_EVENT_ID]
        for message in messages
        if message.subject.startswith("ledger.payment.")
    ]


async def test_kills_lose_and_repeat_nothing(
    client: Client, warehouse: Warehouse, environment: dict[str, str]
) -> None:
    messages = await publish(client, ledger.lives(0, 1500))
    expected = payment_ids(messages)
    # Small batches, so that a fast machine too is killed in the middle of its work.
    small = {**environment, "GIOVANG_STREAMS_BATCH_SIZE": "20"}
    for share in (5, 4, 3):
        with worker(small) as running:
            running.wait_ready()
            warehouse.wait_for_rows(len(expected) // share)
            running.kill()
    assert warehouse.value(COUNT) < len(expected), "the kills came too late to prove anything"
    with worker(environment) as running:
        warehouse.wait_for(messages[-1])
        await wait_for_offset(client, len(messages) + 1)
        assert running.stop() == 0
        assert running.output.read_bytes() == b""
    rows = warehouse.query(ROWS)
    assert [row[0] for row in rows] == expected
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
    assert (last[8], last[12], last[13]) == ("completed", 250, f"payer{1499 % 17}")


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
    before = warehouse.query(EVERYTHING)
    assert warehouse.query("SELECT name, position FROM raw.merchants") == [("Quán mới", 2_000_000)]
    assert warehouse.query("SELECT status, amount_vnd FROM raw.refunds") == [("requested", 5000)]
    committed = warehouse.value("SELECT committed_through FROM raw.watermark")
    assert committed == at + timedelta(minutes=1)

    await client.jetstream().purge_stream(GROUP_STREAM)
    with worker(environment) as running:
        running.wait_ready()
        await wait_for_offset(client, len(messages) + 1)
        assert running.stop() == 0
    assert warehouse.query(EVERYTHING) == before


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
                lambda: "warehouse away" in running.listen(), within_s=20, what="status says so"
            )
        finally:
            warehouse.server.start()
        messages += await publish(client, ledger.lives(100, 50))
        warehouse.wait_for(messages[-1])

        warehouse.server.stop()
        try:
            messages += await publish(client, ledger.lives(150, 50))
            eventually(
                lambda: "warehouse away" in running.listen(), within_s=20, what="status says so"
            )
            assert running.stop() == 0, "it stops in time although it cannot finish the batch"
        finally:
            warehouse.server.start()
    with worker(environment) as successor:
        warehouse.wait_for(messages[-1])
        assert successor.stop() == 0
    assert [row[0] for row in warehouse.query(ROWS)] == payment_ids(messages)


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
        assert "6 dead letters" in eventually(running.listen, within_s=5, what="a status")
        assert running.stop() == 0
    assert [row[0] for row in warehouse.query(ROWS)] == payment_ids(good)
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
        assert running.process.wait(timeout=30) != 0
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
            assert running.process.wait(timeout=30) != 0
            assert "permission denied" in running.errors.read_text()
    finally:
        warehouse.execute(f"GRANT {grant.format('TO')}")
    assert await committed_offset(client) is None
    assert warehouse.place() is None
    with worker(environment) as running:
        warehouse.wait_for(messages[-1])
        assert running.stop() == 0
    assert [row[0] for row in warehouse.query(ROWS)] == payment_ids(messages)
