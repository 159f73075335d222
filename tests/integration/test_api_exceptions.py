"""Money that came otherwise, over HTTP: each case has an outcome, a booking and a way back."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from api.contract import Asset
from api.database import new_id
from api.payments import settlement
from tests.fixtures.api import ApiServer, Shop, as_the_watcher_does, problem, superuser
from tests.fixtures.desk import (
    GRACE_S,
    PAYER,
    admin_at_work,
    assert_sound,
    at_once,
    balance,
    book,
    end,
    entries_of,
    fake_signature,
    holds_of,
    make_desk_api,
    pay,
    receipt,
)
from tests.fixtures.services import BrokerServer, DatabaseServer

PRICE = 9_560_230  # of 250,000 dong in USDC at 26,150


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


def accept(shop: Shop, payment: dict[str, Any], **body: Any) -> httpx.Response:
    return shop.post(f"/api/v1/payments/{payment['id']}/accept", body)


def refund(shop: Shop, payment: dict[str, Any], **body: Any) -> httpx.Response:
    return shop.post(f"/api/v1/payments/{payment['id']}/refunds", body)


def send(admin: httpx.Client, refund_id: str) -> httpx.Response:
    body = {"signature": fake_signature()}
    return admin.post(f"/api/v1/admin/refunds/{refund_id}/complete", json=body)


def suspense(database: DatabaseServer, payment_id: str) -> int:
    """Return the tokens that the ledger keeps in suspense for a payment."""
    with superuser(database) as connection:
        row = connection.execute(
            """SELECT coalesce(-sum(p.amount_minor), 0)::bigint
               FROM ledger_entries AS e JOIN ledger_postings AS p ON p.entry_id = e.id
               JOIN ledger_accounts AS a ON a.id = p.account_id
               WHERE e.payment_id = %s AND a.kind = 'suspense'""",
            (payment_id,),
        ).fetchone()
    assert row is not None
    amount: int = row[0]
    return amount


# Accepted.


def test_too_little_is_accepted_after_the_end_for_what_it_is_worth(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000")
    pay(api, ledger_database, payment, 4_000_000)
    end(ledger_database, payment)
    before = shop.payment(payment["id"])
    assert (before["status"], before["exception"]) == ("expired", "underpaid")
    assert (before["amount_due"], before["settled"]) == ("5.560230", "0")
    answer = accept(shop, payment)
    assert answer.status_code == 200, answer.text
    done = answer.json()
    assert (done["status"], done["exception"]) == ("completed", "underpaid")
    assert done["exception_outcome"] == "accepted"
    assert (done["settled"], done["fee"], done["amount_due"]) == ("104600", "1046", "0.000000")
    assert entries_of(ledger_database, payment["id"])[-1] == (
        "payment_completed",
        {
            "suspense USDC": 4_000_000,
            "liquidity USDC": -4_000_000,
            "liquidity VND": 104_600,
            "merchant_available VND": -103_554,
            "fee_revenue VND": -1_046,
        },
    )
    problem(accept(shop, payment), 409, "conflict")


def test_late_money_is_accepted_at_most_for_what_was_asked(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000")
    pay(api, ledger_database, payment, PRICE + 1_000_000, late=True)
    before = shop.payment(payment["id"])
    assert (before["status"], before["exception"]) == ("expired", "late")
    assert before["received"] == "0.000000"
    done = accept(shop, payment).json()
    assert (done["status"], done["settled"]) == ("completed", "250000")
    assert (done["exception"], done["exception_outcome"]) == ("late", "accepted")
    assert (done["received"], done["amount_due"]) == ("10.560230", "-1.000000")
    assert balance(ledger_database, shop, "payer_excess", "USDC") == (1_000_000, 0)
    assert suspense(ledger_database, payment["id"]) == 0
    walked = shop.client.get(f"/api/v1/payments/{payment['id']}?expand[]=events").json()["events"]
    assert [event["type"] for event in walked][-3:] == [
        "payment.expired",
        "payment.confirming",
        "payment.completed",
    ]


def test_another_token_is_accepted_at_its_own_rate(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000")
    pay(api, ledger_database, payment, 5_000_000, asset=Asset.USDT)
    before = shop.payment(payment["id"])
    assert (before["status"], before["exception"]) == ("created", "wrong_asset")
    done = accept(shop, payment).json()
    assert (done["status"], done["settled"]) == ("completed", str(5 * 23_000))
    assert done["received"] == "0.000000"
    assert entries_of(ledger_database, payment["id"])[-1][1]["liquidity USDT"] == -5_000_000
    # What goes back later is the token that came.
    back = refund(shop, payment, amount="23000").json()
    assert (back["token"], back["token_amount"]) == ("USDT", "1.000000")


def test_two_tokens_wait_and_one_is_named(
    api: ApiServer, shop: Shop, admin: httpx.Client, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000")
    pay(api, ledger_database, payment, 4_000_000)
    pay(api, ledger_database, payment, 3_000_000, asset=Asset.USDT)
    end(ledger_database, payment)
    assert (
        "/asset" in problem(accept(shop, payment), 422, "invalid_request")["errors"][0]["pointer"]
    )
    done = accept(shop, payment, asset="USDC").json()
    assert (done["status"], done["settled"]) == ("completed", "104600")
    assert suspense(ledger_database, payment["id"]) == 3_000_000
    back = refund(shop, payment, source="suspense").json()
    assert (back["token"], back["amount"]) == ("USDT", "3.000000")
    assert send(admin, back["id"]).status_code == 200
    assert suspense(ledger_database, payment["id"]) == 0


def test_money_for_an_escrow_payment_is_accepted_into_escrow(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("2300000", asset="USDT", escrow=True)
    pay(api, ledger_database, payment, late=True)
    done = accept(shop, payment).json()
    assert (done["status"], done["settled"], done["fee"]) == ("escrow_held", "2300000", "0")
    assert holds_of(ledger_database, payment["id"]) == [("pending", 2_300_000)]


def test_nothing_is_accepted_where_nothing_waits(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    fresh, paid, dust = shop.create("250000"), shop.create("250000"), shop.create("250000")
    pay(api, ledger_database, paid)
    pay(api, ledger_database, dust, 1, late=True)
    for payment in (fresh, paid, dust):
        problem(accept(shop, payment), 409, "conflict")
    problem(accept(api.shop(), dust), 404, "not_found")
    problem(accept(shop, {"id": new_id("pay")}), 404, "not_found")


def test_sixteen_acceptances_have_one_effect(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000")
    pay(api, ledger_database, payment, late=True)
    answers = at_once(lambda _: accept(shop, payment))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 15
    kinds = [kind for kind, _ in entries_of(ledger_database, payment["id"])]
    assert kinds == ["transfer_suspended", "payment_completed"]
    assert balance(ledger_database, shop, "merchant_available") == (247_500, 0)


def test_the_same_key_accepts_once_and_says_so(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000")
    pay(api, ledger_database, payment, late=True)
    path = f"/api/v1/payments/{payment['id']}/accept"
    first, again = (shop.post(path, {}, key="accept-1") for _ in range(2))
    assert first.content == again.content
    assert again.headers["idempotent-replayed"] == "true"


# Within the merchant's tolerance.


def test_a_little_too_little_is_enough_where_the_merchant_says_so(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    with superuser(ledger_database) as connection:
        connection.execute(
            "UPDATE merchants SET tolerance_bps = 100 WHERE id = %s", (shop.merchant_id,)
        )
    payment = shop.create("250000")
    found = receipt(api, 9_500_000, payment)
    as_the_watcher_does(ledger_database, partial(settlement.see, receipt=found, grace_s=GRACE_S))
    assert shop.payment(payment["id"])["status"] == "confirming"
    book(ledger_database, found)
    done = shop.payment(payment["id"])
    assert (done["status"], done["exception"]) == ("completed", None)
    assert (done["settled"], done["amount_due"]) == ("248425", "0.000000")
    short = shop.create("250000")
    pay(api, ledger_database, short, 9_400_000)
    assert shop.payment(short["id"])["exception"] == "underpaid"


# Sent back.


def test_what_waits_goes_back_to_its_payer_and_closes_the_exception(
    api: ApiServer, shop: Shop, admin: httpx.Client, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000")
    pay(api, ledger_database, payment, 4_000_000)
    # While the payment is open the rest may still come.
    problem(refund(shop, payment, source="suspense"), 409, "conflict")
    end(ledger_database, payment)
    first = refund(shop, payment, source="suspense", amount="1.5")
    assert first.status_code == 201, first.text
    asked = first.json()
    assert (asked["amount"], asked["currency"], asked["token"]) == ("1.500000", "USDC", "USDC")
    assert asked["destination"] == PAYER
    assert asked["requested_by"].startswith("key_")
    assert holds_of(ledger_database, asked["id"]) == [("pending", 1_500_000)]
    # The rest may still be accepted, what goes back not.
    too_much = refund(shop, payment, source="suspense", amount="2.500001")
    problem(too_much, 409, "refund_exceeds_payment")
    rest = refund(shop, payment, source="suspense").json()
    assert rest["amount"] == "2.500000"
    problem(accept(shop, payment), 409, "conflict")
    assert send(admin, asked["id"]).json()["status"] == "completed"
    assert shop.payment(payment["id"])["exception_outcome"] is None
    assert send(admin, rest["id"]).json()["status"] == "completed"
    assert shop.payment(payment["id"])["exception_outcome"] == "refunded"
    assert suspense(ledger_database, payment["id"]) == 0
    assert entries_of(ledger_database, payment["id"])[-1] == (
        "refund_completed",
        {"suspense USDC": 2_500_000, "crypto_pool USDC": -2_500_000},
    )


def test_what_came_too_much_goes_back_once(
    api: ApiServer, shop: Shop, admin: httpx.Client, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000")
    pay(api, ledger_database, payment, PRICE + 1_000_000)
    assert shop.payment(payment["id"])["exception"] == "overpaid"
    answers = at_once(lambda _: refund(shop, payment, source="excess"))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 15
    assert balance(ledger_database, shop, "payer_excess", "USDC") == (1_000_000, 1_000_000)
    (asked,) = [answer.json() for answer in answers if answer.status_code == 201]
    assert send(admin, asked["id"]).status_code == 200
    assert balance(ledger_database, shop, "payer_excess", "USDC") == (0, 0)
    done = shop.payment(payment["id"])
    assert (done["exception"], done["exception_outcome"]) == ("overpaid", "refunded")
    # More of the same opens the exception again.
    pay(api, ledger_database, payment, 3)
    assert shop.payment(payment["id"])["exception_outcome"] is None


def test_accepting_and_sending_back_at_once_never_uses_money_twice(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000")
    pay(api, ledger_database, payment, late=True)

    def act(number: int) -> httpx.Response:
        if number % 2:
            return accept(shop, payment)
        return refund(shop, payment, source="suspense")

    answers = at_once(act)
    assert sum(answer.is_success for answer in answers) == 1, [a.text for a in answers]
    assert {answer.status_code for answer in answers if not answer.is_success} == {409}


# For nobody.


def suspended(api: ApiServer, database: DatabaseServer, amount: int, **more: Any) -> str:
    """Book a receipt that names nobody; return its id."""
    found = receipt(api, amount, **more)
    book(database, found)
    return f"{found.signature}:{found.account.address}"


def test_money_of_nobody_is_listed_and_assigned_once(
    api: ApiServer, shop: Shop, admin: httpx.Client, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000")
    found = [suspended(api, ledger_database, PRICE, slot=1_000 + n) for n in range(3)]
    listed = admin.get("/api/v1/admin/suspense", params={"limit": 2}).json()
    assert [one["id"] for one in listed["data"]] == found[:0:-1]
    assert listed["has_more"] is True
    rest = admin.get("/api/v1/admin/suspense", params={"starting_after": found[1]}).json()
    assert rest["data"][0]["id"] == found[0]
    back = admin.get(
        "/api/v1/admin/suspense", params={"ending_before": found[0], "limit": 1}
    ).json()
    assert [one["id"] for one in back["data"]] == [found[1]]

    def assign(number: int) -> httpx.Response:
        body = {"payment_id": payment["id"], "reason": f"khách gửi từ sàn, lần {number}"}
        return admin.post(f"/api/v1/admin/suspense/{found[0]}/assign", json=body)

    answers = at_once(assign)
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 15
    done = shop.client.get(f"/api/v1/payments/{payment['id']}?expand[]=transfers").json()
    assert (done["status"], done["settled"]) == ("completed", "250000")
    assert done["payer_address"] == PAYER
    assert [one["id"] for one in done["transfers"]] == [found[0]]
    assert suspense(ledger_database, payment["id"]) == 0
    left = admin.get("/api/v1/admin/suspense", params={"limit": 100}).json()["data"]
    assert found[0] not in {one["id"] for one in left}
    with superuser(ledger_database) as connection:
        recorded = connection.execute(
            """SELECT count(*), min(actor) FROM audit_logs
               WHERE action = 'transfer.assigned' AND subject_id = %s""",
            (found[0].partition(":")[0],),
        ).fetchone()
    assert recorded is not None
    assert recorded[0] == 1
    assert recorded[1].startswith("adm_")


def test_assigned_money_is_treated_as_if_it_had_named_the_payment(
    api: ApiServer, shop: Shop, admin: httpx.Client, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000")
    late = suspended(api, ledger_database, PRICE, late=True)
    body = {"payment_id": payment["id"], "reason": "khách gọi điện"}
    assert admin.post(f"/api/v1/admin/suspense/{late}/assign", json=body).is_success
    held = shop.payment(payment["id"])
    assert (held["status"], held["exception"]) == ("expired", "late")
    assert suspense(ledger_database, payment["id"]) == PRICE
    assert accept(shop, payment).json()["settled"] == "250000"


def test_money_of_nobody_goes_back_to_its_sender_once(
    api: ApiServer, shop: Shop, admin: httpx.Client, ledger_database: DatabaseServer
) -> None:
    found = suspended(api, ledger_database, 777)
    path = f"/api/v1/admin/suspense/{found}"
    payment = shop.create("250000")

    def act(number: int) -> httpx.Response:
        if number % 2:
            body = {"payment_id": payment["id"], "reason": "của khách này"}
            return admin.post(f"{path}/assign", json=body)
        body = {"signature": fake_signature(), "reason": "gửi nhầm"}
        return admin.post(f"{path}/return", json=body)

    answers = at_once(act)
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 15
    left = admin.get("/api/v1/admin/suspense", params={"limit": 100}).json()["data"]
    assert found not in {one["id"] for one in left}


def test_only_admins_see_and_give_away_what_is_nobodys(
    api: ApiServer, shop: Shop, admin: httpx.Client, ledger_database: DatabaseServer
) -> None:
    found = suspended(api, ledger_database, 5)
    assigned = {"payment_id": shop.create()["id"], "reason": "mine"}
    with api.admin() as first_admin:
        for client in (shop.client, first_admin):
            assert client.get("/api/v1/admin/suspense").status_code in {401, 403}
            answer = client.post(f"/api/v1/admin/suspense/{found}/assign", json=assigned)
            assert answer.status_code in {401, 403}
    missing = f"{fake_signature()}:{found.partition(':')[2]}"
    answer = admin.post(f"/api/v1/admin/suspense/{missing}/assign", json=assigned)
    problem(answer, 404, "not_found")
    body = {"payment_id": new_id("pay"), "reason": "x"}
    problem(admin.post(f"/api/v1/admin/suspense/{found}/assign", json=body), 404, "not_found")
    problem(admin.post("/api/v1/admin/suspense/x/assign", json=body), 422, "invalid_request")
