"""Every endpoint of the API, walked with another merchant's ids: nothing is seen, nothing changes.

The endpoints come from the served OpenAPI document, so a new one is attacked as soon as it exists;
one whose path has a name that this test does not know fails it.
"""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.database import new_id
from tests.fixtures.api import ApiServer, Shop, superuser
from tests.fixtures.desk import book, end, make_desk_api, pay, receipt
from tests.fixtures.services import BrokerServer, DatabaseServer
from tests.fixtures.sessions import staff_of

METHODS = ("get", "post", "put", "patch", "delete")
# Public by design: who knows a payment's id is its payer. Opening the page is what payers do.
PAYERS_PAGE = {
    ("get", "/order/{payment_id}"),
    ("get", "/order/{payment_id}/success"),
    ("get", "/order/{payment_id}/pay"),
    ("post", "/order/{payment_id}/pay"),
    ("get", "/order/{payment_id}/qr.svg"),
    ("get", "/order/{payment_id}/release"),
    ("get", "/order/{payment_id}/dispute"),
}
SIGNS_OUT = {("delete", "/api/v1/sessions/current"), ("post", "/api/v1/sessions/rotate")}


@dataclass(frozen=True)
class Victim:
    """A merchant with something of every kind, by the names that paths use."""

    shop: Shop
    ids: dict[str, str]

    def told_by(self, text: str) -> list[str]:
        """Return which of the victim's ids a text gives away."""
        return [name for name, value in self.ids.items() if value in text]


@pytest.fixture(scope="module")
def api(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path_factory: Any
) -> Iterator[ApiServer]:
    folder: Path = tmp_path_factory.mktemp("api")
    server = make_desk_api(folder, ledger_database, redis_server)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def victim(api: ApiServer, ledger_database: DatabaseServer) -> Victim:
    shop = api.shop(name="Nạn nhân")
    paid, escrowed, late = shop.create(), shop.create(escrow=True), shop.create()
    pay(api, ledger_database, paid)
    pay(api, ledger_database, escrowed)
    end(ledger_database, late)
    pay(api, ledger_database, late, late=True)
    nobodys = receipt(api, 5_000_000)
    book(ledger_database, nobodys)
    refund = shop.post(f"/api/v1/payments/{paid['id']}/refunds", {"amount": "1000"}).json()
    payout = shop.post(
        "/api/v1/payouts", {"amount": "2000", "asset": "VND", "destination": "VCB 0071000"}
    ).json()
    owner = staff_of(api, ledger_database, shop)
    member = owner.post(
        "/api/v1/staff",
        json={
            "email": f"{secrets.token_hex(5)}@victim.vn",
            "password": secrets.token_hex(12),
            "role": "viewer",
        },
    )
    assert member.status_code in {200, 201}, member.text
    policy_id = new_id("cfp")
    with superuser(ledger_database) as sql:
        sql.execute(
            "INSERT INTO confirmation_policies (id, merchant_id, mode, up_to_minor, commitment,"
            " reason, set_by) VALUES (%s, %s, 'test', 1000, 'finalized', 'a test', 'test')",
            (policy_id, shop.merchant_id),
        )
        row = sql.execute(
            """SELECT (SELECT id FROM merchant_events WHERE merchant_id = %(m)s LIMIT 1),
                      (SELECT id FROM api_keys WHERE merchant_id = %(m)s LIMIT 1),
                      (SELECT id FROM ledger_entries WHERE merchant_id = %(m)s LIMIT 1)""",
            {"m": shop.merchant_id},
        ).fetchone()
    assert row is not None
    ids = {
        "merchant_id": shop.merchant_id,
        "payment_id": escrowed["id"],
        "refund_id": refund["id"],
        "payout_id": payout["id"],
        "event_id": row[0],
        "key_id": row[1],
        "entry_id": row[2],
        "staff_id": member.json()["id"],
        "policy_id": policy_id,
        "transfer_id": f"{nobodys.signature}:{nobodys.account.address}",
    }
    return Victim(shop, ids)


def operations(api: ApiServer) -> list[tuple[str, str, dict[str, Any]]]:
    """Return method, path and description of everything the API serves."""
    document = httpx.get(f"{api.base_url}/openapi.json").json()
    return [
        (method, path, {**described, "schemas": document["components"]["schemas"]})
        for path, by_method in document["paths"].items()
        for method, described in by_method.items()
        if method in METHODS
    ]


def example_body(described: dict[str, Any]) -> Any:
    """Return a body that the document itself gives as an example, so that validation passes."""
    content = described.get("requestBody", {}).get("content", {})
    if "application/json" not in content:
        return None
    schema = content["application/json"]["schema"]
    name = schema.get("$ref", "").rpartition("/")[2]
    schema = described["schemas"].get(name, schema)
    if schema.get("examples"):
        return schema["examples"][0]
    return {
        field: (about.get("examples") or [None])[0]
        for field, about in schema.get("properties", {}).items()
        if about.get("examples")
    }


