"""From PostgreSQL and Redis to sockets: state first, every event once and in order, whatever fails.

Nothing is pushed in most of these tests: the hub then asks PostgreSQL every few hundred
milliseconds, which is how it makes up for a Redis or a stream that is away. The tests that push do
it as the stream's processor does; the whole way is walked in test_commit_to_sockets.
"""

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api.database import new_id
from api.security import LINK_LIFETIME_S, PayerLinks
from tests.fixtures.api import ApiServer, Shop, superuser, until
from tests.fixtures.desk import end, make_desk_api
from tests.fixtures.live import listen, live_token, watch
from tests.fixtures.services import BrokerServer, DatabaseServer

QUICK = {"live_poll_ms": "200", "live_patrol_ms": "200", "live_recheck_ms": "300"}


@pytest.fixture(scope="module")
def api(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path_factory: Any
) -> Iterator[ApiServer]:
    folder: Path = tmp_path_factory.mktemp("api")
    server = make_desk_api(folder, ledger_database, redis_server, **QUICK)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def shop(api: ApiServer) -> Shop:
    return api.shop()


def change(shop: Shop, payment: dict[str, Any], times: int = 1) -> None:
    """Change what the merchant wrote about a payment: each time is one event."""
    for _ in range(times):
        path = f"/api/v1/payments/{payment['id']}"
        answer = shop.client.patch(path, json={"description": new_id("note")})
        assert answer.status_code == 200, answer.text


def test_the_state_comes_first_and_every_event_after_it(api: ApiServer, shop: Shop) -> None:
    payment = shop.create()
    with watch(api, payment["id"], token=live_token(shop, payment["id"])) as socket:
        first = socket.read()
        assert (first["type"], first["seq"]) == ("state", 1)
        shown = first["payment"]
        assert {name: shown[name] for name in ("id", "status", "asset_amount", "amount")} == {
            name: payment[name] for name in ("id", "status", "asset_amount", "amount")
        }
        assert (shown["due_amount"], shown["received_amount"]) == (
            payment["asset_amount"],
            "0.000000",
        )
        change(shop, payment, 5)
        told = socket.read_until(6)
    assert [(m["type"], m["seq"], m["event"]) for m in told] == [
        ("event", seq, "payment.updated") for seq in range(2, 7)
    ]
    assert not {"description", "metadata", "merchant_id", "reference"} & set(told[0]["payment"])


def test_a_dropped_socket_resumes_where_it_was(api: ApiServer, shop: Shop) -> None:
    payment = shop.create()
    token = live_token(shop, payment["id"])
    with watch(api, payment["id"], token=token) as socket:
        assert socket.read()["seq"] == 1
    # More than a page, so that the beginning itself is read in several.
    change(shop, payment, 120)
    with watch(api, payment["id"], token=token, after=1) as socket:
        assert [m["seq"] for m in socket.read_until(121)] == list(range(2, 122))
        change(shop, payment)
        assert socket.read()["seq"] == 122
    with watch(api, payment["id"], token=token, after=5000) as socket:
        ahead = socket.read()
        assert (ahead["type"], ahead["seq"]) == ("state", 122)


def test_events_by_http_are_the_same_and_resume_by_their_id(api: ApiServer, shop: Shop) -> None:
    payment = shop.create()
    token = live_token(shop, payment["id"])
    with (
        watch(api, payment["id"], key=shop.key) as socket,
        listen(api, payment["id"], token=token) as events,
    ):
        assert events.response.headers["content-type"].startswith("text/event-stream")
        state = events.read()
        assert (state["event"], state["id"]) == ("state", "1")
        assert httpx.Response(200, text=state["data"]).json() == socket.read()
        change(shop, payment)
        event = events.read()
        assert (event["event"], event["id"]) == ("event", "2")
        assert httpx.Response(200, text=event["data"]).json() == socket.read()
    change(shop, payment)
    with listen(api, payment["id"], token=token, last_event_id=1) as events:
        assert [events.read()["id"], events.read()["id"]] == ["2", "3"]


