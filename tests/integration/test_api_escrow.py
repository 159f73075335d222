"""Escrow over HTTP: held, delivered, released by payer or time, disputed, resolved; each once."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from api.contract import Asset
from api.errors import Conflict
from api.payments import escrow
from tests.fixtures.api import ApiServer, Shop, as_the_watcher_does, problem, superuser
from tests.fixtures.desk import (
    admin_at_work,
    assert_sound,
    at_once,
    balance,
    book,
    entries_of,
    fake_signature,
    holds_of,
    make_desk_api,
    pay,
    receipt,
)
from tests.fixtures.payer import TOKENS, actions, hold, post, proof
from tests.fixtures.services import BrokerServer, DatabaseServer


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
    yield api.shop()
    assert_sound(ledger_database)


@pytest.fixture
def held(api: ApiServer, shop: Shop, ledger_database: DatabaseServer) -> dict[str, Any]:
    """Return the mission's example: 100 USDT at 23,000 dong, paid and held in escrow."""
    return hold(api, shop, ledger_database)


def let_the_day_come(database: DatabaseServer, payment_id: str) -> None:
    with superuser(database) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            "UPDATE payments SET escrow_release_due_at = now() - interval '1 s' WHERE id = %s",
            (payment_id,),
        )


def test_the_missions_example_is_booked_to_the_unit(
    api: ApiServer, shop: Shop, held: dict[str, Any], ledger_database: DatabaseServer
) -> None:
    payment_id = held["id"]
    assert (held["status"], held["settled"], held["fee"]) == ("escrow_held", "2300000", "0")
    assert entries_of(ledger_database, payment_id) == [
        (
            "escrow_held",
            {
                "crypto_pool USDT": TOKENS,
                "liquidity USDT": -TOKENS,
                "liquidity VND": 2_300_000,
                "escrow_liability_pool VND": -2_300_000,
            },
        )
    ]
    assert holds_of(ledger_database, payment_id) == [("pending", 2_300_000)]
    assert balance(ledger_database, shop, "escrow_liability_pool") == (2_300_000, 2_300_000)
    answer = post(api, payment_id, "release", **proof(api, payment_id, "release"))
    assert answer.status_code == 303, answer.text
    assert answer.headers["location"] == f"/order/{payment_id}?lang=en"
    done = shop.payment(payment_id)
    assert (done["status"], done["fee"]) == ("completed", "23000")
    assert done["escrow_released_by"] == "payer"
    assert done["escrow_released_at"] is not None
    assert entries_of(ledger_database, payment_id)[1] == (
        "escrow_released",
        {
            "escrow_liability_pool VND": 2_300_000,
            "merchant_available VND": -2_277_000,
            "fee_revenue VND": -23_000,
        },
    )
    assert holds_of(ledger_database, payment_id) == [("posted", 2_300_000)]
    assert balance(ledger_database, shop, "merchant_available") == (2_277_000, 0)
    assert balance(ledger_database, shop, "escrow_liability_pool") == (0, 0)
    events = shop.client.get("/api/v1/events", params={"payment_id": payment_id}).json()["data"]
    assert [event["type"] for event in events][::-1] == [
        "payment.created",
        "payment.pending",
        "payment.confirming",
        "payment.escrow_held",
        "payment.awaiting_release",
        "payment.completed",
    ]


def test_delivery_starts_the_days_and_the_watcher_releases_on_the_day(
    api: ApiServer, shop: Shop, held: dict[str, Any], ledger_database: DatabaseServer
) -> None:
    payment_id = held["id"]
    delivered = shop.post(f"/api/v1/payments/{payment_id}/deliver", {})
    assert delivered.status_code == 200, delivered.text
    assert delivered.json()["status"] == "awaiting_release"
    due = delivered.json()["escrow_release_due_at"]
    assert due is not None
    again = shop.post(f"/api/v1/payments/{payment_id}/deliver", {})
    assert (again.status_code, again.json()["escrow_release_due_at"]) == (200, due)
    assert actions(api, payment_id) == {"release", "dispute"}

    def by_timer() -> None:
        as_the_watcher_does(
            ledger_database,
            lambda unit: escrow.release(unit, payment_id, released_by=escrow.TIMER),
        )

    with pytest.raises(Conflict, match="has not come"):
        by_timer()
    let_the_day_come(ledger_database, payment_id)
    by_timer()
    by_timer()
    done = shop.payment(payment_id)
    assert (done["status"], done["escrow_released_by"]) == ("completed", "timer")
    assert balance(ledger_database, shop, "merchant_available") == (2_277_000, 0)


