"""From a commit to every socket, by the real parts: PostgreSQL, capture, JetStream, Redis, the API.

Sockets of two API processes watch; what one of them is told the other is told too, letter for
letter, whichever process dies meanwhile. The patrol that asks PostgreSQL for what was not pushed is
set to minutes, so that what these sockets hear came by the stream.
"""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.js.errors import NotFoundError
from redis import Redis

from api.contract import live_channel
from ingest.contract import STREAM, timestamp_text
from streams.contract import DEADLETTER_STREAM, REALTIME_DEADLETTER_SUBJECT, DeadLetterHeader
from tests.fixtures import ledger_stream as ledger
from tests.fixtures.api import ApiServer, Shop
from tests.fixtures.capture import CaptureRoom, capture_room
from tests.fixtures.desk import make_desk_api, pay
from tests.fixtures.live import live_token, watch
from tests.fixtures.services import BrokerServer, DatabaseServer
from tests.fixtures.workers import WorkerProcess, eventually

GROUP_STREAM = "FAUST_GROUP_giovang-realtime"
SLOW = {"live_poll_ms": "60000", "live_patrol_ms": "300000"}


@dataclass
class Way:
    """The whole way, with two API processes at its end."""

    apis: list[ApiServer]
    capture: CaptureRoom
    env: dict[str, str]
    shop: Shop


def realtime(env: dict[str, str]) -> WorkerProcess:
    return WorkerProcess("-m", "streams.realtime", env=env)


async def forget(url: str) -> None:
    client = await nats.connect(url)
    for stream in (DEADLETTER_STREAM, GROUP_STREAM):
        try:
            await client.jetstream().delete_stream(stream)
        except NotFoundError:
            continue
    await client.close()


def settings(nats_server: BrokerServer, redis_server: BrokerServer, folder: Path) -> dict[str, str]:
    return {
        "GIOVANG_STREAMS_NATS_URL": nats_server.url,
        "GIOVANG_STREAMS_REDIS_URL": redis_server.url,
        "GIOVANG_STREAMS_STATE_DIR": str(folder),
        "GIOVANG_STREAMS_LEASE_MS": "2000",
    }


@pytest.fixture
def way(
    ledger_database: DatabaseServer,
    nats_server: BrokerServer,
    redis_server: BrokerServer,
    tmp_path: Path,
) -> Iterator[Way]:
    asyncio.run(forget(nats_server.url))
    with ExitStack() as parts:
        room = parts.enter_context(capture_room(ledger_database, nats_server, tmp_path))
        room.engine.start()
        apis = [
            make_desk_api(tmp_path / name, ledger_database, redis_server, **SLOW)
            for name in ("first", "second")
        ]
        # One house: the same keys in every process.
        for name in ("SEALING_KEY", "ADMIN_KEY", "COLLECTION_WALLET"):
            apis[1].env[f"GIOVANG_API_{name}"] = apis[0].env[f"GIOVANG_API_{name}"]
        for api in apis:
            api.start()
            parts.callback(api.stop)
        yield Way(apis, room, settings(nats_server, redis_server, tmp_path), apis[0].shop())


def note(shop: Shop, payment: dict[str, Any], text: str) -> None:
    path = f"/api/v1/payments/{payment['id']}"
    answer = shop.client.patch(path, json={"description": text})
    assert answer.status_code == 200, answer.text