def test_only_who_may_see_a_payment_may_watch_it(api: ApiServer, shop: Shop) -> None:
    payment, other = shop.create(), shop.create()
    stranger = api.shop(name="Người lạ")
    with api.admin() as admin:
        path = f"/api/v1/merchants/{shop.merchant_id}/api-keys"
        live_key = admin.post(path, json={"mode": "live"}).json()["key"]
    links = PayerLinks(api.env["GIOVANG_API_SEALING_KEY"])
    now_s = int(time.time())
    ended = links.token(payment["id"], "watch", now_s=now_s - LINK_LIFETIME_S)
    refused: list[tuple[int, dict[str, Any]]] = [
        (401, {}),
        (404, {"key": stranger.key}),
        (404, {"key": live_key}),
        (401, {"key": f"{shop.key[:-1]}x"}),
        (401, {"token": live_token(shop, other["id"])}),
        (401, {"token": links.token(payment["id"], "release", now_s=now_s)}),
        (401, {"token": ended}),
        # A key does not make up for a token that is none.
        (401, {"token": "1.x", "key": shop.key}),
        (422, {"key": shop.key, "after": -1}),
    ]
    for status, by in refused:
        with pytest.raises(InvalidStatus) as refusal, watch(api, payment["id"], **by):
            pass
        answer = refusal.value.response
        assert answer.status_code == status, by
        assert answer.headers["content-type"] == "application/problem+json"
        if "after" not in by:
            by_http = httpx.get(
                f"{api.base_url}/api/v1/payments/{payment['id']}/sse",
                params={"token": by["token"]} if "token" in by else {},
                headers={"Authorization": f"Bearer {by['key']}"} if "key" in by else {},
            )
            assert by_http.status_code == status, by
    for status, headers in ((404, stranger.client.headers), (401, None)):
        url = f"{api.base_url}/api/v1/payments/{payment['id']}/live-token"
        assert httpx.post(url, headers=headers).status_code == status
    with pytest.raises(InvalidStatus) as refusal, watch(api, new_id("pay"), key=shop.key):
        pass
    assert refusal.value.response.status_code == 404


def test_a_socket_ends_with_its_token(api: ApiServer, shop: Shop) -> None:
    payment = shop.create()
    links = PayerLinks(api.env["GIOVANG_API_SEALING_KEY"])
    # Long enough for a slow machine to have read the state by then.
    issued_s = int(time.time()) - LINK_LIFETIME_S + 8
    with watch(api, payment["id"], token=links.token(payment["id"], "watch", now_s=issued_s)) as s:
        assert s.read()["type"] == "state"
        assert s.ending()[0] == 4401


def test_a_socket_ends_with_its_key(api: ApiServer) -> None:
    shop = api.shop()
    payment = shop.create()
    with watch(api, payment["id"], key=shop.key) as socket:
        assert socket.read()["type"] == "state"
        with api.admin() as admin:
            path = f"/api/v1/merchants/{shop.merchant_id}/api-keys"
            (key,) = admin.get(path).json()["data"]
            assert admin.delete(f"{path}/{key['id']}").status_code in {200, 204}
        assert socket.ending()[0] == 4403


def test_a_socket_that_talks_is_closed(api: ApiServer, shop: Shop) -> None:
    payment = shop.create()
    with watch(api, payment["id"], key=shop.key) as socket:
        with contextlib.suppress(ConnectionClosed):  # it may end while words are on their way
            for _ in range(50):
                socket.connection.send("hello")
        assert socket.ending()[0] == 1008
    with watch(api, payment["id"], key=shop.key) as socket:
        socket.connection.send("x" * 5000)
        assert socket.ending()[0] == 1009


def test_an_address_has_so_many_sockets_and_the_process_too(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path: Path
) -> None:
    limits = {"live_most_sockets": "3", "live_sockets_per_address": "2"}
    api = make_desk_api(tmp_path, ledger_database, redis_server, **limits)
    api.start()
    try:
        shop = api.shop()
        payment = shop.create()

        def refusal(**options: Any) -> int | None:
            try:
                with watch(api, payment["id"], key=shop.key, **options) as socket:
                    socket.read()
            except InvalidStatus as refused:
                return int(refused.response.status_code)
            return None

        with watch(api, payment["id"], key=shop.key), watch(api, payment["id"], key=shop.key):
            assert refusal() == 429
            elsewhere: dict[str, Any] = {"source_address": ("127.0.0.2", 0)}
            with watch(api, payment["id"], key=shop.key, **elsewhere):
                assert refusal(**elsewhere) == 503
        until(lambda: refusal() is None or None, what="room for another socket")
    finally:
        api.stop()