def test_sixteen_releases_and_a_dispute_have_one_effect(
    api: ApiServer, shop: Shop, held: dict[str, Any], ledger_database: DatabaseServer
) -> None:
    payment_id = held["id"]
    release = proof(api, payment_id, "release")
    dispute = {**proof(api, payment_id, "dispute"), "reason": "changed my mind"}

    def act(number: int) -> httpx.Response:
        if number == 7:
            return post(api, payment_id, "dispute", **dispute)
        return post(api, payment_id, "release", **release)

    answers = at_once(act)
    status = shop.payment(payment_id)["status"]
    if status == "completed":
        assert [answer.status_code for answer in answers].count(409) == 1
        assert balance(ledger_database, shop, "merchant_available") == (2_277_000, 0)
    else:
        assert status == "disputed"
        assert {answer.status_code for answer in answers} == {303, 409}
        assert balance(ledger_database, shop, "escrow_liability_pool") == (2_300_000, 2_300_000)
    kinds = [kind for kind, _ in entries_of(ledger_database, payment_id)]
    assert kinds.count("escrow_released") == (1 if status == "completed" else 0)
    assert len(holds_of(ledger_database, payment_id)) == 1


def test_sixteen_releases_release_once(
    api: ApiServer, shop: Shop, held: dict[str, Any], ledger_database: DatabaseServer
) -> None:
    payment_id = held["id"]
    release = proof(api, payment_id, "release")
    answers = at_once(lambda _: post(api, payment_id, "release", **release))
    assert {answer.status_code for answer in answers} == {303}
    assert balance(ledger_database, shop, "merchant_available") == (2_277_000, 0)
    kinds = [kind for kind, _ in entries_of(ledger_database, payment_id)]
    assert kinds == ["escrow_held", "escrow_released"]


@pytest.mark.parametrize(
    ("outcome", "merchant_amount", "merchant_gets", "fee", "tokens_back"),
    [
        ("merchant", None, 2_277_000, 23_000, 0),
        ("payer", None, 0, 0, TOKENS),
        ("split", "1000000", 990_000, 10_000, 56_521_739),
    ],
)
def test_a_dispute_is_resolved_and_what_is_the_payers_goes_back(
    *,
    api: ApiServer,
    shop: Shop,
    admin: httpx.Client,
    held: dict[str, Any],
    ledger_database: DatabaseServer,
    outcome: str,
    merchant_amount: str | None,
    merchant_gets: int,
    fee: int,
    tokens_back: int,
) -> None:
    payment_id = held["id"]
    form = {**proof(api, payment_id, "dispute"), "reason": "vỏ hộp\r\nrỗng"}
    assert post(api, payment_id, "dispute", **form).status_code == 303
    assert actions(api, payment_id) == set()
    expanded = shop.client.get(f"/api/v1/payments/{payment_id}?expand[]=dispute").json()
    assert expanded["dispute"]["opened_by"] == "payer"
    assert expanded["dispute"]["reason"] == "vỏ hộp rỗng"
    admin.headers["Giovang-Mode"] = "test"
    waiting = admin.get("/api/v1/admin/disputes", params={"limit": 100}).json()["data"]
    assert expanded["dispute"] in waiting
    body = {"outcome": outcome, "merchant_amount": merchant_amount, "reason": "ảnh chụp rõ ràng"}
    resolved = admin.post(f"/api/v1/admin/payments/{payment_id}/resolve", json=body)
    assert resolved.status_code == 200, resolved.text
    payment = resolved.json()
    assert (payment["status"], payment["settled"]) == ("resolved", str(merchant_gets + fee))
    assert payment["fee"] == str(fee)
    assert balance(ledger_database, shop, "merchant_available") == (merchant_gets, 0)
    assert balance(ledger_database, shop, "payer_excess", "USDT") == (tokens_back, 0)
    again = admin.post(f"/api/v1/admin/payments/{payment_id}/resolve", json=body)
    problem(again, 409, "conflict")
    waiting = admin.get("/api/v1/admin/disputes", params={"limit": 100}).json()["data"]
    assert payment_id not in {one["payment_id"] for one in waiting}
    refund = shop.post(f"/api/v1/payments/{payment_id}/refunds", {"source": "excess"})
    if not tokens_back:
        problem(refund, 409, "conflict")
    else:
        assert refund.status_code == 201, refund.text
        sent = admin.post(
            f"/api/v1/admin/refunds/{refund.json()['id']}/complete",
            json={"signature": fake_signature()},
        )
        assert sent.status_code == 200, sent.text
        assert balance(ledger_database, shop, "payer_excess", "USDT") == (0, 0)
    # The fee stays the house's, so the shop needs other money to give back the whole.
    pay(api, ledger_database, shop.create("100000"))
    rest = shop.post(f"/api/v1/payments/{payment_id}/refunds", {})
    if merchant_gets:
        # And the shop may still give back what it got, down to the last token.
        assert minor_of(rest.json()["token_amount"]) == TOKENS - tokens_back
    else:
        problem(rest, 409, "conflict")


