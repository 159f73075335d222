"""Confirmation policies over HTTP, money booked before it is final, and what a loss costs."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from api.chain.model import Commitment, KnownTransfer, Receipt
from api.database import new_id
from api.payments import settlement
from tests.fixtures.api import ApiServer, Shop, as_the_watcher_does, problem, superuser
from tests.fixtures.desk import (
    GRACE_S,
    admin_at_work,
    assert_sound,
    balance,
    book,
    entries_of,
    make_desk_api,
    minor,
    receipt,
)
from tests.fixtures.services import BrokerServer, DatabaseServer

PATH = "/api/v1/admin/confirmation-policies"
AMOUNT, FEE = 250_000, 2_500
EARNED = AMOUNT - FEE


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


def set_policy(admin: httpx.Client, commitment: str, up_to: int, **about: Any) -> dict[str, Any]:
    body = {"commitment": commitment, "up_to": str(up_to), "reason": "a test", **about}
    answer = admin.put(PATH, json=body)
    assert answer.status_code == 200, answer.text
    policy: dict[str, Any] = answer.json()
    return policy


@pytest.fixture
def trusted(admin: httpx.Client, shop: Shop) -> Shop:
    """A shop whose money counts at confirmed."""
    set_policy(admin, "confirmed", AMOUNT, merchant_id=shop.merchant_id)
    return shop


def exact(api: ApiServer, payment: dict[str, Any], **more: Any) -> Receipt:
    return receipt(api, minor(payment["asset_amount"]), payment, **more)


def confirm(database: DatabaseServer, came: Receipt) -> None:
    """Have the watcher hear of a receipt at confirmed."""
    work = partial(
        settlement.settle, receipt=came, grace_s=GRACE_S, commitment=Commitment.CONFIRMED
    )
    as_the_watcher_does(database, work)


def lose(database: DatabaseServer, came: Receipt, payment: dict[str, Any]) -> None:
    """Have the watcher find that the chain finalized past a receipt without it."""
    transfer = KnownTransfer(
        came.signature, came.account.address, payment["id"], "confirmed", came.slot
    )
    work = partial(settlement.vanish, transfer=transfer, grace_s=GRACE_S)
    as_the_watcher_does(database, work)


def state(shop: Shop, payment: dict[str, Any]) -> tuple[str, str | None]:
    now = shop.payment(payment["id"])
    return now["status"], now["exception"]


def lost(database: DatabaseServer, payment: dict[str, Any]) -> int:
    """Return the dong that the platform bears for a payment."""
    return sum(legs.get("chain_loss VND", 0) for _, legs in entries_of(database, payment["id"]))


def test_without_a_policy_money_waits_until_it_is_final(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    payment = shop.create(str(AMOUNT))
    came = exact(api, payment)
    confirm(ledger_database, came)
    assert state(shop, payment) == ("confirming", None)
    assert entries_of(ledger_database, payment["id"]) == []
    book(ledger_database, came)
    assert state(shop, payment) == ("completed", None)


def test_the_policy_that_says_most_decides(
    api: ApiServer, admin: httpx.Client, shop: Shop, ledger_database: DatabaseServer
) -> None:
    mine = {"merchant_id": shop.merchant_id}
    set_policy(admin, "confirmed", AMOUNT, **mine)
    for_all = set_policy(admin, "finalized", AMOUNT * 4, mode="test", asset="USDC")
    small, large = shop.create(str(AMOUNT)), shop.create(str(AMOUNT + 1))
    for payment in (small, large):
        confirm(ledger_database, exact(api, payment))
    assert (state(shop, small)[0], state(shop, large)[0]) == ("completed", "confirming")
    assert admin.delete(f"{PATH}/{for_all['id']}").status_code == 204
    narrower = set_policy(admin, "finalized", AMOUNT // 2, **mine)
    test_only = set_policy(admin, "finalized", AMOUNT * 2, mode="test", **mine)
    smaller, again = shop.create(str(AMOUNT // 4)), shop.create(str(AMOUNT))
    for payment in (smaller, again):
        confirm(ledger_database, exact(api, payment))
    assert (state(shop, smaller)[0], state(shop, again)[0]) == ("confirming", "confirming")
    assert admin.delete(f"{PATH}/{test_only['id']}").status_code == 204
    assert admin.delete(f"{PATH}/{narrower['id']}").status_code == 204
    last = shop.create(str(AMOUNT // 4))
    confirm(ledger_database, exact(api, last))
    assert state(shop, last)[0] == "completed"
    problem(admin.delete(f"{PATH}/{narrower['id']}"), 404, "not_found")


def test_policies_are_an_admins_and_every_change_is_audited(
    api: ApiServer, admin: httpx.Client, shop: Shop, ledger_database: DatabaseServer
) -> None:
    body = {"commitment": "confirmed", "up_to": "1000", "reason": "quick"}
    problem(shop.client.put(PATH, json=body), 401, "not_authenticated")
    problem(shop.client.get(PATH), 401, "not_authenticated")
    with api.admin() as bootstrap:
        problem(bootstrap.put(PATH, json=body), 403, "not_permitted")
    problem(admin.put(PATH, json={**body, "merchant_id": new_id("mer")}), 404, "not_found")
    assert admin.put(PATH, json={**body, "commitment": "processed"}).status_code == 422
    set_one = set_policy(admin, "confirmed", 1_000, merchant_id=shop.merchant_id)
    changed = set_policy(admin, "finalized", 1_000, merchant_id=shop.merchant_id)
    assert changed["id"] == set_one["id"]
    other = api.shop()
    seen = {one["id"] for one in shop.client.get("/api/v1/confirmation-policies").json()["data"]}
    theirs = {one["id"] for one in other.client.get("/api/v1/confirmation-policies").json()["data"]}
    assert changed["id"] in seen
    assert changed["id"] not in theirs
    assert admin.delete(f"{PATH}/{changed['id']}").status_code == 204
    with superuser(ledger_database) as sql:
        trail = sql.execute(
            "SELECT action, left(actor, 3), merchant_id FROM audit_logs WHERE subject_id = %s"
            " ORDER BY id",
            (changed["id"],),
        ).fetchall()
    assert trail == [
        (f"confirmation_policy.{verb}", "adm", shop.merchant_id)
        for verb in ("created", "updated", "deleted")
    ]


def test_what_is_booked_at_confirmed_is_only_marked_once_it_is_final(
    api: ApiServer, trusted: Shop, ledger_database: DatabaseServer
) -> None:
    payment = trusted.create(str(AMOUNT))
    came = exact(api, payment)
    confirm(ledger_database, came)
    confirm(ledger_database, came)
    assert state(trusted, payment) == ("completed", None)
    assert trusted.available() == EARNED
    refund = trusted.post(f"/api/v1/payments/{payment['id']}/refunds", {"amount": "1000"})
    assert "final" in problem(refund, 409, "conflict")["detail"]
    book(ledger_database, came, came)
    assert [kind for kind, _ in entries_of(ledger_database, payment["id"])] == ["payment_completed"]
    assert trusted.available() == EARNED
    again = trusted.post(f"/api/v1/payments/{payment['id']}/refunds", {"amount": "1000"})
    assert again.status_code == 201


@pytest.mark.parametrize(("paid_out", "borne"), [(0, 0), (100_000, 100_000), (EARNED, EARNED)])
def test_a_loss_is_taken_from_what_the_merchant_has_and_the_rest_is_ours(
    api: ApiServer, trusted: Shop, ledger_database: DatabaseServer, paid_out: int, borne: int
) -> None:
    payment = trusted.create(str(AMOUNT))
    came = exact(api, payment)
    confirm(ledger_database, came)
    if paid_out:
        body = {"amount": str(paid_out), "asset": "VND", "destination": "VCB 0071000"}
        assert trusted.post("/api/v1/payouts", body).status_code == 201
    lose(ledger_database, came, payment)
    lose(ledger_database, came, payment)
    now = trusted.payment(payment["id"])
    assert (now["status"], now["received"], now["settled"]) == ("failed", "0.000000", "0")
    assert now["completed_at"] is None
    assert lost(ledger_database, payment) == borne
    # What is promised to a payout stays, and nothing else does.
    assert balance(ledger_database, trusted, "merchant_available") == (paid_out, paid_out)
    # The same chain transaction lands again, and is final there.
    book(ledger_database, came)
    assert state(trusted, payment) == ("completed", None)
    assert lost(ledger_database, payment) == 0
    assert balance(ledger_database, trusted, "merchant_available") == (EARNED, paid_out)
    assert trusted.payment(payment["id"])["completed_at"] is not None


def test_what_came_on_top_pays_once_the_first_is_lost(
    api: ApiServer, trusted: Shop, ledger_database: DatabaseServer
) -> None:
    payment = trusted.create(str(AMOUNT))
    first, second = exact(api, payment), exact(api, payment, slot=2)
    confirm(ledger_database, first)
    book(ledger_database, second)
    assert state(trusted, payment) == ("completed", "overpaid")
    lose(ledger_database, first, payment)
    assert state(trusted, payment) == ("completed", None)
    assert trusted.available() == EARNED
    assert balance(ledger_database, trusted, "payer_excess", "USDC") == (0, 0)
    # The first lands again after all: now it is what is too much.
    book(ledger_database, first)
    assert state(trusted, payment) == ("completed", "overpaid")
    excess = minor(payment["asset_amount"])
    assert balance(ledger_database, trusted, "payer_excess", "USDC") == (excess, 0)
    assert trusted.available() == EARNED


def test_all_that_came_on_top_is_booked_anew_once_the_first_is_lost(
    api: ApiServer, trusted: Shop, ledger_database: DatabaseServer
) -> None:
    payment = trusted.create(str(AMOUNT))
    first, second = exact(api, payment), exact(api, payment, slot=2)
    third = receipt(api, 7_000, payment, slot=3)
    confirm(ledger_database, first)
    book(ledger_database, second)
    book(ledger_database, third)
    lose(ledger_database, first, payment)
    # The second pays now; the third came on top before, and comes on top again.
    assert state(trusted, payment) == ("completed", "overpaid")
    assert trusted.available() == EARNED
    assert balance(ledger_database, trusted, "payer_excess", "USDC") == (7_000, 0)


def test_money_that_lands_elsewhere_counts_as_it_landed(
    api: ApiServer, trusted: Shop, ledger_database: DatabaseServer
) -> None:
    late, less = trusted.create(str(AMOUNT)), trusted.create(str(AMOUNT))
    for payment in (late, less):
        confirm(ledger_database, exact(api, payment, signature=payment["reference"]))
    book(ledger_database, exact(api, late, signature=late["reference"], late=True, slot=9))
    book(ledger_database, receipt(api, 5, less, signature=less["reference"], slot=9))
    assert state(trusted, late) == ("failed", "late")
    assert state(trusted, less) == ("failed", "underpaid")
    assert trusted.available() == 0


def test_escrow_and_what_is_out_of_the_ordinary_always_wait(
    api: ApiServer, trusted: Shop, ledger_database: DatabaseServer
) -> None:
    price = minor(trusted.create(str(AMOUNT))["asset_amount"])
    escrowed = trusted.create(str(AMOUNT), escrow=True)
    short, over, late = (trusted.create(str(AMOUNT)) for _ in range(3))
    confirm(ledger_database, exact(api, escrowed))
    confirm(ledger_database, receipt(api, price - 1, short))
    confirm(ledger_database, receipt(api, price + 1, over))
    confirm(ledger_database, exact(api, late, late=True))
    for payment in (escrowed, short, over, late):
        assert entries_of(ledger_database, payment["id"]) == []
        assert state(trusted, payment)[0] in {"created", "pending", "confirming"}


def test_late_money_of_a_confirming_payment_lets_it_expire(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    payment = shop.create(str(AMOUNT))
    confirm(ledger_database, exact(api, payment, signature=payment["reference"]))
    assert state(shop, payment) == ("confirming", None)
    # A fork puts it into a block after the payment's end; it must not be confirming for ever.
    book(ledger_database, exact(api, payment, signature=payment["reference"], late=True, slot=9))
    assert state(shop, payment) == ("pending", "late")