def test_a_stopping_process_sends_everybody_to_another(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path: Path
) -> None:
    api = make_desk_api(tmp_path, ledger_database, redis_server)
    api.start()
    shop = api.shop()
    payment = shop.create()
    token = live_token(shop, payment["id"])
    with (
        watch(api, payment["id"], token=token) as socket,
        listen(api, payment["id"], token=token) as events,
    ):
        socket.read()
        events.read()
        assert api.process is not None
        api.process.terminate()
        assert socket.ending()[0] == 1012
        assert '"code": 1012' in events.read()["data"]
        assert api.process.wait(timeout=60) == 0
    api.stop()
    assert token not in api.log.read_text()
    assert shop.key not in api.log.read_text()


def test_redis_away_slows_and_silences_nobody(
    api: ApiServer, shop: Shop, redis_server: BrokerServer
) -> None:
    payment = shop.create()
    with watch(api, payment["id"], key=shop.key) as socket:
        assert socket.read()["seq"] == 1
        redis_server.kill()
        try:
            change(shop, payment, 3)
            assert [m["seq"] for m in socket.read_until(4)] == [2, 3, 4]
            # One who comes while it is away is served too.
            with watch(api, payment["id"], key=shop.key) as late:
                assert late.read()["seq"] == 4
                change(shop, payment)
                assert late.read()["seq"] == 5
        finally:
            redis_server.start()
        assert socket.read()["seq"] == 5
        change(shop, payment)
        assert socket.read()["seq"] == 6


COLUMNS = (
    ("description", "'note ' || %(n)s::int"),
    ("order_id", "'order ' || %(n)s::int %% 2"),
    ("metadata", "jsonb_build_object('n', %(n)s::int %% 3)"),
    ("received_minor", "%(n)s::int %% 4"),
    ("payer_address", "'payer ' || %(n)s::int"),
    ("fee_minor", "%(n)s::int %% 5"),
    ("exception", "CASE %(n)s::int %% 2 WHEN 0 THEN 'underpaid' END"),
)
DISAGREEING = """
SELECT p.id, p.event_seq, count(e.id), array_agg(e.data ->> 'event_seq' ORDER BY e.seq)
FROM payments AS p LEFT JOIN merchant_events AS e ON e.payment_id = p.id AND e.refund_id IS NULL
WHERE p.id = ANY (%s)
GROUP BY p.id
HAVING p.event_seq <> count(e.id)
    OR array_agg((e.data ->> 'event_seq')::bigint ORDER BY e.seq)
       <> (SELECT array_agg(n) FROM generate_series(1, p.event_seq) AS n)
"""


def test_a_payments_number_counts_its_events(shop: Shop, ledger_database: DatabaseServer) -> None:
    chance = random.Random(20)
    payments = [shop.create() for _ in range(4)]
    ids = [payment["id"] for payment in payments]
    with superuser(ledger_database) as sql:
        for number in range(120):
            chosen = chance.sample(COLUMNS, chance.randint(1, 3))
            changes = ", ".join(f"{name} = {value}" for name, value in chosen)
            sql.execute(
                f"UPDATE payments SET {changes} WHERE id = %(id)s".encode(),  # noqa: S608
                {"n": number // 2, "id": chance.choice(ids)},
            )
    end(ledger_database, payments[0])
    with superuser(ledger_database) as sql:
        assert sql.execute(DISAGREEING, (ids,)).fetchall() == []
        counts = sql.execute("SELECT event_seq FROM payments WHERE id = ANY (%s)", (ids,))
        numbers = [row[0] for row in counts.fetchall()]
    # Or a trigger that never counts, or always, would pass.
    assert all(5 < number < 80 for number in numbers), numbers
