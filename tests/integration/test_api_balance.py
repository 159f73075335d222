"""Balances and statements over HTTP, and what admins may correct and prove."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.database import new_id
from tests.fixtures import books
from tests.fixtures.api import ApiServer, Shop, make_api, problem
from tests.fixtures.books import ask_payout, auditor, fund, sign_in, standing, value
from tests.fixtures.services import BrokerServer, DatabaseServer
from tests.fixtures.sessions import admin_of, staff_of

NO_CHAIN = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def api(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path_factory: Any
) -> Iterator[ApiServer]:
    folder: Path = tmp_path_factory.mktemp("api")
    server = make_api(folder, ledger_database, redis_server.url, rpc_url=NO_CHAIN)
    server.start()
    yield server
    server.stop()
    books.assert_books_balance(ledger_database)


@pytest.fixture
def shop(api: ApiServer) -> Shop:
    return api.shop()


@pytest.fixture(scope="module")
def admin(api: ApiServer, ledger_database: DatabaseServer) -> httpx.Client:
    return admin_of(api, ledger_database)


def balances(client: httpx.Client, **query: str) -> dict[str, dict[str, str]]:
    """Return the balances that a client sees, by asset."""
    answer = client.get("/api/v1/balance", params=query)
    assert answer.status_code == 200, answer.text
    return {balance.pop("asset"): balance for balance in answer.json()["balances"]}


def amounts(**differing: str) -> dict[str, str]:
    """Return a balance in dong that is zero but for these."""
    names = ("posted", "pending", "available", "escrow", "payer_excess")
    return {**dict.fromkeys(names, "0"), **differing}


def test_a_balance_says_what_is_held_and_what_is_free(
    api: ApiServer, ledger_database: DatabaseServer, shop: Shop
) -> None:
    assert balances(shop.client) == {}
    before = datetime.now(UTC).isoformat()
    fund(ledger_database, shop.merchant_id, 900_000)
    fund(ledger_database, shop.merchant_id, 7, mode="live")
    with sign_in(ledger_database, "giovang_api", shop.merchant_id) as tenant:
        ask_payout(tenant, shop.merchant_id, 250_000)
    at_payout = datetime.now(UTC).isoformat()
    books.in_escrow(ledger_database, shop.merchant_id, 50_000)
    fund(ledger_database, shop.merchant_id, 1_500_000, kind="payer_excess", asset="USDT")

    dong = amounts(posted="900000", pending="250000", available="650000")
    usdt = dict.fromkeys(amounts(), "0.000000") | {"payer_excess": "1.500000"}
    assert balances(shop.client) == {"VND": dong | {"escrow": "50000"}, "USDT": usdt}
    assert balances(shop.client, at=at_payout)["VND"] == dong
    assert balances(shop.client, at=before)["VND"] == amounts()

    # A person sees the mode asked for, and live where none is.
    person = staff_of(api, ledger_database, shop)
    assert balances(person)["VND"] == dong | {"escrow": "50000"}
    del person.headers["Giovang-Mode"]
    assert balances(person) == {"VND": amounts(posted="7", available="7")}
    naive = shop.client.get("/api/v1/balance", params={"at": "2026-01-01T00:00:00"})
    problem(naive, 422, "invalid_request")


def test_a_statement_accounts_for_the_balance_line_by_line(
    ledger_database: DatabaseServer, shop: Shop
) -> None:
    for amount in (500_000, 20_000, 3_000):
        fund(ledger_database, shop.merchant_id, amount)
    middle = datetime.now(UTC).isoformat()
    payment = books.paid(ledger_database, shop.merchant_id, 400)

    def read(**query: str) -> dict[str, Any]:
        answer = shop.client.get("/api/v1/balance/statement", params=query)
        assert answer.status_code == 200, answer.text
        page: dict[str, Any] = answer.json()
        return page

    whole = read()
    assert [(line["amount"], line["balance"]) for line in whole["data"]] == [
        ("500000", "500000"),
        ("20000", "520000"),
        ("3000", "523000"),
        ("400", "523400"),
    ]
    last = whole["data"][-1]
    assert (last["kind"], last["payment_id"]) == ("payment_completed", payment)
    assert last["id"].startswith(f"{last['entry_id']}.")
    assert balances(shop.client)["VND"]["posted"] == last["balance"]

    first = read(limit="3")
    assert (first["data"], first["has_more"]) == (whole["data"][:3], True)
    rest = read(limit="3", starting_after=first["data"][-1]["id"])
    assert (rest["data"], rest["has_more"]) == (whole["data"][3:], False)
    assert read(since=middle)["data"] == whole["data"][3:]
    assert read(until=middle)["data"] == whole["data"][:3]
    assert read(account="payer_excess", asset="USDC")["data"] == []
    for wrong in (
        {"starting_after": f"{new_id('ent')}.1"},
        {"starting_after": last["entry_id"]},
        {"starting_after": last["id"], "asset": "USDC"},
        {"account": "fee_revenue"},
        {"asset": "EUR"},
        {"limit": "0"},
        {"since": "yesterday"},
    ):
        answer = shop.client.get("/api/v1/balance/statement", params=wrong)
        problem(answer, 422, "invalid_request")


def test_nobody_sees_another_merchants_money(
    api: ApiServer, ledger_database: DatabaseServer, shop: Shop
) -> None:
    fund(ledger_database, shop.merchant_id, 900_000)
    line = shop.client.get("/api/v1/balance/statement").json()["data"][0]["id"]
    stranger = api.shop()
    assert balances(stranger.client) == {}
    assert stranger.client.get("/api/v1/balance/statement").json()["data"] == []
    after = stranger.client.get(f"/api/v1/balance/statement?starting_after={line}")
    problem(after, 422, "invalid_request")


def test_an_entry_is_undone_once_by_an_admin(
    api: ApiServer, ledger_database: DatabaseServer, shop: Shop, admin: httpx.Client
) -> None:
    entry_id = fund(ledger_database, shop.merchant_id, 900_000)
    path = f"/api/v1/admin/entries/{entry_id}/reverse"
    reason = {"reason": "booked for the wrong merchant"}
    for client in (shop.client, staff_of(api, ledger_database, shop)):
        assert client.post(path, json=reason).status_code in {401, 403}
    problem(admin.post(path, json={}), 422, "invalid_request")
    first, again = (admin.post(path, json=reason).json() for _ in range(2))
    assert first == again
    assert (first["kind"], first["reverses_id"]) == ("reversal", entry_id)
    assert first["description"] == reason["reason"]
    assert standing(ledger_database, shop.merchant_id) == (0, 0)
    with auditor(ledger_database) as database:
        actor = value(database, "SELECT actor FROM audit_logs WHERE subject_id = %s", first["id"])
    assert actor.startswith("adm_")

    spent = fund(ledger_database, shop.merchant_id, 1_000)
    with sign_in(ledger_database, "giovang_api", shop.merchant_id) as tenant:
        ask_payout(tenant, shop.merchant_id, 1_000)
    answer = admin.post(f"/api/v1/admin/entries/{spent}/reverse", json=reason)
    problem(answer, 409, "insufficient_balance")
    answer = admin.post(f"/api/v1/admin/entries/{new_id('ent')}/reverse", json=reason)
    problem(answer, 404, "not_found")


def test_the_trial_balance_is_zero_for_each_asset(
    api: ApiServer, ledger_database: DatabaseServer, shop: Shop, admin: httpx.Client
) -> None:
    books.paid(ledger_database, shop.merchant_id, 400)
    fund(ledger_database, shop.merchant_id, 31, mode="live")
    for mode in ("test", "live"):
        trial = admin.get(f"/api/v1/admin/trial-balance?mode={mode}").json()
        assert trial["is_balanced"] is True
        assert {total["posted"] for total in trial["sums"]} <= {"0", "0.00", "0.000000"}
        owed = {line["kind"]: line["posted"] for line in trial["data"] if line["asset"] == "VND"}
        with auditor(ledger_database) as database:
            recounted = value(
                database,
                """SELECT sum(p.amount_minor)::text FROM ledger_postings AS p
                   JOIN ledger_accounts AS a ON a.id = p.account_id
                   WHERE a.mode = %s AND a.kind = 'merchant_available' AND a.asset = 'VND'""",
                mode,
            )
        assert owed["merchant_available"] == recounted
    for client in (shop.client, staff_of(api, ledger_database, shop)):
        assert client.get("/api/v1/admin/trial-balance").status_code in {401, 403}
