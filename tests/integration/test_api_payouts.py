"""Payouts over HTTP: asked for, approved by a second person, sent, settled; and who races."""

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.database import Database, Identity, new_id
from api.payouts.service import expire_payouts
from tests.fixtures import books
from tests.fixtures.api import ApiServer, Shop, make_api, make_watcher, problem, until
from tests.fixtures.books import auditor, fund, standing, value
from tests.fixtures.services import BrokerServer, DatabaseServer
from tests.fixtures.sessions import admin_of, signed_in, staff_of

NO_CHAIN = "http://127.0.0.1:9"
BODY = {"amount": "100000", "asset": "VND", "destination": "VCB 0071000123456"}
FUNDS = 990_000


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
def shop(api: ApiServer, ledger_database: DatabaseServer) -> Shop:
    """A shop with 990,000 dong of test money."""
    shop = api.shop()
    fund(ledger_database, shop.merchant_id, FUNDS)
    return shop


@pytest.fixture
def owner(api: ApiServer, ledger_database: DatabaseServer, shop: Shop) -> httpx.Client:
    return staff_of(api, ledger_database, shop)


@pytest.fixture(scope="module")
def admin(api: ApiServer, ledger_database: DatabaseServer) -> httpx.Client:
    return admin_of(api, ledger_database)


def send(
    client: httpx.Client,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    key: str | None = None,
    method: str = "POST",
) -> httpx.Response:
    """Send a step under an idempotency key, a new one unless given."""
    headers = {"Idempotency-Key": key or secrets.token_hex(8)}
    return client.request(method, f"/api/v1{path}", json=body, headers=headers)


def ask(client: httpx.Client, amount: int = 100_000) -> dict[str, Any]:
    """Request a payout and return it."""
    answer = send(client, "/payouts", {**BODY, "amount": str(amount)})
    assert answer.status_code == 201, answer.text
    payout: dict[str, Any] = answer.json()
    return payout


def done(answer: httpx.Response) -> dict[str, Any]:
    """Return what a step answered."""
    assert answer.status_code == 200, answer.text
    payout: dict[str, Any] = answer.json()
    return payout


def approve(client: httpx.Client, payout_id: str, revision: int = 1) -> httpx.Response:
    return send(client, f"/payouts/{payout_id}/approve", {"revision": revision})


def sent(shop: Shop, owner: httpx.Client, admin: httpx.Client) -> str:
    """Return the id of a payout that is on its way."""
    payout_id: str = ask(shop.client)["id"]
    done(approve(owner, payout_id))
    done(send(admin, f"/admin/payouts/{payout_id}/send", {"bank_reference": "FT1"}))
    return payout_id


def at_once(work: Callable[[int], httpx.Response], count: int) -> list[int]:
    """Send `count` requests at once and return their statuses, sorted."""
    with ThreadPoolExecutor(count) as clients:
        return sorted(answer.status_code for answer in clients.map(work, range(count)))


def test_a_payout_from_request_to_settlement(
    api: ApiServer, ledger_database: DatabaseServer, shop: Shop, admin: httpx.Client
) -> None:
    approver_id, approver = signed_in(api, ledger_database, "staff", "owner", shop)
    payout = ask(shop.client)
    assert (
        payout
        | {
            "status": "requested",
            "amount": "100000",
            "destination": "VCB 0071000123456",
            "mode": "test",
            "revision": 1,
            "approved_by": None,
        }
        == payout
    )
    assert payout["requested_by"].startswith("key_")
    assert standing(ledger_database, shop.merchant_id) == (FUNDS, 100_000)

    approved = done(approve(approver, payout["id"]))
    assert (approved["status"], approved["approved_by"]) == ("approved", approver_id)
    step = f"/admin/payouts/{payout['id']}"
    moving = done(send(admin, f"{step}/send", {"bank_reference": "FT26326000123456"}))
    assert (moving["status"], moving["bank_reference"]) == ("sent", "FT26326000123456")
    assert standing(ledger_database, shop.merchant_id) == (FUNDS, 100_000)
    assert done(send(admin, f"{step}/settle"))["status"] == "settled"
    assert standing(ledger_database, shop.merchant_id) == (FUNDS - 100_000, 0)

    read = shop.client.get(f"/api/v1/payouts/{payout['id']}").json()
    assert (read["status"], read["approved_by"]) == ("settled", approver_id)
    with auditor(ledger_database) as database:
        assert database.execute(
            """SELECT p.amount_minor, a.kind, e.description
               FROM ledger_entries AS e JOIN ledger_postings AS p ON p.entry_id = e.id
               JOIN ledger_accounts AS a ON a.id = p.account_id
               WHERE e.payout_id = %s AND e.kind = 'payout_completed' ORDER BY p.seq""",
            (payout["id"],),
        ).fetchall() == [
            (100_000, "merchant_available", "FT26326000123456"),
            (-100_000, "liquidity", "FT26326000123456"),
        ]
        assert [
            kind
            for (kind,) in database.execute(
                "SELECT type FROM merchant_events WHERE payout_id = %s ORDER BY seq",
                (payout["id"],),
            )
        ] == ["payout.requested", "payout.approved", "payout.sent", "payout.settled"]
        trail = database.execute(
            """SELECT action, left(actor, 3), request_id LIKE 'req_%%' FROM audit_logs
               WHERE subject_id = %s ORDER BY id""",
            (payout["id"],),
        ).fetchall()
    assert trail == [
        ("payout.created", "key", True),
        ("payout.approved", "stf", True),
        ("payout.sent", "adm", True),
        ("payout.settled", "adm", True),
    ]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"amount": "0"}, "/amount"),
        ({"amount": "1.5"}, "/amount"),
        ({"amount": 5}, "/amount"),
        ({"amount": "-5"}, "/amount"),
        ({"asset": "USDT"}, "/asset"),
        ({"destination": ""}, "/destination"),
        ({"destination": "a\nb"}, "/destination"),
        ({"to": "me"}, "/to"),
    ],
)
def test_what_is_not_a_payout_is_refused(shop: Shop, change: dict[str, Any], pointer: str) -> None:
    refusal = problem(send(shop.client, "/payouts", {**BODY, **change}), 422, "invalid_request")
    assert [error["pointer"] for error in refusal["errors"]] == [pointer]
    answer = shop.client.post("/api/v1/payouts", json=BODY)
    problem(answer, 400, "idempotency_key_missing")


