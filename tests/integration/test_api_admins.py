"""Admins over HTTP, their second factors, and what PostgreSQL holds and audits about people."""

import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pyotp
import pytest
from psycopg import errors as pg

from api.database import new_id
from tests.fixtures.api import ApiServer, Shop, as_tenant, make_api, problem, superuser
from tests.fixtures.people import PASSWORD, Person, enrol
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


def test_an_admin_has_rights_once_the_second_factor_is_confirmed(
    new_admin: Callable[[], Person],
) -> None:
    admin = new_admin()
    problem(admin.client.get("/api/v1/merchants"), 403, "not_permitted")
    problem(admin.client.put(f"/api/v1/merchants/{new_id('mer')}", json={}), 403, "not_permitted")
    problem(admin.client.get("/api/v1/admins"), 403, "not_permitted")
    confirmation = "/api/v1/admin/second-factor/confirmation"
    problem(admin.client.post(confirmation, json={"code": "123456"}), 409, "conflict")
    before = admin.token
    first = admin.client.post("/api/v1/admin/second-factor").json()["uri"]
    second = admin.client.post("/api/v1/admin/second-factor").json()["uri"]
    assert first != second
    stale = pyotp.parse_uri(first)
    assert isinstance(stale, pyotp.TOTP)
    answer = admin.client.post(confirmation, json={"code": stale.now()})
    problem(answer, 401, "not_authenticated")
    enrol(admin)
    assert admin.client.get("/api/v1/merchants").status_code == 200
    problem(admin.client.post("/api/v1/admin/second-factor"), 409, "conflict")
    problem(admin.client.post(confirmation, json={"code": admin.code()}), 409, "conflict")
    admin.bear(before)
    problem(admin.client.get("/api/v1/merchants"), 401, "not_authenticated")


def test_signing_in_takes_a_code_and_each_code_once(new_admin: Callable[[], Person]) -> None:
    admin = new_admin()
    enrol(admin)
    path = "/api/v1/admin/sessions"
    # The code that confirmed is used already.
    used = [{}, {"code": "000000"}, {"code": admin.code(-1)}, {"code": admin.code(-3)}]
    for more in used:
        refusal = problem(admin.sign_in(path, **more), 401, "not_authenticated")
        assert refusal["detail"] == "email, password and code do not match"
    code = admin.code()
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: admin.sign_in(path, code=code), range(8)))
    assert sorted(answer.status_code for answer in answers) == [201] + [401] * 7
    # A wrong password with a good code is refused, and does not use the code up.
    right, admin.password = admin.password, "không phải thế"
    problem(admin.sign_in(path, code=admin.code(1)), 401, "not_authenticated")
    admin.password = right
    answer = admin.sign_in(path, code=admin.code(1))
    assert answer.status_code == 201, answer.text
    assert answer.json()["second_factor"] is True
    assert answer.json()["merchant"] is None


def test_admins_are_not_staff_and_staff_are_not_admins(
    shop: Shop, staff: Callable[..., Person], new_admin: Callable[[], Person]
) -> None:
    admin, owner = new_admin(), staff(shop)
    enrol(admin)
    problem(admin.client.get("/api/v1/payments"), 403, "not_permitted")
    problem(admin.sign_in(), 401, "not_authenticated")
    problem(owner.sign_in("/api/v1/admin/sessions"), 401, "not_authenticated")
    problem(owner.client.post("/api/v1/admin/second-factor"), 403, "not_permitted")
    problem(owner.client.get("/api/v1/admins"), 403, "not_permitted")
    problem(shop.client.get("/api/v1/admins"), 401, "not_authenticated")
    rotated = admin.client.post("/api/v1/sessions/rotate")
    assert rotated.json()["second_factor"] is True
    admin.bear(rotated.json()["token"])
    assert admin.client.get("/api/v1/merchants").status_code == 200


