"""HTTP to PostgreSQL: one request has one effect, and bad input gets one clear error."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from api.database import new_id
from tests.fixtures.api import ApiServer, Shop, make_api, problem, settle, superuser
from tests.fixtures.services import BrokerServer, DatabaseServer

NO_CHAIN = "http://127.0.0.1:9"


KEYED_POST = {"Idempotency-Key": "k", "Content-Type": "application/json"}


@pytest.fixture(scope="module")
def api(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path_factory: Any
) -> Iterator[ApiServer]:
    folder: Path = tmp_path_factory.mktemp("api")
    server = make_api(folder, ledger_database, redis_server.url, rpc_url=NO_CHAIN)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def shop(api: ApiServer) -> Iterator[Shop]:
    shop = api.shop()
    yield shop
    shop.client.close()


def test_a_payment_is_created_and_read_back(shop: Shop) -> None:
    payment = shop.create("250000", description="Hai cà phê", metadata={"bàn": "7"})
    assert payment["asset_amount"] == "9.560230"
    assert payment["rate"]["value"] == "26150"
    assert payment["status"] == "created"
    assert payment["received"] == "0.000000"
    assert payment["reference"] in payment["pay_url"]
    assert shop.payment(payment["id"]) == payment


def test_the_same_request_again_is_answered_and_not_done(shop: Shop) -> None:
    body = {"amount": "1000", "asset": "USDC"}
    first = shop.post("/api/v1/payments", body, key="order-1")
    again = shop.post("/api/v1/payments", body, key='"order-1"')
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert len(shop.client.get("/api/v1/payments").json()["data"]) == 1


def test_another_request_under_the_key_is_refused(shop: Shop) -> None:
    assert shop.post("/api/v1/payments", {"amount": "1", "asset": "USDC"}, key="a").is_success
    other = shop.post("/api/v1/payments", {"amount": "2", "asset": "USDC"}, key="a")
    problem(other, 422, "idempotency_key_reused")


def test_keys_of_two_merchants_are_two_keys(api: ApiServer, shop: Shop) -> None:
    body = {"amount": "1000", "asset": "USDC"}
    other = api.shop()
    assert (
        shop.post("/api/v1/payments", body, key="same").json()["id"]
        != other.post("/api/v1/payments", body, key="same").json()["id"]
    )


def test_a_missing_or_malformed_key_is_refused(shop: Shop) -> None:
    body = {"amount": "1000", "asset": "USDC"}
    problem(shop.client.post("/api/v1/payments", json=body), 400, "idempotency_key_missing")
    for key in ("", '""', "x" * 256, "two words"):
        answer = shop.client.post("/api/v1/payments", json=body, headers={"Idempotency-Key": key})
        problem(answer, 422, "invalid_request")


def test_a_refusal_is_not_saved_under_the_key(shop: Shop) -> None:
    problem(shop.post("/api/v1/payments", {"amount": "0"}, key="r"), 422, "invalid_request")
    payout = {"amount": "1", "destination": "VCB 1"}
    problem(shop.post("/api/v1/payouts", payout, key="r"), 409, "insufficient_balance")
    assert shop.post("/api/v1/payments", {"amount": "1", "asset": "USDC"}, key="r").is_success


def test_a_request_in_progress_is_not_done_twice(
    shop: Shop, ledger_database: DatabaseServer
) -> None:
    body = {"amount": "1000", "asset": "USDC"}
    with psycopg.connect(ledger_database.url("giovang_api")) as holder:
        holder.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended(%s || ' ' || %s, 0))",
            (shop.merchant_id, "slow"),
        )
        answer = shop.post("/api/v1/payments", body, key="slow")
        problem(answer, 409, "idempotency_key_in_progress")
        assert answer.headers["retry-after"] == "1"
    assert shop.post("/api/v1/payments", body, key="slow").status_code == 201


def test_thirty_two_clients_with_one_key_make_one_payment(
    shop: Shop, ledger_database: DatabaseServer
) -> None:
    body = {"amount": "1000", "asset": "USDC"}
    with ThreadPoolExecutor(32) as clients:
        answers = list(
            clients.map(lambda _: shop.post("/api/v1/payments", body, key="rush"), range(32))
        )
    assert {answer.status_code for answer in answers} <= {201, 409}
    ids = {answer.json()["id"] for answer in answers if answer.status_code == 201}
    assert len(ids) == 1
    with superuser(ledger_database) as database:
        counts = database.execute(
            """SELECT (SELECT count(*) FROM payments WHERE merchant_id = %(id)s),
                      (SELECT count(*) FROM merchant_events WHERE merchant_id = %(id)s),
                      (SELECT count(*) FROM audit_logs
                       WHERE merchant_id = %(id)s AND action = 'payment.created'),
                      (SELECT count(*) FROM idempotency_keys WHERE merchant_id = %(id)s)""",
            {"id": shop.merchant_id},
        ).fetchone()
    assert counts == (1, 1, 1, 1)


# Input.


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"amount": 250000, "asset": "USDC"}, "/amount"),
        ({"amount": 2.5, "asset": "USDC"}, "/amount"),
        ({"amount": "2.5", "asset": "USDC"}, "/amount"),
        ({"amount": "-1", "asset": "USDC"}, "/amount"),
        ({"amount": "1e3", "asset": "USDC"}, "/amount"),
        ({"amount": "99999999999999", "asset": "USDC"}, "/amount"),
        ({"amount": "1", "asset": "BTC"}, "/asset"),
        ({"amount": "1", "asset": "USDC", "currency": "USD"}, "/currency"),
        ({"amount": "1", "asset": "USDC", "surprise": 1}, "/surprise"),
        ({"amount": "1", "asset": "USDC", "description": "a\u0000b"}, "/description"),
        ({"amount": "1", "asset": "USDC", "metadata": {"a/b": 1}}, "/metadata/a~1b"),
        ({"amount": "1", "asset": "USDC", "metadata": {"k": "v" * 501}}, "/metadata/k"),
        ({"amount": "1", "asset": "USDC", "payer_country": "vn"}, "/payer_country"),
        ({"amount": "1", "asset": "USDC", "expires_in_s": "900"}, "/expires_in_s"),
        ({"amount": "1", "asset": "USDC", "expires_in_s": True}, "/expires_in_s"),
    ],
)
def test_bad_input_gets_one_clear_error(shop: Shop, body: dict[str, Any], pointer: str) -> None:
    answer = problem(shop.post("/api/v1/payments", body), 422, "invalid_request")
    assert pointer in {error["pointer"] for error in answer["errors"]}
    assert shop.client.get("/api/v1/payments").json()["data"] == []


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"{", 400, "malformed_request"),
        (b"\xff\xfe", 400, "malformed_request"),
        (b"[" * 60_000, 400, "malformed_request"),
        (b'{"amount": "' + b"9" * 70_000 + b'"}', 413, "body_too_large"),
        (b'{"amount": "1", "asset": "USDC", "description": "\\ud800"}', 422, "invalid_request"),
    ],
)
def test_what_is_not_json_is_refused(shop: Shop, content: bytes, status: int, code: str) -> None:
    answer = shop.client.post("/api/v1/payments", content=content, headers=KEYED_POST)
    problem(answer, status, code)


def test_a_body_without_a_length_is_limited_too(shop: Shop) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1024

    answer = shop.client.post("/api/v1/payments", content=endless(), headers=KEYED_POST)
    problem(answer, 413, "body_too_large")


def test_addresses_and_methods_that_do_not_exist(shop: Shop) -> None:
    problem(shop.client.get("/nowhere"), 404, "not_found")
    problem(shop.client.delete("/api/v1/payments"), 405, "method_not_allowed")
    problem(shop.client.get("/api/v1/payments/pay_x"), 422, "invalid_request")
    problem(shop.client.get("/demo/checkout"), 404, "not_found")


def test_lists_are_paged_by_cursor_in_both_directions(shop: Shop) -> None:
    made = [shop.create(str(1000 + n))["id"] for n in range(5)][::-1]

    def ask(query: str) -> tuple[list[str], bool]:
        body = shop.client.get(f"/api/v1/payments?{query}").json()
        return [payment["id"] for payment in body["data"]], body["has_more"]

    assert ask("") == (made, False)
    assert ask("limit=2") == (made[:2], True)
    assert ask(f"limit=2&starting_after={made[1]}") == (made[2:4], True)
    assert ask(f"limit=2&starting_after={made[3]}") == (made[4:], False)
    assert ask(f"limit=2&ending_before={made[4]}") == (made[2:4], True)
    assert ask("status=created&limit=1") == (made[:1], True)
    assert ask("status=completed") == ([], False)
    for query in ("limit=0", "limit=101", "status=lost", "starting_after=1"):
        problem(shop.client.get(f"/api/v1/payments?{query}"), 422, "invalid_request")
    both = f"starting_after={made[0]}&ending_before={made[1]}"
    problem(shop.client.get(f"/api/v1/payments?{both}"), 422, "invalid_request")


def test_lists_are_filtered(shop: Shop, ledger_database: DatabaseServer, api: ApiServer) -> None:
    first = shop.create("1000", order_id="A-1", asset="USDT")
    second = shop.create("2000", order_id="A-2", escrow=True)
    third = shop.create("3000", order_id="A-2")
    settle(api, ledger_database, third)

    def ids(**query: Any) -> list[str]:
        answer = shop.client.get("/api/v1/payments", params=query)
        assert answer.status_code == 200, answer.text
        return [payment["id"] for payment in answer.json()["data"]]

    assert ids(order_id="A-2") == [third["id"], second["id"]]
    assert ids(asset="USDT") == [first["id"]]
    assert ids(escrow="true") == [second["id"]]
    assert ids(escrow="false", order_id="A-2", status="completed") == [third["id"]]
    assert ids(exception="late") == []
    made = second["created_at"]
    assert ids(created_gte=made) == [third["id"], second["id"]]
    assert ids(created_gt=made) == [third["id"]]
    assert ids(created_lt=made) == [first["id"]]
    assert ids(created_lte=made, limit=1) == [second["id"]]
    for query in ("exception=odd", "escrow=maybe", "created_gt=soon", "order_id=%00", "asset=BTC"):
        problem(shop.client.get(f"/api/v1/payments?{query}"), 422, "invalid_request")
    twice = problem(
        shop.client.get("/api/v1/payments?status=created&status=expired&nope=1"),
        422,
        "invalid_request",
    )
    assert twice["errors"] == [
        {"detail": "no such parameter here", "pointer": "/query/nope"},
        {"detail": "give this parameter once", "pointer": "/query/status"},
    ]


def test_a_payment_is_read_with_the_parts_asked_for(
    shop: Shop, ledger_database: DatabaseServer, api: ApiServer
) -> None:
    payment = shop.create("250000")
    settle(api, ledger_database, payment)
    plain = shop.payment(payment["id"])
    parts = ["events", "refunds", "dispute", "transfers"]
    assert not set(parts) & set(plain)
    path = f"/api/v1/payments/{payment['id']}"
    shown = shop.client.get(path, params={"expand[]": parts}).json()
    assert [event["type"] for event in shown["events"]] == [
        "payment.created",
        "payment.pending",
        "payment.confirming",
        "payment.completed",
    ]
    assert shown["events"][-1]["data"]["object"] == plain
    assert (shown["refunds"], shown["dispute"]) == ([], None)
    (transfer,) = shown["transfers"]
    assert (transfer["amount"], transfer["asset"]) == ("9.560230", "USDC")
    assert transfer["payment_id"] == payment["id"]
    assert {name: shown[name] for name in plain} == plain
    listed = shop.client.get("/api/v1/payments", params={"expand[]": parts[1:]}).json()["data"]
    assert set(listed[0]) == set(plain) | {"refunds", "dispute", "transfers"}
    problem(shop.client.get(f"{path}?expand[]=secrets"), 422, "invalid_request")
    # A list has no room for events, and says so instead of leaving them out.
    problem(shop.client.get("/api/v1/payments?expand[]=events"), 422, "invalid_request")


def test_only_the_merchants_own_words_change(
    shop: Shop, api: ApiServer, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("1000", order_id="1", description="x", metadata={"a": "1", "b": "2"})
    path = f"/api/v1/payments/{payment['id']}"

    def change(body: dict[str, Any]) -> dict[str, Any]:
        answer = shop.client.patch(path, json=body)
        assert answer.status_code == 200, answer.text
        changed: dict[str, Any] = answer.json()
        return changed

    changed = change({"metadata": {"a": None, "c": "3"}, "order_id": "2"})
    assert changed["metadata"] == {"b": "2", "c": "3"}
    assert (changed["order_id"], changed["description"]) == ("2", "x")
    assert change({"description": None})["description"] is None
    assert change({"metadata": None})["metadata"] == {}
    assert change({}) == shop.payment(payment["id"])
    full = {f"k{number}": "v" * 500 for number in range(50)}
    assert change({"metadata": full})["metadata"] == full
    for body in (
        {"metadata": {"one": "more"}},
        {"metadata": {"k" * 41: "v"}},
        {"metadata": {"k": "v" * 501}},
        {"metadata": {"k": 1}},
        {"amount": "1"},
        {"status": "completed"},
        {"order_id": 7},
    ):
        problem(shop.client.patch(path, json=body), 422, "invalid_request")
    problem(api.shop().client.patch(path, json={"order_id": "3"}), 404, "not_found")
    events = shop.client.get("/api/v1/events", params={"type": "payment.updated"}).json()["data"]
    assert len(events) == 4
    settle(api, ledger_database, payment)
    assert change({"order_id": "after"})["status"] == "completed"


def test_rates_are_listed_as_a_payment_would_count_them(shop: Shop) -> None:
    listed = shop.client.get("/api/v1/rates").json()
    assert [rate["pair"] for rate in listed["data"]] == ["USDC/VND", "USDT/VND"]
    payment = shop.create("250000")
    assert listed["data"][0]["value"] == payment["rate"]["value"] == payment["rate"]["mid"]
    assert listed["data"][0]["source"] == payment["rate"]["source"] == "file"


def test_a_spread_is_booked_apart(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path: Path
) -> None:
    server = make_api(
        tmp_path,
        ledger_database,
        redis_server.url,
        rpc_url=NO_CHAIN,
        rates_sources='["static"]',
        rates_static='{"USDC/VND": "26150", "USDT/VND": "26120"}',
        rates_spread_bps="50",
    )
    server.start()
    shop = server.shop()
    payment = shop.create("250000")
    assert (payment["rate"]["value"], payment["rate"]["mid"]) == ("26019.25", "26150")
    settle(server, ledger_database, payment)
    with superuser(ledger_database) as database:
        booked = database.execute(
            """SELECT a.kind, p.amount_minor FROM ledger_postings AS p
               JOIN ledger_accounts AS a ON a.id = p.account_id
               JOIN ledger_entries AS e ON e.id = p.entry_id
               WHERE e.payment_id = %s AND p.asset = 'VND'""",
            (payment["id"],),
        ).fetchall()
    assert dict(booked) == {
        "liquidity": 251_256,
        "merchant_available": -247_500,
        "fee_revenue": -2_500,
        "spread_revenue": -1_256,
    }
    server.stop()


def test_health_documentation_and_a_clean_end(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path: Path
) -> None:
    server = make_api(tmp_path, ledger_database, redis_server.url, rpc_url=NO_CHAIN, demo="true")
    server.start()
    assert server.process is not None
    with httpx.Client(base_url=server.base_url) as client:
        assert client.get("/healthz").json() == {
            "status": "ok",
            "postgresql": True,
            "redis": True,
        }
        document = client.get("/openapi.json").json()
        create = document["paths"]["/api/v1/payments"]["post"]
        assert {"201", "400", "401", "403", "409", "422", "503"} <= set(create["responses"])
        assert "application/problem+json" in create["responses"]["422"]["content"]
        assert client.get("/docs").status_code == 200
        problem(client.get("/demo/checkout"), 404, "not_found")
    process = server.process
    process.terminate()
    assert process.wait(timeout=60) == 0


def test_the_payers_page_shows_a_payment_once(shop: Shop) -> None:
    payment = shop.create()
    path = f"/order/{payment['id']}"
    for language, words in (("vi", "Chờ thanh toán"), ("en-GB", "Waiting for payment")):
        page = httpx.get(f"{shop.client.base_url}{path}", headers={"Accept-Language": language})
        assert page.status_code == 200
        assert words in page.text
        assert payment["asset_amount"] in page.text
        assert "default-src 'none'" in page.headers["content-security-policy"]
    assert shop.payment(payment["id"])["status"] == "pending"
    missing = httpx.get(f"{shop.client.base_url}/order/{new_id('pay')}")
    problem(missing, 404, "not_found")


def test_logs_carry_neither_keys_nor_rows(api: ApiServer, shop: Shop) -> None:
    payment = shop.create(description="a very private breakfast")
    log = api.log.read_text()
    assert '"route":"/api/v1/payments"' in log
    for secret in (
        shop.key,
        api.admin_key,
        "private breakfast",
        payment["id"],
        payment["reference"],
    ):
        assert secret not in log