def minor_of(text: str) -> int:
    return int(text.replace(".", ""))


@pytest.mark.parametrize(
    "body",
    [
        {"outcome": "split", "reason": "x"},
        {"outcome": "split", "merchant_amount": "2300000", "reason": "x"},
        {"outcome": "merchant", "merchant_amount": "5", "reason": "x"},
        {"outcome": "merchant", "reason": ""},
        {"outcome": "nobody", "reason": "x"},
    ],
)
def test_a_resolution_that_makes_no_sense_is_refused(
    shop: Shop, admin: httpx.Client, held: dict[str, Any], body: dict[str, Any]
) -> None:
    payment_id = held["id"]
    opened = shop.post(f"/api/v1/payments/{payment_id}/dispute", {"reason": "khách đổi ý"})
    assert opened.json()["status"] == "disputed"
    answer = admin.post(f"/api/v1/admin/payments/{payment_id}/resolve", json=body)
    problem(answer, 422, "invalid_request")
    assert shop.payment(payment_id)["status"] == "disputed"


def test_steps_out_of_order_are_refused(
    api: ApiServer, shop: Shop, admin: httpx.Client, ledger_database: DatabaseServer
) -> None:
    plain = shop.create("100000")
    pay(api, ledger_database, plain)
    unpaid = shop.create("2300000", asset="USDT", escrow=True)
    for payment in (plain, unpaid):
        path = f"/api/v1/payments/{payment['id']}"
        problem(shop.post(f"{path}/deliver", {}), 409, "conflict")
        problem(shop.post(f"{path}/dispute", {"reason": "x"}), 409, "conflict")
        body = {"outcome": "payer", "reason": "x"}
        answer = admin.post(f"/api/v1/admin/payments/{payment['id']}/resolve", json=body)
        problem(answer, 409, "conflict")


def test_another_merchant_finds_no_such_payment(
    api: ApiServer, held: dict[str, Any], shop: Shop
) -> None:
    stranger = api.shop()
    path = f"/api/v1/payments/{held['id']}"
    problem(stranger.post(f"{path}/deliver", {}), 404, "not_found")
    problem(stranger.post(f"{path}/dispute", {"reason": "x"}), 404, "not_found")
    problem(stranger.post(f"{path}/accept", {}), 404, "not_found")
    problem(stranger.client.get(path), 404, "not_found")
    for client in (stranger.client, shop.client):
        answer = client.post(
            f"/api/v1/admin/payments/{held['id']}/resolve",
            json={"outcome": "merchant", "reason": "x"},
        )
        assert answer.status_code in {401, 403}
    assert shop.payment(held["id"])["status"] == "escrow_held"


def test_too_much_for_an_escrow_payment_is_the_payers(
    api: ApiServer, shop: Shop, held: dict[str, Any], ledger_database: DatabaseServer
) -> None:
    book(ledger_database, receipt(api, 5_000_000, held, asset=Asset.USDT))
    payment = shop.payment(held["id"])
    assert (payment["status"], payment["exception"]) == ("escrow_held", "overpaid")
    assert payment["amount_due"] == "-5.000000"
    assert balance(ledger_database, shop, "payer_excess", "USDT") == (5_000_000, 0)
