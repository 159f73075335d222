"""Staff over HTTP: sessions that rotate and end, roles, keys and settings; and who attacks."""

import base64
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from psycopg import errors as pg

from api.database import new_id
from api.security import SessionClaims, SessionSigner
from tests.fixtures.api import ApiServer, Shop, make_api, problem, superuser
from tests.fixtures.people import PASSWORD, Person
from tests.fixtures.services import BrokerServer, DatabaseServer

NO_CHAIN = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def api(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path_factory: Any
) -> Iterator[ApiServer]:
    folder: Path = tmp_path_factory.mktemp("api")
    server = make_api(
        folder,
        ledger_database,
        redis_server.url,
        rpc_url=NO_CHAIN,
        sign_in_limit_per_minute="100000",
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture
def shop(api: ApiServer) -> Shop:
    return api.shop()


def signed(api: ApiServer, **changes: Any) -> str:
    """Return a session signed by the API's own key, as a thief of the key would make it."""
    now = datetime.now(UTC).replace(microsecond=0)
    session_id = new_id("ses")
    claims = SessionClaims(
        id=session_id,
        family_id=session_id,
        person_id=new_id("stf"),
        kind="staff",
        role="owner",
        signed_in_at=now,
        expires_at=now + timedelta(hours=1),
        merchant_id=new_id("mer"),
        merchant_name="x",
    )
    signer = SessionSigner(base64.b64encode(api.session_seed).decode())
    return signer.sign(replace(claims, **changes))


# Sessions of staff.


def test_staff_call_with_their_session(shop: Shop, staff: Callable[..., Person]) -> None:
    owner = staff(shop)
    assert owner.client.get("/api/v1/merchant").json()["id"] == shop.merchant_id
    payment_id = shop.create()["id"]
    problem(owner.client.get(f"/api/v1/payments/{payment_id}"), 404, "not_found")
    in_test = {"Giovang-Mode": "test"}
    seen = owner.client.get(f"/api/v1/payments/{payment_id}", headers=in_test)
    assert seen.status_code == 200, seen.text
    answer = owner.client.get("/api/v1/payments", headers={"Giovang-Mode": "Test"})
    assert problem(answer, 422, "invalid_request")["errors"][0]["pointer"] == "/header/giovang-mode"


@pytest.mark.parametrize(
    ("role", "may_pay", "may_issue"),
    [("viewer", False, False), ("manager", True, False), ("owner", True, True)],
)
def test_roles_reach_as_far_as_they_should(
    shop: Shop, staff: Callable[..., Person], role: str, may_pay: bool, may_issue: bool
) -> None:
    person = staff(shop, role)
    assert person.client.get("/api/v1/payments").status_code == 200
    pay = person.client.post(
        "/api/v1/payments",
        json={"amount": "1000", "asset": "USDC"},
        headers={"Idempotency-Key": "k"},
    )
    issue = person.client.post("/api/v1/api-keys", json={})
    add = person.client.post(
        "/api/v1/staff", json={"email": f"{secrets.token_hex(5)}@shop.vn", "password": PASSWORD}
    )
    change = person.client.patch("/api/v1/merchant", json={"tolerance_bps": 50})
    allowed = {True: {200, 201}, False: {403}}
    assert pay.status_code in allowed[may_pay], pay.text
    for answer in (issue, add, change):
        assert answer.status_code in allowed[may_issue], answer.text


def test_only_our_own_open_sessions_count(
    api: ApiServer, shop: Shop, staff: Callable[..., Person]
) -> None:
    person = staff(shop)
    expired = datetime.now(UTC) - timedelta(seconds=1)
    thief = SessionSigner(base64.b64encode(secrets.token_bytes(32)).decode())
    ours = SessionSigner(base64.b64encode(api.session_seed).decode())
    claims = ours.prove(person.token)
    for token in (
        signed(api),
        signed(api, person_id=person.id, merchant_id=shop.merchant_id),
        ours.sign(replace(claims, expires_at=expired)),
        ours.sign(replace(claims, id=new_id("ses"))),
        thief.sign(claims),
        person.token[:-4] + "AAAA",
        person.token + "." + person.token,
        "x",
    ):
        person.client.headers["Authorization"] = f"Bearer {token}"
        problem(person.client.get("/api/v1/payments"), 401, "not_authenticated")
        problem(person.client.post("/api/v1/sessions/rotate"), 401, "not_authenticated")
    person.bear(ours.sign(claims))
    assert person.client.get("/api/v1/payments").status_code == 200


def test_a_session_is_exchanged_for_its_successor(shop: Shop, staff: Callable[..., Person]) -> None:
    person = staff(shop)
    answer = person.client.post("/api/v1/sessions/rotate")
    assert answer.status_code == 201, answer.text
    view = answer.json()
    assert view["merchant"]["id"] == shop.merchant_id
    assert view["token"] != person.token
    person.bear(view["token"])
    assert person.client.get("/api/v1/payments").status_code == 200


def test_a_session_shown_again_after_its_exchange_ends_the_family(
    shop: Shop, staff: Callable[..., Person]
) -> None:
    for reuse in ("rotate", "read"):
        person = staff(shop)
        stolen = person.token
        answer = person.client.post("/api/v1/sessions/rotate")
        successor = answer.json()["token"]
        person.bear(successor)
        assert person.client.get("/api/v1/payments").status_code == 200
        person.bear(stolen)
        if reuse == "rotate":
            problem(person.client.post("/api/v1/sessions/rotate"), 401, "not_authenticated")
        else:
            problem(person.client.get("/api/v1/payments"), 401, "not_authenticated")
        person.bear(successor)
        problem(person.client.get("/api/v1/payments"), 401, "not_authenticated")
        assert person.sign_in().status_code == 201


def test_of_two_exchanges_at_once_one_at_most_succeeds(
    shop: Shop, staff: Callable[..., Person]
) -> None:
    person = staff(shop)
    with ThreadPoolExecutor(8) as threads:
        answers = list(
            threads.map(lambda _: person.client.post("/api/v1/sessions/rotate"), range(8))
        )
    successors = [answer.json()["token"] for answer in answers if answer.status_code == 201]
    assert len(successors) == 1
    assert {answer.status_code for answer in answers} == {201, 401}
    person.bear(successors[0])
    problem(person.client.get("/api/v1/payments"), 401, "not_authenticated")


def test_a_family_ends_twelve_hours_after_signing_in(
    api: ApiServer, shop: Shop, staff: Callable[..., Person], ledger_database: DatabaseServer
) -> None:
    person = staff(shop)
    now = datetime.now(UTC).replace(microsecond=0)
    signed_in_at, session_id = now - timedelta(hours=11, minutes=30), new_id("ses")
    with superuser(ledger_database) as database:
        database.execute(
            """INSERT INTO sessions (id, family_id, kind, person_id, merchant_id, signed_in_at,
                                     expires_at)
               VALUES (%s, %s, 'staff', %s, %s, %s, %s)""",
            (session_id, session_id, person.id, shop.merchant_id, signed_in_at, now),
        )
        with pytest.raises(pg.CheckViolation):
            database.execute(
                "UPDATE sessions SET expires_at = signed_in_at + interval '13 hours' WHERE id = %s",
                (session_id,),
            )
    person.bear(
        signed(
            api,
            id=session_id,
            family_id=session_id,
            person_id=person.id,
            merchant_id=shop.merchant_id,
            signed_in_at=signed_in_at,
            expires_at=now + timedelta(minutes=1),
        )
    )
    answer = person.client.post("/api/v1/sessions/rotate")
    assert answer.status_code == 201, answer.text
    end = signed_in_at + timedelta(hours=12)
    assert datetime.fromisoformat(answer.json()["expires_at"]) == end
    assert datetime.fromisoformat(answer.json()["rotate_until"]) == end


def test_signing_out_ends_the_session_and_no_other(
    shop: Shop, staff: Callable[..., Person]
) -> None:
    person = staff(shop)
    other = person.sign_in().json()["token"]
    assert person.client.delete("/api/v1/sessions/current").status_code == 204
    problem(person.client.get("/api/v1/payments"), 401, "not_authenticated")
    problem(person.client.delete("/api/v1/sessions/current"), 401, "not_authenticated")
    person.bear(other)
    assert person.client.get("/api/v1/payments").status_code == 200


def test_what_changes_a_person_ends_their_sessions(
    api: ApiServer, shop: Shop, staff: Callable[..., Person]
) -> None:
    owner, person = staff(shop), staff(shop, "manager")
    path = f"/api/v1/staff/{person.id}"
    for change in ({"role": "viewer"}, {"password": "mật khẩu mới"}):
        changed = owner.client.patch(path, json=change)
        assert changed.status_code == 200, changed.text
        problem(person.client.get("/api/v1/payments"), 401, "not_authenticated")
        person.password = change.get("password", person.password)
        person.bear(person.sign_in().json()["token"])
        assert person.client.get("/api/v1/payments").status_code == 200
    unchanged = owner.client.patch(path, json={"role": "viewer"})
    assert unchanged.json()["role"] == "viewer"
    assert person.client.get("/api/v1/payments").status_code == 200
    body = {"email": person.email, "password": person.password, "role": "viewer"}
    with api.admin() as admin:
        assert admin.put(f"/api/v1/merchants/{shop.merchant_id}/staff", json=body).is_success
        assert person.client.get("/api/v1/payments").status_code == 200
        body["password"] = "lại một cái mới"
        assert admin.put(f"/api/v1/merchants/{shop.merchant_id}/staff", json=body).is_success
    problem(person.client.get("/api/v1/payments"), 401, "not_authenticated")
    person.password = body["password"]
    person.bear(person.sign_in().json()["token"])
    assert owner.client.delete(path).status_code == 204
    problem(person.client.get("/api/v1/payments"), 401, "not_authenticated")
    problem(person.sign_in(), 401, "not_authenticated")
    problem(owner.client.delete(path), 404, "not_found")


def test_an_owner_stays(shop: Shop, staff: Callable[..., Person]) -> None:
    owner = staff(shop)
    path = f"/api/v1/staff/{owner.id}"
    problem(owner.client.delete(path), 409, "conflict")
    problem(owner.client.patch(path, json={"role": "viewer"}), 409, "conflict")
    assert [one["id"] for one in owner.client.get("/api/v1/staff").json()["data"]] == [owner.id]


def test_signing_in_while_the_password_changes_opens_nothing_that_stays(
    shop: Shop, staff: Callable[..., Person]
) -> None:
    owner, person = staff(shop), staff(shop, "manager")

    def change(_: int) -> None:
        owner.client.patch(f"/api/v1/staff/{person.id}", json={"password": secrets.token_hex(8)})

    with ThreadPoolExecutor(8) as threads:
        attempts = [threads.submit(person.sign_in) for _ in range(6)]
        threads.submit(change, 0).result()
        answers = [attempt.result() for attempt in attempts]
    assert {answer.status_code for answer in answers} <= {201, 401}
    for answer in answers:
        if answer.status_code == 201:
            person.bear(answer.json()["token"])
            problem(person.client.get("/api/v1/payments"), 401, "not_authenticated")


# Keys and settings of one's own, and of others.


def test_owners_issue_and_revoke_their_keys(shop: Shop, staff: Callable[..., Person]) -> None:
    owner = staff(shop)
    issued = owner.client.post("/api/v1/api-keys", json={"mode": "live"})
    assert issued.status_code == 201, issued.text
    key = issued.json()
    assert key["key"].startswith("gv_live_")
    with httpx.Client(base_url=str(owner.client.base_url)) as program:
        program.headers["Authorization"] = f"Bearer {key['key']}"
        assert program.get("/api/v1/payments").status_code == 200
        listed = owner.client.get("/api/v1/api-keys", params={"limit": 1}).json()
        assert (listed["data"][0]["id"], listed["has_more"]) == (key["id"], True)
        assert "key" not in listed["data"][0]
        assert key["key"].startswith(listed["data"][0]["prefix"])
        rest = owner.client.get("/api/v1/api-keys", params={"starting_after": key["id"]}).json()
        assert (len(rest["data"]), rest["has_more"]) == (1, False)
        first_id = rest["data"][0]["id"]
        back = owner.client.get("/api/v1/api-keys", params={"ending_before": first_id}).json()
        assert [one["id"] for one in back["data"]] == [key["id"]]
        both = {"ending_before": first_id, "starting_after": key["id"]}
        problem(owner.client.get("/api/v1/api-keys", params=both), 422, "invalid_request")
        path = f"/api/v1/api-keys/{key['id']}"
        first, again = owner.client.delete(path), owner.client.delete(path)
        assert first.json() == again.json()
        assert first.json()["revoked_at"] is not None
        problem(program.get("/api/v1/payments"), 401, "not_authenticated")


def test_no_key_makes_keys_or_approves(api: ApiServer, shop: Shop) -> None:
    with api.admin() as admin:
        for scope in ("payouts:approve", "keys:write", "staff:write", "admins:write"):
            path = f"/api/v1/merchants/{shop.merchant_id}/api-keys"
            problem(admin.post(path, json={"scopes": [scope]}), 422, "invalid_request")
    problem(shop.client.post("/api/v1/api-keys", json={}), 403, "not_permitted")
    problem(shop.client.get("/api/v1/staff"), 403, "not_permitted")


def test_owners_change_their_settings_and_not_their_fee(
    shop: Shop, staff: Callable[..., Person]
) -> None:
    owner = staff(shop)
    before = owner.client.get("/api/v1/merchant").json()
    body = {"tolerance_bps": 100, "escrow_days": 3}
    after = owner.client.patch("/api/v1/merchant", json=body)
    assert after.status_code == 200, after.text
    expected = {**before, **body, "updated_at": after.json()["updated_at"]}
    assert after.json() == expected
    assert owner.client.patch("/api/v1/merchant", json=body).json() == after.json()
    for wrong in ({"fee_bps": 0}, {"tolerance_bps": 1001}, {"escrow_days": 0}, {"timezone": "X"}):
        problem(owner.client.patch("/api/v1/merchant", json=wrong), 422, "invalid_request")


def test_what_owners_set_stays_when_an_admin_puts_the_rest(
    api: ApiServer, shop: Shop, staff: Callable[..., Person]
) -> None:
    owner = staff(shop)
    owner.client.patch("/api/v1/merchant", json={"tolerance_bps": 7, "escrow_days": 9})
    with api.admin() as admin:
        body = {"name": "Mới", "trade": "cafe", "fee_bps": 50}
        put = admin.put(f"/api/v1/merchants/{shop.merchant_id}", json=body).json()
    assert (put["tolerance_bps"], put["escrow_days"], put["fee_bps"]) == (7, 9, 50)


def test_staff_reach_nothing_of_another_merchant(
    api: ApiServer, shop: Shop, staff: Callable[..., Person], ledger_database: DatabaseServer
) -> None:
    theirs = api.shop()
    victim, attacker = staff(theirs, "manager"), staff(shop)
    with superuser(ledger_database) as database:
        row = database.execute(
            "SELECT id FROM api_keys WHERE merchant_id = %s", (theirs.merchant_id,)
        ).fetchone()
    assert row is not None
    payment_id = theirs.create()["id"]
    client = attacker.client
    in_test = {"Giovang-Mode": "test"}
    for answer in (
        client.delete(f"/api/v1/api-keys/{row[0]}"),
        client.patch(f"/api/v1/staff/{victim.id}", json={"password": "của tôi rồi"}),
        client.delete(f"/api/v1/staff/{victim.id}"),
        client.get(f"/api/v1/payments/{payment_id}", headers=in_test),
    ):
        problem(answer, 404, "not_found")
    body = {"email": victim.email, "password": "của tôi rồi"}
    problem(client.post("/api/v1/staff", json=body), 409, "conflict")
    for path in ("", "/api-keys", "/staff"):
        answer = client.get(
            f"/api/v1/merchants/{theirs.merchant_id}{path}" if path else "/api/v1/merchants"
        )
        problem(answer, 403, "not_permitted")
    problem(client.get("/api/v1/admins"), 403, "not_permitted")
    assert [one["id"] for one in client.get("/api/v1/staff").json()["data"]] == [attacker.id]
    page = client.get("/api/v1/staff", params={"starting_after": victim.id}).json()
    assert {one["id"] for one in page["data"]} <= {attacker.id}
    assert theirs.client.get("/api/v1/payments").status_code == 200
    assert victim.client.get("/api/v1/payments").status_code == 200


def test_a_key_of_each_mode_has_its_own_idempotency_keys(api: ApiServer, shop: Shop) -> None:
    with api.admin() as admin:
        path = f"/api/v1/merchants/{shop.merchant_id}/api-keys"
        live_key = admin.post(path, json={"mode": "live"}).json()["key"]
    body = {"amount": "1000", "asset": "USDC"}
    in_test = shop.post("/api/v1/payments", body, key="order-1")
    shop.client.headers["Authorization"] = f"Bearer {live_key}"
    in_live = shop.post("/api/v1/payments", body, key="order-1")
    assert (in_test.status_code, in_live.status_code) == (201, 201)
    assert "idempotent-replayed" not in in_live.headers
    assert in_test.json()["id"] != in_live.json()["id"]
    again = shop.post("/api/v1/payments", body, key="order-1")
    assert again.headers["idempotent-replayed"] == "true"
    assert again.content == in_live.content


def test_a_key_answered_before_there_were_modes_is_answered_still(
    shop: Shop, ledger_database: DatabaseServer
) -> None:
    body = {"amount": "1000", "asset": "USDC"}
    first = shop.post("/api/v1/payments", body, key="old-1")
    with superuser(ledger_database) as database:
        renamed = database.execute(
            """UPDATE idempotency_keys SET key = 'old-1'
               WHERE merchant_id = %s AND key = 'test:old-1'""",
            (shop.merchant_id,),
        )
        assert renamed.rowcount == 1
    again = shop.post("/api/v1/payments", body, key="old-1")
    assert again.headers["idempotent-replayed"] == "true"
    assert again.content == first.content
    longest = "k" * 255
    assert shop.post("/api/v1/payments", body, key=longest).status_code == 201
    assert "idempotent-replayed" in shop.post("/api/v1/payments", body, key=longest).headers


# Without Redis.


def test_without_redis_sessions_count_and_end_all_the_same(
    shop: Shop, staff: Callable[..., Person], redis_server: BrokerServer
) -> None:
    person, leaver = staff(shop), staff(shop)
    assert leaver.client.get("/api/v1/payments").status_code == 200
    redis_server.stop()
    try:
        assert person.client.get("/api/v1/payments").status_code == 200
        assert leaver.client.delete("/api/v1/sessions/current").status_code == 204
        problem(leaver.client.get("/api/v1/payments"), 401, "not_authenticated")
        stolen = person.token
        successor = person.client.post("/api/v1/sessions/rotate").json()["token"]
        person.bear(successor)
        assert person.client.get("/api/v1/payments").status_code == 200
        person.bear(stolen)
        problem(person.client.get("/api/v1/payments"), 401, "not_authenticated")
        person.bear(successor)
        problem(person.client.get("/api/v1/payments"), 401, "not_authenticated")
        assert person.sign_in().status_code == 201
    finally:
        redis_server.start()
    # Redis is back and empty: what it does not know, PostgreSQL does.
    problem(leaver.client.get("/api/v1/payments"), 401, "not_authenticated")
    person.bear(person.sign_in().json()["token"])
    assert person.client.get("/api/v1/payments").status_code == 200