def test_only_another_person_with_the_right_approves(
    api: ApiServer,
    ledger_database: DatabaseServer,
    shop: Shop,
    owner: httpx.Client,
    admin: httpx.Client,
) -> None:
    by_key, by_owner = ask(shop.client)["id"], ask(owner)["id"]
    problem(approve(shop.client, by_key), 403, "not_permitted")
    for role in ("viewer", "manager"):
        lesser = staff_of(api, ledger_database, shop, role)
        problem(approve(lesser, by_key), 403, "not_permitted")
    refusal = problem(approve(owner, by_owner), 403, "not_permitted")
    assert "another person" in refusal["detail"]
    with api.admin() as bootstrap:
        problem(approve(bootstrap, by_key), 401, "not_authenticated")
    assert done(approve(owner, by_key))["status"] == "approved"
    assert done(approve(admin, by_owner))["approved_by"].startswith("adm_")


def test_an_approval_is_of_the_revision_that_was_read(
    api: ApiServer, ledger_database: DatabaseServer, shop: Shop, owner: httpx.Client
) -> None:
    payout_id = ask(shop.client)["id"]
    path = f"/payouts/{payout_id}"
    amended = done(send(owner, path, {"amount": "400000"}, method="PATCH"))
    assert (amended["revision"], amended["amount"]) == (2, "400000")
    assert amended["requested_by"].startswith("stf_")
    assert standing(ledger_database, shop.merchant_id) == (FUNDS, 400_000)

    second = staff_of(api, ledger_database, shop)
    refusal = problem(approve(second, payout_id, 1), 409, "conflict")
    assert "revision 2" in refusal["detail"]
    problem(approve(owner, payout_id, 2), 403, "not_permitted")
    old = {"destination": "x", "revision": 1}
    problem(send(owner, path, old, method="PATCH"), 409, "conflict")
    same = {"amount": "400000", "destination": BODY["destination"], "revision": 2}
    assert done(send(shop.client, path, same, method="PATCH"))["revision"] == 2
    over = {"amount": str(FUNDS + 1)}
    problem(send(owner, path, over, method="PATCH"), 409, "insufficient_balance")
    assert standing(ledger_database, shop.merchant_id) == (FUNDS, 400_000)

    assert done(approve(second, payout_id, 2))["status"] == "approved"
    late = {"destination": "elsewhere"}
    problem(send(owner, path, late, method="PATCH"), 409, "conflict")
    assert done(send(owner, f"{path}/cancel"))["status"] == "cancelled"
    assert standing(ledger_database, shop.merchant_id) == (FUNDS, 0)


def test_what_is_sent_is_not_cancelled_and_what_fails_gives_back(
    ledger_database: DatabaseServer, shop: Shop, owner: httpx.Client, admin: httpx.Client
) -> None:
    payout_id = ask(shop.client)["id"]
    step = f"/admin/payouts/{payout_id}"
    problem(send(admin, f"{step}/send", {"bank_reference": "FT1"}), 409, "conflict")
    problem(send(admin, f"{step}/settle"), 409, "conflict")
    done(approve(owner, payout_id))
    done(send(admin, f"{step}/send", {"bank_reference": "FT1"}))
    problem(send(shop.client, f"/payouts/{payout_id}/cancel"), 409, "conflict")
    problem(send(admin, f"{step}/fail", {}), 422, "invalid_request")
    failed = done(send(admin, f"{step}/fail", {"reason": "no such account"}))
    assert (failed["status"], failed["reason"]) == ("failed", "no such account")
    problem(send(admin, f"{step}/settle"), 409, "conflict")
    assert standing(ledger_database, shop.merchant_id) == (FUNDS, 0)


