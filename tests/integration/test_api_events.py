"""Events over HTTP: gap-free, in order, the same in a list and alone, and nobody else's."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import pytest

from tests.fixtures.api import ApiServer, Shop, as_tenant, problem
from tests.fixtures.desk import (
    admin_at_work,
    assert_sound,
    fake_signature,
    make_desk_api,
    pay,
)
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
    yield api.shop(fee_bps=0)
    assert_sound(ledger_database)


def ask(shop: Shop, **query: Any) -> tuple[list[dict[str, Any]], bool]:
    answer = shop.client.get("/api/v1/events", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"], answer.json()["has_more"]


def test_every_step_is_an_event_with_its_subject_as_it_was(
    api: ApiServer, shop: Shop, admin: httpx.Client, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000", metadata={"bàn": "7"})
    pay(api, ledger_database, payment)
    refund = shop.post(f"/api/v1/payments/{payment['id']}/refunds", {"amount": "50000"}).json()
    completed = admin.post(
        f"/api/v1/admin/refunds/{refund['id']}/complete", json={"signature": fake_signature()}
    ).json()
    payout = {"amount": "1000", "destination": "VCB 0071000123456"}
    asked_payout = shop.post("/api/v1/payouts", payout).json()
    events, has_more = ask(shop, order="oldest_first")
    assert has_more is False
    assert [event["seq"] for event in events] == list(range(1, 8))
    assert [event["type"] for event in events] == [
        "payment.created",
        "payment.pending",
        "payment.confirming",
        "payment.completed",
        "refund.requested",
        "refund.completed",
        "payout.requested",
    ]
    subjects = [event["data"]["object"] for event in events]
    assert subjects[0] == payment
    assert subjects[3] == shop.payment(payment["id"])
    assert subjects[4] == refund
    assert subjects[5] == completed
    assert subjects[6] == asked_payout
    for before, after in pairwise(events):
        assert before["created_at"] <= after["created_at"]
    for event in events:
        assert (event["object"], event["mode"]) == ("event", "test")
        assert shop.client.get(f"/api/v1/events/{event['id']}").json() == event


def test_pages_go_both_ways_by_id_and_by_number(shop: Shop) -> None:
    for number in range(5):
        shop.create(str(1000 + number))
    events, _ = ask(shop)
    assert [event["seq"] for event in events] == [5, 4, 3, 2, 1]

    def page(**query: Any) -> tuple[list[int], bool]:
        found, has_more = ask(shop, **query)
        return [event["seq"] for event in found], has_more

    third = events[2]["id"]
    assert page(limit=2) == ([5, 4], True)
    for cursor in (third, "3"):
        assert page(limit=2, starting_after=cursor) == ([2, 1], False)
        assert page(limit=1, ending_before=cursor) == ([4], True)
        assert page(order="oldest_first", starting_after=cursor) == ([4, 5], False)
        assert page(order="oldest_first", ending_before=cursor, limit=1) == ([2], True)
    assert page(order="oldest_first", limit=3) == ([1, 2, 3], True)
    assert page(order="oldest_first", starting_after="0") == ([1, 2, 3, 4, 5], False)
    assert page(starting_after="99") == ([5, 4, 3, 2, 1], False)
    first = events[-1]["data"]["object"]["id"]
    assert page(payment_id=first) == ([1], False)
    assert page(type="payment.created", limit=1) == ([5], True)
    assert page(type="payout.settled") == ([], False)


def test_bad_questions_are_refused(api: ApiServer, shop: Shop) -> None:
    shop.create()
    stranger = api.shop()
    stranger.create()
    theirs = ask(stranger)[0][0]["id"]
    for query in (
        "limit=0",
        "limit=101",
        "order=random",
        "type=drop",
        "type=payment.paid",
        "type=payment.created&type=payment.completed",
        "starting_after=pay_x",
        "starting_after=-1",
        f"starting_after={'9' * 19}",
        "starting_after=1&ending_before=2",
        f"starting_after={theirs}",
    ):
        problem(shop.client.get(f"/api/v1/events?{query}"), 422, "invalid_request")
    problem(shop.client.get(f"/api/v1/events/{theirs}"), 404, "not_found")
    problem(httpx.get(f"{api.base_url}/api/v1/events"), 401, "not_authenticated")
    assert {event["seq"] for event in ask(stranger)[0]} == {1}


def test_numbers_have_no_gaps_whoever_writes_at_once(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    def work(number: int) -> None:
        payment = shop.create(str(10_000 + number))
        refused = shop.post(f"/api/v1/payments/{payment['id']}/refunds", {"amount": "1"})
        assert refused.status_code == 422
        pay(api, ledger_database, payment)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))
    seen: list[int] = []
    while True:
        found, has_more = ask(
            shop, order="oldest_first", limit=7, starting_after=seen[-1] if seen else 0
        )
        seen += [event["seq"] for event in found]
        if not has_more:
            break
    assert seen == list(range(1, 16 * 4 + 1))


def test_nobody_writes_an_event_by_hand(shop: Shop, ledger_database: DatabaseServer) -> None:
    shop.create()
    with as_tenant(ledger_database, shop.merchant_id) as database:
        counted = database.execute("SELECT count(*) FROM merchant_events").fetchone()
        assert counted == (1,)
        for attack in (
            "DELETE FROM merchant_events",
            "UPDATE merchant_events SET type = 'payment.completed'",
            "UPDATE merchant_event_counters SET last_seq = 0",
        ):
            with pytest.raises(Exception, match="permission denied"):
                database.execute(attack)
