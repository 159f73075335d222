"""Who may do what: keys, people, admins; and no tenant ever sees another."""

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg import errors as pg

from api.database import new_id
from tests.fixtures.api import ApiServer, Shop, as_tenant, make_api, problem, superuser
from tests.fixtures.services import BrokerServer, DatabaseServer

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


@pytest.fixture
def shop(api: ApiServer) -> Iterator[Shop]:
    shop = api.shop()
    yield shop
    shop.client.close()


def test_without_a_key_nothing_is_answered(api: ApiServer, shop: Shop) -> None:
    bare = httpx.get(f"{api.base_url}/api/v1/payments")
    problem(bare, 401, "not_authenticated")
    assert bare.headers["www-authenticate"].startswith("Bearer")
    for key in ("x", "gv_test_" + "0" * 64, shop.key + "0", api.admin_key):
        answer = httpx.get(
            f"{api.base_url}/api/v1/payments", headers={"Authorization": f"Bearer {key}"}
        )
        problem(answer, 401, "not_authenticated")
    with api.admin() as admin:
        admin.headers["Authorization"] = f"Bearer {shop.key}"
        answer = admin.put(f"/api/v1/merchants/{new_id('mer')}", json={"name": "x", "trade": "x"})
        problem(answer, 401, "not_authenticated")


def test_a_key_reaches_as_far_as_its_scopes(api: ApiServer, shop: Shop) -> None:
    with api.admin() as admin:
        path = f"/api/v1/merchants/{shop.merchant_id}/api-keys"
        key = admin.post(path, json={"scopes": ["payments:read"]}).json()["key"]
    shop.client.headers["Authorization"] = f"Bearer {key}"
    assert shop.client.get("/api/v1/payments").status_code == 200
    problem(shop.client.get("/api/v1/balance"), 403, "not_permitted")
    body = {"amount": "1", "asset": "USDC"}
    problem(shop.post("/api/v1/payments", body), 403, "not_permitted")


def test_a_revoked_key_stops_at_once(shop: Shop, ledger_database: DatabaseServer) -> None:
    assert shop.client.get("/api/v1/payments").status_code == 200
    with superuser(ledger_database) as database:
        database.execute(
            "UPDATE api_keys SET revoked_at = now() WHERE merchant_id = %s", (shop.merchant_id,)
        )
    # Who the key speaks for is still remembered; each unit of work proves it, of any kind.
    problem(shop.client.get("/api/v1/payments"), 401, "not_authenticated")
    body = {"amount": "1", "asset": "USDC"}
    problem(shop.post("/api/v1/payments", body), 401, "not_authenticated")
    with superuser(ledger_database) as database:
        made = database.execute(
            "SELECT FROM payments WHERE merchant_id = %s", (shop.merchant_id,)
        ).fetchall()
    assert made == []


def test_staff_sign_in_and_wrong_passwords_do_not(api: ApiServer, shop: Shop) -> None:
    person = {
        "email": f"An.{secrets.token_hex(4)}@Shop.vn",
        "password": "đủ dài mà",
        "role": "owner",
    }
    with api.admin() as admin:
        path = f"/api/v1/merchants/{shop.merchant_id}/staff"
        first = admin.put(path, json=person)
        assert first.status_code == 200, first.text
        assert admin.put(path, json=person).json()["id"] == first.json()["id"]
        taken = admin.put(f"/api/v1/merchants/{api.shop().merchant_id}/staff", json=person)
        problem(taken, 409, "conflict")
    login = {"email": person["email"].upper(), "password": person["password"]}
    answer = shop.client.post("/api/v1/sessions", json=login)
    assert answer.status_code == 201, answer.text
    public = Ed25519PrivateKey.from_private_bytes(api.session_seed).public_key()
    claims = jwt.decode(answer.json()["token"], public, algorithms=["EdDSA"], audience="giovang")
    assert claims["merchant_id"] == answer.json()["merchant"]["id"] == shop.merchant_id
    for email, password in ((person["email"], "wrong"), ("nobody@shop.vn", person["password"])):
        body = {"email": email, "password": password}
        refusal = problem(shop.client.post("/api/v1/sessions", json=body), 401, "not_authenticated")
        assert refusal["detail"] == "email and password do not match"


def test_admin_writes_are_idempotent(api: ApiServer, ledger_database: DatabaseServer) -> None:
    path = f"/api/v1/merchants/{new_id('mer')}"
    body = {"name": "Chợ Bến Thành", "trade": "market"}
    with api.admin() as admin:
        first, again = admin.put(path, json=body), admin.put(path, json=body)
        assert first.json() == again.json()
        changed = admin.put(path, json={**body, "fee_bps": 50})
        assert changed.json()["updated_at"] > first.json()["updated_at"]
        problem(admin.put(path, json={**body, "timezone": "Mars/Base"}), 422, "invalid_request")
        unknown = admin.post(f"/api/v1/merchants/{new_id('mer')}/api-keys", json={})
        problem(unknown, 404, "not_found")
    with superuser(ledger_database) as database:
        actions = database.execute(
            "SELECT action FROM audit_logs WHERE subject_id = %s ORDER BY id", (path[-30:],)
        ).fetchall()
    assert actions == [("merchant.created",), ("merchant.updated",)]