def test_a_step_sent_again_is_answered_again(
    ledger_database: DatabaseServer, shop: Shop, owner: httpx.Client, admin: httpx.Client
) -> None:
    key = secrets.token_hex(8)
    first, again = (send(shop.client, "/payouts", BODY, key=key) for _ in range(2))
    assert (again.text, again.headers["idempotent-replayed"]) == (first.text, "true")
    other = {**BODY, "amount": "1"}
    problem(send(shop.client, "/payouts", other, key=key), 422, "idempotency_key_reused")
    payout_id = sent(shop, owner, admin)
    step = f"/admin/payouts/{payout_id}/settle"
    first, again = (send(admin, step, key=key) for _ in range(2))
    assert (again.text, again.headers["idempotent-replayed"]) == (first.text, "true")
    problem(send(admin, step), 409, "conflict")
    assert standing(ledger_database, shop.merchant_id) == (FUNDS - 100_000, 100_000)


def test_requests_at_once_never_overdraw(ledger_database: DatabaseServer, shop: Shop) -> None:
    statuses = at_once(lambda _: send(shop.client, "/payouts", BODY), 32)
    assert statuses == [201] * 9 + [409] * 23
    assert standing(ledger_database, shop.merchant_id) == (FUNDS, 900_000)


def test_one_request_sent_by_many_at_once_is_one(
    ledger_database: DatabaseServer, shop: Shop
) -> None:
    statuses = at_once(lambda _: send(shop.client, "/payouts", BODY, key="one"), 32)
    assert set(statuses) <= {201, 409}
    assert 201 in statuses
    assert standing(ledger_database, shop.merchant_id) == (FUNDS, 100_000)


def test_approvals_at_once_are_one(
    api: ApiServer, ledger_database: DatabaseServer, shop: Shop
) -> None:
    payout_id = ask(shop.client)["id"]
    owners = [staff_of(api, ledger_database, shop) for _ in range(8)]
    assert at_once(lambda n: approve(owners[n], payout_id), 8) == [200] + [409] * 7


def test_approval_and_cancellation_at_once(
    ledger_database: DatabaseServer, shop: Shop, owner: httpx.Client
) -> None:
    for _ in range(6):
        payout_id = ask(shop.client)["id"]
        cancel = f"/payouts/{payout_id}/cancel"
        statuses = at_once(
            lambda n: send(shop.client, cancel) if n else approve(owner, payout_id),  # noqa: B023
            2,
        )
        # An approved payout can still be cancelled; a cancelled one is not approved.
        assert statuses in ([200, 200], [200, 409])
        assert shop.client.get(f"/api/v1/payouts/{payout_id}").json()["status"] == "cancelled"
    assert standing(ledger_database, shop.merchant_id) == (FUNDS, 0)


def test_amendment_and_approval_at_once(
    ledger_database: DatabaseServer, shop: Shop, owner: httpx.Client
) -> None:
    held = 0
    for _ in range(6):
        payout_id = ask(shop.client, 10_000)["id"]
        more = {"amount": "20000"}
        statuses = at_once(
            lambda n: (
                send(shop.client, f"/payouts/{payout_id}", more, method="PATCH")  # noqa: B023
                if n
                else approve(owner, payout_id)  # noqa: B023
            ),
            2,
        )
        assert statuses == [200, 409]
        payout = shop.client.get(f"/api/v1/payouts/{payout_id}").json()
        assert (payout["status"], payout["amount"]) in {
            ("approved", "10000"),
            ("requested", "20000"),
        }
        held += int(payout["amount"])
    assert standing(ledger_database, shop.merchant_id) == (FUNDS, held)


def test_settlements_at_once_book_one_entry(
    ledger_database: DatabaseServer, shop: Shop, owner: httpx.Client, admin: httpx.Client
) -> None:
    payout_id = sent(shop, owner, admin)
    step = f"/admin/payouts/{payout_id}/settle"
    assert at_once(lambda _: send(admin, step), 8) == [200] + [409] * 7
    with auditor(ledger_database) as database:
        entries = "SELECT count(*) FROM ledger_entries WHERE payout_id = %s"
        assert value(database, entries, payout_id) == 1
    assert standing(ledger_database, shop.merchant_id) == (FUNDS - 100_000, 0)