def rows_of(database: DatabaseServer, merchant_id: str) -> dict[str, str]:
    """Return a digest of the merchant's rows in every table of tenants."""
    with superuser(database) as sql:
        tables = sql.execute(
            """SELECT table_name FROM information_schema.columns
               WHERE table_schema = 'public' AND column_name = 'merchant_id'
                 AND table_name !~ '^audit_logs_' ORDER BY 1"""
        ).fetchall()
        digests = {}
        for (table,) in tables:
            row = sql.execute(
                f"SELECT md5(coalesce(string_agg(t::text, '|' ORDER BY t::text), ''))"  # noqa: S608
                f" FROM {table} AS t WHERE merchant_id = %s",
                (merchant_id,),
            ).fetchone()
            assert row is not None
            digests[table] = row[0]
    return digests


def attack(client: httpx.Client, method: str, path: str, body: Any) -> httpx.Response:
    return client.request(
        method.upper(), path, json=body, headers={"Idempotency-Key": secrets.token_hex(8)}
    )


@pytest.mark.parametrize("weapon", ["key", "owner", "viewer"])
def test_no_endpoint_serves_anothers_ids(
    api: ApiServer, victim: Victim, ledger_database: DatabaseServer, weapon: str
) -> None:
    attacker = api.shop(name="Kẻ tấn công")
    client = attacker.client
    if weapon != "key":
        client = staff_of(api, ledger_database, attacker, weapon)
    before = rows_of(ledger_database, victim.shop.merchant_id)
    attacked = 0
    for method, path, described in operations(api):
        names = re.findall(r"{(\w+)}", path)
        if (method, path) in PAYERS_PAGE | SIGNS_OUT or path == "/healthz":
            continue
        if "admin_id" in names:
            names.remove("admin_id")
        assert set(names) <= set(victim.ids), f"{path} has an id this test does not know"
        aimed = path.format(**victim.ids, admin_id="adm_01jz8w5k6h7m9n0p2q3r4s5t6v")
        answer = attack(client, method, aimed, example_body(described))
        where = f"{weapon}: {method} {path} → {answer.status_code} {answer.text[:200]}"
        assert answer.status_code < 500, where
        if names:
            attacked += 1
            assert answer.status_code in {401, 403, 404, 405, 415, 422}, where
        told = [name for name in victim.told_by(answer.text) if victim.ids[name] not in aimed]
        assert not told, f"{where} tells {told}"
    assert attacked >= 20
    assert rows_of(ledger_database, victim.shop.merchant_id) == before


def test_the_same_walk_by_its_owner_finds_them(
    api: ApiServer, victim: Victim, ledger_database: DatabaseServer
) -> None:
    # Or the attack above would pass on ids that nobody can find.
    found = 0
    for client in (victim.shop.client, staff_of(api, ledger_database, victim.shop)):
        for method, path, _ in operations(api):
            names = re.findall(r"{(\w+)}", path)
            if method == "get" and names and "/admin/" not in path and "/order/" not in path:
                # The head alone: the live status of a payment has no end.
                with client.stream("GET", path.format(**victim.ids, admin_id="")) as answer:
                    found += answer.status_code == 200
    assert found >= 5


def test_a_key_of_the_other_mode_sees_nothing(api: ApiServer, victim: Victim) -> None:
    with api.admin() as admin:
        path = f"/api/v1/merchants/{victim.shop.merchant_id}/api-keys"
        live = admin.post(path, json={"mode": "live"}).json()["key"]
    client = httpx.Client(
        base_url=api.base_url, headers={"Authorization": f"Bearer {live}"}, timeout=30
    )
    with client:
        for method, path, _ in operations(api):
            names = set(re.findall(r"{(\w+)}", path))
            if method != "get" or "/admin/" in path or "/order/" in path:
                continue
            if names & {"payment_id", "refund_id", "payout_id", "event_id"}:
                answer = client.get(path.format(**victim.ids))
                assert answer.status_code == 404, f"{path}: {answer.text[:200]}"
            elif not names and path.startswith("/api/v1/"):
                told = set(victim.told_by(client.get(path).text))
                assert told <= {"merchant_id", "key_id", "staff_id"}, path


def test_a_revoked_key_opens_nothing_from_that_moment_on(
    api: ApiServer, victim: Victim, ledger_database: DatabaseServer
) -> None:
    shop = victim.shop
    owner = staff_of(api, ledger_database, shop)
    key = owner.post("/api/v1/api-keys", json={"mode": "test"}).json()
    client = httpx.Client(
        base_url=api.base_url, headers={"Authorization": f"Bearer {key['key']}"}, timeout=30
    )
    with client:
        # Used just now, so the process remembers whose it is.
        assert client.get("/api/v1/payments").status_code == 200
        assert owner.delete(f"/api/v1/api-keys/{key['id']}").status_code in {200, 204}
        before = rows_of(ledger_database, shop.merchant_id)
        refused = 0
        for method, path, described in operations(api):
            if not any("API key" in scheme for scheme in described.get("security", ())):
                continue
            aimed = path.format(**victim.ids, admin_id="")
            answer = attack(client, method, aimed, example_body(described))
            # A body that is wrong, or a scope that a key never has, is said before.
            assert answer.status_code in {401, 403, 422}, f"{method} {path} → {answer.text[:200]}"
            refused += answer.status_code == 401
        assert refused >= 20
        assert rows_of(ledger_database, shop.merchant_id) == before
