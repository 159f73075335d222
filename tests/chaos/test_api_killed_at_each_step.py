"""The API is killed at each step of a create, and the same request is sent again: one effect.

A step is a message to PostgreSQL. A proxy freezes the process at one message, before PostgreSQL has
it and after; there it is killed with SIGKILL. Nobody knows then whether the COMMIT happened, the
client least of all; it does what clients do and sends the same request to the next process.
"""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.fixtures.api import ApiServer, Shop, make_api, superuser
from tests.fixtures.pgproxy import PostgresProxy, Side
from tests.fixtures.services import BrokerServer, DatabaseServer

FREEZE_DEADLINE_S = 60.0
NO_CHAIN = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def proxy(ledger_database: DatabaseServer) -> Iterator[PostgresProxy]:
    with PostgresProxy(ledger_database.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def api(
    proxy: PostgresProxy,
    ledger_database: DatabaseServer,
    redis_server: BrokerServer,
    tmp_path_factory: Any,
) -> Iterator[ApiServer]:
    folder: Path = tmp_path_factory.mktemp("api")
    server = make_api(
        folder,
        ledger_database,
        redis_server.url,
        rpc_url=NO_CHAIN,
        database_url=proxy.url(ledger_database.url("giovang_api")),
        # One connection, so that the messages of a request come in one order.
        pool_size="1",
    )
    server.start()
    yield server
    proxy.release()
    server.stop()


def ask(shop: Shop, key: str) -> httpx.Response:
    """Ask for a payment whose order is named as the key."""
    return shop.post(
        "/api/v1/payments", {"amount": "1000", "asset": "USDC", "order_id": key}, key=key
    )


def effects(database: DatabaseServer, order_id: str) -> dict[str, int]:
    """Count what an order left behind, past the API."""
    with superuser(database) as sql:
        row = sql.execute(
            """
            SELECT count(*), count(DISTINCT k.key), count(DISTINCT e.id), count(DISTINCT a.id)
            FROM payments AS p
            LEFT JOIN idempotency_keys AS k
                ON k.merchant_id = p.merchant_id AND k.response_body LIKE '%%' || p.id || '%%'
            LEFT JOIN merchant_events AS e ON e.payment_id = p.id
            LEFT JOIN audit_logs AS a ON a.subject_id = p.id
            WHERE p.order_id = %s
            """,
            (order_id,),
        ).fetchone()
    assert row is not None
    return dict(zip(("payments", "answers", "events", "audit rows"), row, strict=True))


ONE_EACH = {"payments": 1, "answers": 1, "events": 1, "audit rows": 1}


def killed_at(
    api: ApiServer, proxy: PostgresProxy, shop: Shop, *, key: str, step: int, side: Side
) -> None:
    """Send the request, freeze the process at that step, and kill it there."""
    proxy.arm(step, side, since=key.encode())
    lost = threading.Event()

    def send() -> None:
        try:
            ask(shop, key)
        except httpx.TransportError:
            lost.set()

    client = threading.Thread(target=send)
    client.start()
    assert proxy.frozen.wait(FREEZE_DEADLINE_S), f"step {step} was never reached"
    api.kill()
    proxy.release()
    client.join(FREEZE_DEADLINE_S)
    assert lost.is_set(), "the client got an answer from a process that was killed"


def steps_of(proxy: PostgresProxy, shop: Shop, key: str) -> int:
    """Create a payment; return how many messages it took."""
    proxy.arm(None, since=key.encode())
    assert ask(shop, key).status_code == 201
    return proxy.count


def test_a_create_killed_at_any_step_has_one_effect(
    api: ApiServer, proxy: PostgresProxy, ledger_database: DatabaseServer
) -> None:
    shop = api.shop()
    assert ask(shop, "warm").status_code == 201
    # The process may ask something of its own after a create: the least is the create itself.
    steps = min(steps_of(proxy, shop, f"counted-{number}") for number in range(3))
    assert steps >= 2, "a create is at least one statement and the Sync that commits it"

    found_done = 0
    for step in range(1, steps + 1):
        for side in ("before", "after"):
            key = f"killed-{side}-{step}"
            killed_at(api, proxy, shop, key=key, step=step, side=side)
            api.start()
            answer = ask(shop, key)
            assert answer.status_code == 201, answer.text
            found_done += answer.headers.get("idempotent-replayed") == "true"
            assert answer.json()["order_id"] == key
            assert effects(ledger_database, key) == ONE_EACH, f"step {step}, {side}"

    # Some deaths came after the COMMIT, and most before: both kinds were met.
    assert 1 <= found_done < steps

    with superuser(ledger_database) as sql:
        gaps = sql.execute(
            """SELECT count(*) - max(seq) FROM merchant_events WHERE merchant_id = %s""",
            (shop.merchant_id,),
        ).fetchone()
    assert gaps == (0,), "the sequence of events has a gap"