def test_another_merchants_payouts_do_not_exist(
    api: ApiServer, ledger_database: DatabaseServer, shop: Shop, owner: httpx.Client
) -> None:
    payout_id = ask(shop.client)["id"]
    stranger = api.shop()
    strangers = staff_of(api, ledger_database, stranger)
    in_live = {"Giovang-Mode": "live"}
    path = f"/payouts/{payout_id}"
    for answer in (
        stranger.client.get(f"/api/v1{path}"),
        strangers.get(f"/api/v1{path}"),
        send(stranger.client, path, {"amount": "1"}, method="PATCH"),
        send(stranger.client, f"{path}/cancel"),
        approve(strangers, payout_id),
        owner.get(f"/api/v1{path}", headers=in_live),
        owner.get(f"/api/v1/payouts/{new_id('pyo')}"),
    ):
        problem(answer, 404, "not_found")
    for client in (stranger.client, strangers):
        assert client.get("/api/v1/payouts").json()["data"] == []
    # Nor is the queue of admins for staff or keys.
    for client in (shop.client, owner, stranger.client):
        assert client.get("/api/v1/admin/payouts").status_code in {401, 403}
        assert send(client, f"/admin{path}/settle").status_code in {401, 403}
    assert shop.client.get(f"/api/v1{path}").json()["status"] == "requested"


def test_lists_are_filtered_and_turned(
    shop: Shop, owner: httpx.Client, admin: httpx.Client
) -> None:
    ids = [ask(shop.client, 1_000)["id"] for _ in range(5)][::-1]
    done(approve(owner, ids[1]))

    def read(client: httpx.Client, query: str, path: str = "/payouts") -> tuple[list[str], bool]:
        answer = client.get(f"/api/v1{path}?{query}").json()
        return [payout["id"] for payout in answer["data"]], answer["has_more"]

    assert read(shop.client, "limit=2") == (ids[:2], True)
    assert read(shop.client, f"limit=2&starting_after={ids[1]}") == (ids[2:4], True)
    assert read(shop.client, f"limit=2&starting_after={ids[3]}") == (ids[4:], False)
    assert read(shop.client, f"limit=2&ending_before={ids[3]}") == (ids[1:3], True)
    assert read(owner, "status=approved") == ([ids[1]], False)
    queued, _ = read(admin, "status=approved&mode=test&limit=100", "/admin/payouts")
    assert ids[1] in queued
    assert not {*ids} & {*read(admin, "limit=100", "/admin/payouts")[0]}
    problem(shop.client.get("/api/v1/payouts?status=gone"), 422, "invalid_request")
    problem(shop.client.get("/api/v1/payouts?starting_after=x"), 422, "invalid_request")


async def test_requests_that_nobody_approves_expire(
    ledger_database: DatabaseServer, shop: Shop, owner: httpx.Client
) -> None:
    due, kept, approved, amended = (ask(shop.client, 1_000)["id"] for _ in range(4))
    done(approve(owner, approved))
    with auditor(ledger_database) as database:
        lasts = value(
            database,
            "SELECT (expires_at - created_at)::text FROM ledger_holds WHERE payout_id = %s",
            due,
        )
        assert lasts == "7 days"
        database.execute(
            "UPDATE ledger_holds SET expires_at = now() WHERE payout_id = ANY (%s)",
            ([due, approved, amended],),
        )
    done(send(shop.client, f"/payouts/{amended}", {"amount": "2000"}, method="PATCH"))
    url = ledger_database.url("giovang_watcher")
    async with Database(url, application_name="test", pool_size=1) as watcher:
        for expected in (1, 0):
            async with watcher.unit_of_work(Identity("watcher")) as unit:
                assert await expire_payouts(unit, 200) == expected
    statuses = {
        payout["id"]: (payout["status"], payout["reason"])
        for payout in shop.client.get("/api/v1/payouts").json()["data"]
    }
    assert statuses == {
        due: ("cancelled", "expired"),
        kept: ("requested", None),
        approved: ("approved", None),
        amended: ("requested", None),
    }
    assert standing(ledger_database, shop.merchant_id) == (FUNDS, 4_000)


def test_the_watcher_cancels_what_expired_while_the_chain_does_not_answer(
    api: ApiServer, ledger_database: DatabaseServer, shop: Shop
) -> None:
    payout_id = ask(shop.client)["id"]
    with auditor(ledger_database) as database:
        database.execute(
            "UPDATE ledger_holds SET expires_at = now() WHERE payout_id = %s", (payout_id,)
        )
    watcher = make_watcher(api)
    watcher.start()
    try:

        def cancelled() -> bool | None:
            payout = shop.client.get(f"/api/v1/payouts/{payout_id}").json()
            return (payout["status"], payout["reason"]) == ("cancelled", "expired") or None

        until(cancelled, what="the expiry of a payout")
    finally:
        watcher.stop()
    assert standing(ledger_database, shop.merchant_id) == (FUNDS, 0)
