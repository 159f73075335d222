"""Refunds of settled payments over HTTP: whole and in parts, sent or given up, never twice."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from api.database import new_id
from tests.fixtures.api import ApiServer, Shop, problem
from tests.fixtures.desk import (
    PAYER,
    admin_at_work,
    assert_sound,
    at_once,
    balance,
    entries_of,
    fake_signature,
    holds_of,
    make_desk_api,
    minor,
    pay,
)
from tests.fixtures.services import BrokerServer, DatabaseServer

PRICE = 9_560_230


@pytest.fixture(scope="module")
def api(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path_factory: Any
) -> Iterator[ApiServer]:
    server = make_desk_api(tmp_path_factory.mktemp("api"), ledger_database, redis_server)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def admin(api: ApiServer) -> httpx.Client:
    return admin_at_work(api)


@pytest.fixture
def shop(api: ApiServer, ledger_database: DatabaseServer) -> Iterator[Shop]:
    """Return a shop without a fee, so that it has what it refunds."""
    yield api.shop(fee_bps=0)
    assert_sound(ledger_database)


@pytest.fixture
def paid(api: ApiServer, shop: Shop, ledger_database: DatabaseServer) -> dict[str, Any]:
    payment = shop.create("250000")
    pay(api, ledger_database, payment)
    return shop.payment(payment["id"])


def ask(shop: Shop, payment: dict[str, Any], **body: Any) -> httpx.Response:
    return shop.post(f"/api/v1/payments/{payment['id']}/refunds", body)


def complete(admin: httpx.Client, refund_id: str, signature: str | None = None) -> httpx.Response:
    body = {"signature": signature or fake_signature()}
    return admin.post(f"/api/v1/admin/refunds/{refund_id}/complete", json=body)


def test_parts_of_a_payment_go_back_until_nothing_is_left(
    shop: Shop, admin: httpx.Client, paid: dict[str, Any], ledger_database: DatabaseServer
) -> None:
    first = ask(shop, paid, amount="83333", reason="một ly").json()
    assert (first["status"], first["source"], first["amount"]) == ("requested", "payment", "83333")
    assert first["token_amount"] == "3.186730"
    assert (first["destination"], first["signature"]) == (PAYER, None)
    assert balance(ledger_database, shop, "merchant_available") == (250_000, 83_333)
    second = ask(shop, paid, amount="83333").json()
    problem(ask(shop, paid, amount="83335"), 409, "refund_exceeds_payment")
    third = ask(shop, paid).json()
    assert third["amount"] == "83334"
    problem(ask(shop, paid), 409, "refund_exceeds_payment")
    refunds = [first, second, third]
    assert sum(minor(one["token_amount"]) for one in refunds) == PRICE
    for one in refunds:
        sent = complete(admin, one["id"])
        assert sent.status_code == 200, sent.text
        assert holds_of(ledger_database, one["id"]) == [("posted", int(one["amount"]))]
    assert balance(ledger_database, shop, "merchant_available") == (0, 0)
    assert entries_of(ledger_database, paid["id"])[-1] == (
        "refund_completed",
        {
            "merchant_available VND": 83_334,
            "liquidity VND": -83_334,
            "liquidity USDC": minor(third["token_amount"]),
            "crypto_pool USDC": -minor(third["token_amount"]),
        },
    )
    listed = shop.client.get("/api/v1/refunds").json()
    assert [one["id"] for one in listed["data"]] == [one["id"] for one in refunds][::-1]
    assert {one["status"] for one in listed["data"]} == {"completed"}


def test_a_refund_given_up_frees_its_money(
    shop: Shop, admin: httpx.Client, paid: dict[str, Any], ledger_database: DatabaseServer
) -> None:
    asked = ask(shop, paid).json()
    failed = admin.post(f"/api/v1/admin/refunds/{asked['id']}/fail", json={"reason": "ví đã đóng"})
    assert failed.status_code == 200, failed.text
    assert failed.json()["failure_reason"] == "ví đã đóng"
    assert holds_of(ledger_database, asked["id"]) == [("voided", 250_000)]
    assert balance(ledger_database, shop, "merchant_available") == (250_000, 0)
    problem(complete(admin, asked["id"]), 409, "conflict")
    again = admin.post(f"/api/v1/admin/refunds/{asked['id']}/fail", json={"reason": "x"})
    problem(again, 409, "conflict")
    elsewhere = ask(shop, paid, destination="7xKXtg2CW87d97TXJSDpbD5jBkheTqA83TZRuJosgAsU")
    assert elsewhere.json()["destination"] == "7xKXtg2CW87d97TXJSDpbD5jBkheTqA83TZRuJosgAsU"
    assert minor(elsewhere.json()["token_amount"]) == PRICE


def test_sixteen_refunds_of_the_whole_are_one(
    shop: Shop, paid: dict[str, Any], ledger_database: DatabaseServer
) -> None:
    answers = at_once(lambda _: ask(shop, paid))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 15
    assert balance(ledger_database, shop, "merchant_available") == (250_000, 250_000)


def test_sixteen_parts_are_never_more_than_the_whole(
    shop: Shop, paid: dict[str, Any], ledger_database: DatabaseServer
) -> None:
    answers = at_once(lambda _: ask(shop, paid, amount="60000"))
    assert sorted(answer.status_code for answer in answers) == [201] * 4 + [409] * 12
    assert balance(ledger_database, shop, "merchant_available") == (250_000, 240_000)


def test_a_refund_is_sent_once_by_one_signature(
    shop: Shop, admin: httpx.Client, paid: dict[str, Any], ledger_database: DatabaseServer
) -> None:
    one, other = (ask(shop, paid, amount="100000").json()["id"] for _ in range(2))
    signature = fake_signature()
    answers = at_once(lambda _: complete(admin, one, signature))
    assert {answer.status_code for answer in answers} == {200}
    kinds = [kind for kind, _ in entries_of(ledger_database, paid["id"])]
    assert kinds == ["payment_completed", "refund_completed"]
    problem(complete(admin, one), 409, "conflict")
    problem(complete(admin, other, signature), 409, "conflict")
    rivals = at_once(lambda _: complete(admin, other))
    assert sorted(answer.status_code for answer in rivals) == [200] + [409] * 15
    assert balance(ledger_database, shop, "merchant_available") == (50_000, 0)


def test_completed_or_failed_never_both(
    shop: Shop, admin: httpx.Client, paid: dict[str, Any], ledger_database: DatabaseServer
) -> None:
    refund_id = ask(shop, paid).json()["id"]

    def end(number: int) -> httpx.Response:
        if number % 2:
            return complete(admin, refund_id)
        body = {"reason": "thôi"}
        return admin.post(f"/api/v1/admin/refunds/{refund_id}/fail", json=body)

    answers = at_once(end)
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 15
    status = shop.client.get(f"/api/v1/refunds/{refund_id}").json()["status"]
    left = 250_000 if status == "failed" else 0
    assert balance(ledger_database, shop, "merchant_available") == (left, 0)


def test_the_same_key_asks_once(shop: Shop, paid: dict[str, Any]) -> None:
    path = f"/api/v1/payments/{paid['id']}/refunds"
    answers = at_once(lambda _: shop.post(path, {"amount": "1000"}, key="refund-1"), 32)
    assert {answer.status_code for answer in answers} <= {201, 409}
    listed = shop.client.get("/api/v1/refunds", params={"payment_id": paid["id"]}).json()
    assert len(listed["data"]) == 1
    assert shop.post(path, {"amount": "1000"}, key="refund-1").headers["idempotent-replayed"]
    problem(shop.post(path, {"amount": "2"}, key="refund-1"), 422, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"amount": "0"}, 422, "invalid_request"),
        ({"amount": "1.5"}, 422, "invalid_request"),
        ({"amount": "-1"}, 422, "invalid_request"),
        ({"amount": 1000}, 422, "invalid_request"),
        ({"amount": "250001"}, 409, "refund_exceeds_payment"),
        ({"source": "excess"}, 409, "conflict"),
        ({"source": "suspense"}, 409, "conflict"),
        ({"source": "elsewhere"}, 422, "invalid_request"),
        ({"destination": "0x00"}, 422, "invalid_request"),
    ],
)
def test_a_refund_that_makes_no_sense_is_refused(
    shop: Shop, paid: dict[str, Any], body: dict[str, Any], status: int, code: str
) -> None:
    problem(ask(shop, paid, **body), status, code)
    assert shop.client.get("/api/v1/refunds").json()["data"] == []


def test_an_unpaid_payment_returns_nothing(shop: Shop) -> None:
    payment = shop.create("250000")
    problem(ask(shop, payment), 422, "invalid_request")
    known = ask(shop, payment, destination=PAYER)
    problem(known, 409, "conflict")


def test_money_that_was_spent_cannot_go_back(
    api: ApiServer, ledger_database: DatabaseServer
) -> None:
    shop = api.shop(fee_bps=100)
    payment = shop.create("250000")
    pay(api, ledger_database, payment)
    problem(ask(shop, payment), 409, "insufficient_balance")
    assert ask(shop, payment, amount="247500").status_code == 201


def test_refunds_are_their_merchants_and_modes(
    api: ApiServer, shop: Shop, paid: dict[str, Any], admin: httpx.Client
) -> None:
    refund = ask(shop, paid, amount="1000").json()
    stranger = api.shop()
    problem(ask(stranger, paid, amount="1000"), 404, "not_found")
    problem(stranger.client.get(f"/api/v1/refunds/{refund['id']}"), 404, "not_found")
    assert stranger.client.get("/api/v1/refunds").json()["data"] == []
    assert shop.client.get(f"/api/v1/refunds/{refund['id']}").json() == refund
    with api.admin() as first_admin:
        for client in (shop.client, stranger.client, first_admin):
            for step, body in (
                ("complete", {"signature": fake_signature()}),
                ("fail", {"reason": "x"}),
            ):
                path = f"/api/v1/admin/refunds/{refund['id']}/{step}"
                assert client.post(path, json=body).status_code in {401, 403}
    problem(complete(admin, new_id("rfd")), 404, "not_found")
    headers = {"Giovang-Mode": "test"}
    query = {"status": "requested", "limit": "1"}
    to_send = admin.get("/api/v1/admin/refunds", params=query, headers=headers).json()
    assert to_send["data"] == [refund]
    live = admin.get("/api/v1/admin/refunds", headers={"Giovang-Mode": "live"}).json()
    assert live["data"] == []
    expanded = shop.client.get("/api/v1/payments", params={"expand[]": "refunds"}).json()["data"]
    assert expanded[0]["refunds"] == [refund]


def test_the_other_mode_of_a_merchant_sees_nothing_of_this_one(
    api: ApiServer, shop: Shop, paid: dict[str, Any]
) -> None:
    refund = ask(shop, paid, amount="1000").json()
    with api.admin() as first_admin:
        path = f"/api/v1/merchants/{shop.merchant_id}/api-keys"
        key = first_admin.post(path, json={"mode": "live"}).json()["key"]
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=api.base_url, headers=headers, timeout=30) as client:
        live = Shop(shop.merchant_id, key, client)
        problem(ask(live, paid, amount="1000"), 404, "not_found")
        problem(client.get(f"/api/v1/refunds/{refund['id']}"), 404, "not_found")
        problem(client.get(f"/api/v1/payments/{paid['id']}"), 404, "not_found")
        change = client.patch(f"/api/v1/payments/{paid['id']}", json={"order_id": "1"})
        problem(change, 404, "not_found")
        for path in ("refunds", "payments", "events"):
            assert client.get(f"/api/v1/{path}").json()["data"] == []
        first = live.create("1000")
        (event,) = client.get("/api/v1/events").json()["data"]
        assert (event["seq"], event["mode"]) == (1, "live")
        assert event["data"]["object"] == first


def test_refunds_are_paged_and_filtered(shop: Shop, paid: dict[str, Any]) -> None:
    made = [ask(shop, paid, amount=str(100 + n)).json()["id"] for n in range(4)][::-1]

    def page(**query: Any) -> tuple[list[str], bool]:
        body = shop.client.get("/api/v1/refunds", params=query).json()
        return [one["id"] for one in body["data"]], body["has_more"]

    assert page() == (made, False)
    assert page(limit=2) == (made[:2], True)
    assert page(limit=2, starting_after=made[1]) == (made[2:], False)
    assert page(limit=2, ending_before=made[3]) == (made[1:3], True)
    assert page(status="completed") == ([], False)
    assert page(status="requested", limit=1) == (made[:1], True)
    assert page(payment_id=new_id("pay")) == ([], False)
    problem(shop.client.get("/api/v1/refunds?starting_after=x"), 422, "invalid_request")