def test_another_merchants_things_do_not_exist(api: ApiServer, shop: Shop) -> None:
    payment_id = shop.create()["id"]
    other = api.shop()
    problem(other.client.get(f"/api/v1/payments/{payment_id}"), 404, "not_found")
    refund = other.post(f"/api/v1/payments/{payment_id}/refunds", {"amount": "1"})
    problem(refund, 404, "not_found")
    assert other.client.get("/api/v1/payments").json()["data"] == []
    page = other.client.get(f"/api/v1/payments?starting_after={payment_id}").json()
    assert page["data"] == []


def tenant_tables(database: psycopg.Connection[Any]) -> list[str]:
    return [
        row[0]
        for row in database.execute(
            """SELECT c.relname FROM pg_class AS c
               WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
                 AND (c.relname = 'merchants' OR EXISTS (
                     SELECT FROM pg_attribute AS a
                     WHERE a.attrelid = c.oid AND a.attname = 'merchant_id' AND NOT a.attisdropped))
               ORDER BY c.relname"""
        )
    ]


def test_every_table_with_a_tenant_is_closed(ledger_database: DatabaseServer) -> None:
    with superuser(ledger_database) as database:
        tables = tenant_tables(database)
        assert {"payments", "ledger_postings", "audit_logs", "idempotency_keys"} <= set(tables)
        open_tables = database.execute(
            """SELECT c.relname FROM pg_class AS c
               WHERE c.relname = ANY (%s) AND c.relnamespace = 'public'::regnamespace
                 AND NOT (c.relrowsecurity AND c.relforcerowsecurity AND EXISTS (
                     SELECT FROM pg_policy AS p
                     WHERE p.polrelid = c.oid AND 'giovang_api'::regrole = ANY (p.polroles)
                       AND pg_get_expr(p.polqual, p.polrelid) LIKE '%%giovang_tenant()%%'))""",
            (tables,),
        ).fetchall()
        assert open_tables == []
        # And nothing else is readable over HTTP's role but what belongs to nobody.
        readable = database.execute(
            """SELECT relname FROM pg_class
               WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'm')
                 AND NOT relname = ANY (%s)
                 AND has_any_column_privilege('giovang_api', oid, 'SELECT, INSERT, UPDATE')""",
            (tables,),
        ).fetchall()
        assert readable == [("status_transitions",)]
        owned = database.execute(
            """SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace
                 AND relowner IN ('giovang_api'::regrole, 'giovang_watcher'::regrole,
                                  'giovang_capture'::regrole)"""
        ).fetchone()
        assert owned == (0,)


def test_functions_that_run_as_the_owner_pin_their_search_path(
    ledger_database: DatabaseServer,
) -> None:
    with superuser(ledger_database) as database:
        loose = database.execute(
            """SELECT proname FROM pg_proc
               WHERE pronamespace = 'public'::regnamespace AND prosecdef
                 AND NOT coalesce(array_to_string(proconfig, ' '), '') LIKE '%search_path=%'"""
        ).fetchall()
    assert loose == []


def test_without_a_tenant_raw_sql_sees_nothing(shop: Shop, ledger_database: DatabaseServer) -> None:
    shop.create()
    with superuser(ledger_database) as database:
        tables = tenant_tables(database)
    with psycopg.connect(ledger_database.url("giovang_api"), autocommit=True) as database:
        for table in tables:
            try:
                seen = database.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
            except pg.InsufficientPrivilege:
                continue
            assert seen == (0,), table


def test_with_a_tenant_raw_sql_sees_and_writes_only_its_own(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    other = api.shop()
    theirs = other.create()["id"]
    mine = shop.create()["id"]
    with as_tenant(ledger_database, shop.merchant_id) as database:
        assert database.execute("SELECT id FROM payments").fetchall() == [(mine,)]
        moved = database.execute("UPDATE payments SET status = 'pending' WHERE id = %s", (theirs,))
        assert moved.rowcount == 0
        with pytest.raises(pg.InsufficientPrivilege, match="row-level security"):
            database.execute(
                """INSERT INTO payouts (id, merchant_id, amount_minor, asset, destination)
                   VALUES (giovang_id('pyo'), %s, 1, 'VND', 'x')""",
                (other.merchant_id,),
            )