def test_what_changes_an_admin_ends_their_sessions(new_admin: Callable[[], Person]) -> None:
    boss, admin = new_admin(), new_admin()
    enrol(boss)
    enrol(admin)
    path = f"/api/v1/admins/{admin.id}"
    same = {"email": admin.email.upper(), "password": admin.password}
    assert boss.client.put(path, json=same).status_code == 200
    assert admin.client.get("/api/v1/merchants").status_code == 200
    taken = boss.client.put(path, json={"email": boss.email})
    problem(taken, 409, "conflict")
    assert boss.client.put(path, json={"email": admin.email, "disabled": True}).is_success
    problem(admin.client.get("/api/v1/merchants"), 401, "not_authenticated")
    attempt = admin.sign_in("/api/v1/admin/sessions", code=admin.code())
    problem(attempt, 401, "not_authenticated")
    assert boss.client.put(path, json={"email": admin.email}).json()["disabled_at"] is None
    freed = boss.client.delete(f"{path}/second-factor")
    assert freed.json()["second_factor_confirmed_at"] is None
    answer = admin.sign_in("/api/v1/admin/sessions")
    assert answer.json()["second_factor"] is False
    own = f"/api/v1/admins/{boss.id}"
    problem(boss.client.put(own, json={"email": boss.email, "disabled": True}), 409, "conflict")
    problem(boss.client.delete(f"{own}/second-factor"), 409, "conflict")
    problem(boss.client.delete(f"/api/v1/admins/{new_id('adm')}/second-factor"), 404, "not_found")
    ids = [one["id"] for one in boss.client.get("/api/v1/admins").json()["data"]]
    assert {boss.id, admin.id} <= set(ids)
    missing = boss.client.put(f"/api/v1/admins/{new_id('adm')}", json={"email": "x@giovang.vn"})
    problem(missing, 422, "invalid_request")


def test_the_admin_key_brings_people_in_and_does_no_more(api: ApiServer, shop: Shop) -> None:
    with api.admin() as admin:
        assert admin.get("/api/v1/merchants").status_code == 200
        assert admin.get("/api/v1/admins").status_code == 200
        keys = admin.get(f"/api/v1/merchants/{shop.merchant_id}/api-keys").json()["data"]
        path = f"/api/v1/merchants/{shop.merchant_id}/api-keys/{keys[0]['id']}"
        assert admin.delete(path).json()["revoked_at"] is not None
        problem(shop.client.get("/api/v1/payments"), 401, "not_authenticated")
        for path in ("/api/v1/payments", "/api/v1/api-keys", "/api/v1/merchant"):
            problem(admin.get(path), 401, "not_authenticated")
        unknown = new_id("mer")
        for path in ("api-keys", "staff"):
            problem(admin.get(f"/api/v1/merchants/{unknown}/{path}"), 404, "not_found")
        body = {"email": f"{secrets.token_hex(5)}@x.vn", "password": PASSWORD}
        problem(admin.put(f"/api/v1/merchants/{unknown}/staff", json=body), 404, "not_found")


# PostgreSQL holds it too.


def refused(database: psycopg.Connection[Any], statement: str, *parameters: object) -> None:
    with pytest.raises(pg.InsufficientPrivilege):
        database.execute(statement, parameters)


def test_raw_sql_of_the_api_reaches_no_admin_and_no_hash(
    shop: Shop,
    staff: Callable[..., Person],
    new_admin: Callable[[], Person],
    ledger_database: DatabaseServer,
) -> None:
    admin = new_admin()
    staff(shop)
    with as_tenant(ledger_database, shop.merchant_id) as database:
        for statement in (
            "SELECT id FROM admins",
            "SELECT email FROM admins LIMIT 1",
            "INSERT INTO admins (id, email, password_hash) VALUES ('a', 'b', 'c')",
            "UPDATE admins SET disabled_at = now()",
            "DELETE FROM admins",
            "SELECT * FROM admin_for_login('x')",
            "SELECT * FROM admin_by_id('x')",
            "SELECT password_hash FROM merchant_staff",
            "SELECT key_hash FROM api_keys",
            "DELETE FROM api_keys",
            "UPDATE sessions SET expires_at = now() + interval '1 year'",
            "UPDATE merchant_staff SET merchant_id = merchant_id",
        ):
            refused(database, statement)
        assert database.execute("SELECT count(*) FROM merchant_staff").fetchone() == (1,)
    with psycopg.connect(ledger_database.url("giovang_operator"), autocommit=True) as database:
        for statement in (
            "SELECT password_hash FROM admins",
            "SELECT totp_sealed FROM admins",
            "SELECT password_hash FROM merchant_staff",
            "SELECT key_hash FROM api_keys",
            "DELETE FROM admins",
        ):
            refused(database, statement)
        seen = database.execute("SELECT email FROM admins WHERE id = %s", (admin.id,)).fetchone()
        assert seen == (admin.email,)