def test_every_process_tells_every_event_once_whoever_dies(
    way: Way, ledger_database: DatabaseServer
) -> None:
    first, second = way.apis
    payment = way.shop.create()
    token = live_token(way.shop, payment["id"])
    with realtime(way.env) as worker, ExitStack() as sockets:
        worker.wait_ready()
        here = sockets.enter_context(watch(first, payment["id"], token=token))
        there = sockets.enter_context(watch(second, payment["id"], token=token))
        assert here.read() == there.read()
        note(way.shop, payment, "bàn 7")
        pushed = here.read()
        assert pushed == there.read()
        assert (pushed["seq"], pushed["event"]) == (2, "payment.updated")
        pay(first, ledger_database, payment)
        told = [pushed, *here.read_until(5)]
        paid = ["payment.pending", "payment.confirming", "payment.completed"]
        assert [m["event"] for m in told[1:]] == paid
        assert there.read_until(5) == told[1:]
        # What PostgreSQL tells who resumes is the same, letter for letter.
        with watch(second, payment["id"], token=token, after=1) as resumed:
            assert resumed.read_until(5) == told

        first.kill()
        with watch(second, payment["id"], token=token, after=4) as moved:
            assert moved.read()["seq"] == 5
            way.shop.client.base_url = second.base_url
            note(way.shop, payment, "bàn 8")
            assert moved.read()["seq"] == there.read()["seq"] == 6

        # The worker dies; what is committed meanwhile is pushed by the next.
        worker.kill()
        note(way.shop, payment, "bàn 9")
        with realtime(way.env) as successor:
            successor.wait_ready()
            note(way.shop, payment, "bàn 10")
            assert [m["seq"] for m in there.read_until(8)] == [7, 8]
            assert successor.stop() == 0


def payment_message(number: int, seq: int, **changes: Any) -> ledger.Message:
    """Return the message of a payment's step, as capture writes it."""
    at = ledger.START
    after = ledger.payment_row(number, "pending", at, event_seq=seq, **changes)
    return ledger.event_message(
        ledger.change(
            "payments",
            after,
            before=ledger.payment_row(number, "created", at, event_seq=seq - 1),
            position=1_000_000 + number * 1000 + seq,
            ordinal=1,
            at=at,
        )
    )


@pytest.fixture
async def stream(nats_server: BrokerServer) -> Any:
    """An empty ledger stream, and none of the worker's."""
    await forget(nats_server.url)
    client: Client = await nats.connect(nats_server.url)
    with suppress(NotFoundError):
        await client.jetstream().delete_stream(STREAM)
    await ledger.create_stream(client.jetstream())
    yield client
    await client.jetstream().delete_stream(STREAM)
    await client.close()


async def test_redis_away_is_waited_out_and_poison_passed_on(
    stream: Client, nats_server: BrokerServer, redis_server: BrokerServer, tmp_path: Path
) -> None:
    env = settings(nats_server, redis_server, tmp_path)
    # Before the worker's first start: history, which it does not push.
    await ledger.publish(stream, [payment_message(1, 2)])
    with realtime(env) as worker:
        worker.wait_ready()
        redis_server.kill()
        try:
            poison = payment_message(3, 2, merchant_id=None)
            unchanged = ledger.event_message(
                ledger.change(
                    "payments",
                    ledger.payment_row(4, "created", ledger.START, event_seq=1, fee_minor="9"),
                    before=ledger.payment_row(4, "created", ledger.START, event_seq=1),
                    position=9_000_000,
                    ordinal=1,
                    at=ledger.START,
                )
            )
            await ledger.publish(
                stream, [payment_message(2, 2), unchanged, poison, payment_message(2, 3)]
            )
            eventually(
                lambda: "Redis away" in worker.listen(), within_s=60, what="it says Redis is away"
            )
        finally:
            redis_server.start()
        with ExitStack() as parts:
            redis: Any = parts.enter_context(Redis.from_url(redis_server.url))
            heard = parts.enter_context(redis.pubsub(ignore_subscribe_messages=True))
            for number in (1, 2, 3, 4):
                heard.subscribe(live_channel(f"pay_{number:026d}"))
            found: list[dict[str, Any]] = []

            def both() -> bool:
                message = heard.get_message(timeout=0.1)
                if message is not None:
                    found.append(json.loads(message["data"]))
                return bool(found) and found[-1]["seq"] == 4

            # What waited may have been published before we listened; what comes now may not.
            await ledger.publish(stream, [payment_message(2, 4)])
            eventually(both, within_s=60, what="the last step")
        assert {m["payment_id"] for m in found} == {f"pay_{2:026d}"}
        assert found[-1]["event"] == "payment.pending"
        assert found[-1]["row"]["updated_at"] == timestamp_text(ledger.START)
        letter = await stream.jetstream().get_last_msg(
            DEADLETTER_STREAM, REALTIME_DEADLETTER_SUBJECT
        )
        assert letter.headers is not None
        assert "without id or merchant" in letter.headers[DeadLetterHeader.REASON]
        assert worker.stop() == 0