def test_raw_sql_reopens_no_session_no_key_and_no_code(
    api: ApiServer,
    shop: Shop,
    staff: Callable[..., Person],
    new_admin: Callable[[], Person],
    ledger_database: DatabaseServer,
) -> None:
    person, admin = staff(shop), new_admin()
    enrol(admin)
    person.client.delete("/api/v1/sessions/current")
    with as_tenant(ledger_database, shop.merchant_id) as database:
        assert database.execute("SELECT status FROM sessions").fetchall() == [("revoked",)]
        with pytest.raises(pg.CheckViolation, match="stays so"):
            database.execute("UPDATE sessions SET status = 'open'")
        with pytest.raises(pg.CheckViolation, match="has not expired"):
            database.execute("DELETE FROM sessions")
        database.execute("UPDATE api_keys SET revoked_at = now()")
        with pytest.raises(pg.CheckViolation, match="stays so"):
            database.execute("UPDATE api_keys SET revoked_at = NULL")
        with pytest.raises(pg.InsufficientPrivilege, match="row-level security"):
            database.execute(
                """INSERT INTO sessions (id, family_id, kind, person_id, signed_in_at, expires_at)
                   VALUES (%s, 'x', 'admin', %s, now(), now())""",
                (new_id("ses"), admin.id),
            )
    other = api.shop()
    with as_tenant(ledger_database, other.merchant_id) as database:
        assert database.execute("SELECT count(*) FROM sessions").fetchone() == (0,)
        assert database.execute("UPDATE sessions SET status = 'revoked'").rowcount == 0
    with psycopg.connect(ledger_database.url("giovang_operator"), autocommit=True) as database:
        for change in ("totp_last_step - 1", "NULL"):
            with pytest.raises(pg.CheckViolation):
                database.execute(
                    f"UPDATE admins SET totp_last_step = {change} WHERE id = %s",  # noqa: S608
                    (admin.id,),
                )


def test_every_change_is_audited_by_person_and_without_secrets(
    shop: Shop,
    staff: Callable[..., Person],
    new_admin: Callable[[], Person],
    ledger_database: DatabaseServer,
) -> None:
    admin = new_admin()
    enrol(admin)
    owner, person = staff(shop), staff(shop, "viewer")
    key = owner.client.post("/api/v1/api-keys", json={})
    owner.client.patch(f"/api/v1/staff/{person.id}", json={"password": "một cái khác"})
    owner.client.delete(f"/api/v1/staff/{person.id}")
    with superuser(ledger_database) as database:
        rows = database.execute(
            """SELECT actor, action, request_id, concat(before, after) FROM audit_logs
               WHERE merchant_id = %s OR subject_id = %s OR actor = %s ORDER BY id""",
            (shop.merchant_id, admin.id, admin.id),
        ).fetchall()
        sealed = database.execute(
            "SELECT totp_sealed FROM admins WHERE id = %s", (admin.id,)
        ).fetchone()
    done = {(actor, action) for actor, action, _, _ in rows}
    assert {
        ("admin", "admin.created"),
        (admin.id, "admin.updated"),
        (admin.id, "session.created"),
        (owner.id, "session.created"),
        (owner.id, "api_key.created"),
        (owner.id, "staff.updated"),
        (owner.id, "staff.deleted"),
        (owner.id, "session.revoked"),
    } <= done
    assert all(request_id is not None for _, _, request_id, _ in rows)
    told = " ".join(content for *_, content in rows)
    assert "argon2" not in told
    assert admin.secret not in told
    assert sealed is not None
    assert admin.secret.encode() not in sealed[0]
    assert sealed[0].hex() not in told
    assert key.json()["key"] not in told
    request_ids = {request_id for _, action, request_id, _ in rows if action == "api_key.created"}
    assert key.headers["x-request-id"] in request_ids
