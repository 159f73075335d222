"""The ledger under attack: raw SQL, races, and the books afterwards."""

import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg

from api.contract import CAPTURED_TABLES, PUBLICATION, TRANSITIONS
from api.database import new_id
from tests.fixtures.api import (
    ApiServer,
    Shop,
    as_tenant,
    as_watcher,
    completed,
    make_api,
    problem,
    superuser,
)
from tests.fixtures.services import BrokerServer, DatabaseServer, run_module

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


def account(
    connection: psycopg.Connection[Any], merchant: str | None, kind: str, asset: str
) -> str:
    row = connection.execute(
        "SELECT ledger_account(%s, %s, %s)", (merchant, kind, asset)
    ).fetchone()
    assert row is not None
    return str(row[0])


def new_entry(connection: psycopg.Connection[Any]) -> str:
    entry_id = new_id("ent")
    connection.execute(
        """INSERT INTO ledger_entries (id, kind, idempotency_key)
           VALUES (%s, 'transfer_suspended', %s)""",
        (entry_id, entry_id),
    )
    return entry_id


def add_leg(
    connection: psycopg.Connection[Any], entry: str, seq: int, kind: str, amount: int
) -> None:
    connection.execute(
        """INSERT INTO ledger_postings (entry_id, seq, account_id, asset, amount_minor)
           VALUES (%s, %s, %s, 'USDC', %s)""",
        (entry, seq, account(connection, None, kind, "USDC"), amount),
    )


def add_legs(
    connection: psycopg.Connection[Any], entry: str, first: int, *legs: tuple[str, int]
) -> None:
    with connection.transaction():
        for seq, (kind, amount) in enumerate(legs, first):
            add_leg(connection, entry, seq, kind, amount)


def book(connection: psycopg.Connection[Any], *legs: tuple[str, int]) -> str:
    with connection.transaction():
        entry = new_entry(connection)
        add_legs(connection, entry, 1, *legs)
    return entry


def book_behind_the_check(connection: psycopg.Connection[Any]) -> None:
    """Have a balanced entry checked early, and then add a leg."""
    with connection.transaction():
        entry = new_entry(connection)
        add_legs(connection, entry, 1, ("crypto_pool", 10), ("suspense", -10))
        connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        connection.execute("SET CONSTRAINTS ALL DEFERRED")
        add_leg(connection, entry, 3, "crypto_pool", 1)


def test_an_entry_that_does_not_balance_is_refused_at_commit(
    ledger_database: DatabaseServer,
) -> None:
    with as_watcher(ledger_database) as database:
        with pytest.raises(pg.CheckViolation, match="does not balance"):
            book(database, ("crypto_pool", 10), ("suspense", -9))
        with pytest.raises(pg.CheckViolation, match="no postings"):
            book(database)
        with pytest.raises(pg.CheckViolation, match="does not balance"):
            book_behind_the_check(database)


def test_a_booked_entry_is_sealed(ledger_database: DatabaseServer) -> None:
    with as_watcher(ledger_database) as database:
        entry = book(database, ("crypto_pool", 10), ("suspense", -10))
        with pytest.raises(pg.ForeignKeyViolation, match="ledger_postings_sealed"):
            add_legs(database, entry, 3, ("crypto_pool", 5), ("suspense", -5))
        with pytest.raises(pg.InsufficientPrivilege):
            database.execute(
                """INSERT INTO ledger_postings
                       (entry_id, seq, account_id, asset, amount_minor, created_at)
                   SELECT id, 5, 'acc', 'USDC', 1, created_at FROM ledger_entries WHERE id = %s""",
                (entry,),
            )
    # Even who may write every column is stopped by the trigger.
    with superuser(ledger_database) as database:
        for statement in (
            "UPDATE ledger_postings SET amount_minor = 11 WHERE entry_id = %s",
            "DELETE FROM ledger_postings WHERE entry_id = %s",
            "UPDATE ledger_entries SET description = 'x' WHERE id = %s",
            "DELETE FROM ledger_entries WHERE id = %s",
        ):
            with pytest.raises(pg.RestrictViolation, match="history"):
                database.execute(statement, (entry,))
        with pytest.raises(pg.RestrictViolation, match="history"):
            database.execute("TRUNCATE ledger_postings, ledger_entries CASCADE")


@pytest.mark.parametrize("role", ["giovang_api", "giovang_watcher"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_postings SET amount_minor = 1",
        "DELETE FROM ledger_postings",
        "DELETE FROM ledger_entries",
        "UPDATE ledger_accounts SET posted_minor = 0",
        "DELETE FROM ledger_accounts",
        "INSERT INTO ledger_accounts (id, kind, asset, posted_minor) VALUES ('a', 'x', 'VND', 1)",
        "INSERT INTO payment_events SELECT * FROM payment_events",
        "UPDATE merchant_event_counters SET last_seq = 0",
        "DELETE FROM audit_logs",
        "UPDATE audit_logs SET actor = 'nobody'",
        "UPDATE payments SET amount_minor = 1",
        "UPDATE payments SET status_at = now()",
        "DELETE FROM payments",
        "TRUNCATE payments CASCADE",
        "UPDATE refunds SET status = 'failed'",
        "UPDATE payouts SET amount_minor = 1",
        "UPDATE merchants SET id = 'mer_x'",
        "UPDATE status_transitions SET to_status = 'completed'",
        "ALTER TABLE payments DISABLE ROW LEVEL SECURITY",
        "SET session_replication_role = replica",
        "CALL close_tenant_table('payments')",
    ],
)
def test_roles_have_no_grant_to_rewrite_history(
    ledger_database: DatabaseServer, role: str, statement: str
) -> None:
    with (
        psycopg.connect(ledger_database.url(role), autocommit=True) as database,
        pytest.raises(pg.InsufficientPrivilege),
    ):
        database.execute(statement)


def test_an_account_keeps_its_name_and_its_floor(ledger_database: DatabaseServer) -> None:
    with as_watcher(ledger_database) as database:
        account(database, None, "crypto_pool", "USDT")
        with pytest.raises(pg.RestrictViolation):
            database.execute("UPDATE ledger_accounts SET asset = 'VND' WHERE asset = 'USDT'")
        with pytest.raises(pg.CheckViolation, match="never_overdrawn"):
            book(database, ("crypto_pool", -(10**15)), ("liquidity", 10**15))
        for merchant, kind in ((None, "merchant_available"), (None, "gold")):
            with pytest.raises(pg.CheckViolation, match="ledger_accounts_owner"):
                account(database, merchant, kind, "VND")


def post_dong(
    connection: psycopg.Connection[Any],
    kind: str,
    *legs: tuple[str | None, str, int],
) -> None:
    merchants, kinds, amounts = (list(column) for column in zip(*legs, strict=True))
    connection.execute(
        """SELECT ledger_post_entry(%s, %s, %s, %s, '', NULL, NULL, NULL, NULL,
                                    %s::text[], %s::text[], %s::text[], %s::bigint[])""",
        (
            new_id("ent"),
            merchants[-1],
            kind,
            secrets.token_hex(8),
            merchants,
            kinds,
            ["VND"] * len(legs),
            amounts,
        ),
    )


def test_a_merchants_role_cannot_make_money(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    victim = api.shop()
    completed(api, ledger_database, victim, "500000")
    me, them = shop.merchant_id, victim.merchant_id
    to_me = (me, "merchant_available", -5)
    with as_tenant(ledger_database, me) as database:
        for source in ((None, "liquidity", 5), (them, "merchant_available", 5)):
            with pytest.raises(pg.InsufficientPrivilege):
                post_dong(database, "payout_requested", source, to_me)
        with pytest.raises(pg.CheckViolation, match="ledger_accounts_owner"):
            post_dong(database, "payout_requested", (me, "liquidity", 5), to_me)
        with pytest.raises(pg.CheckViolation, match="never_overdrawn"):
            post_dong(database, "payout_requested", (me, "payouts_reserved", 5), to_me)
        with pytest.raises(pg.InsufficientPrivilege):
            post_dong(database, "payment_completed", (me, "payouts_reserved", 5), to_me)
    assert (shop.available(), victim.available()) == (0, 495_000)


def test_another_merchants_account_is_not_reached_by_its_id(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    victim = api.shop()
    completed(api, ledger_database, victim, "500000")
    with superuser(ledger_database) as database:
        theirs = account(database, victim.merchant_id, "merchant_available", "VND")
    entry = new_id("ent")
    with as_tenant(ledger_database, shop.merchant_id) as database:
        mine = account(database, shop.merchant_id, "merchant_available", "VND")
        # A foreign key looks past row-level security; the trigger on postings does not.
        with pytest.raises(pg.CheckViolation, match="merchant of its account"):
            database.execute(
                """WITH entry AS (
                       INSERT INTO ledger_entries (id, merchant_id, kind, idempotency_key)
                       VALUES (%(entry)s, %(me)s, 'payout_requested', %(entry)s))
                   INSERT INTO ledger_postings
                       (entry_id, seq, merchant_id, account_id, asset, amount_minor)
                   VALUES (%(entry)s, 1, %(me)s, %(theirs)s, 'VND', 5),
                          (%(entry)s, 2, %(me)s, %(mine)s, 'VND', -5)""",
                {"entry": entry, "me": shop.merchant_id, "theirs": theirs, "mine": mine},
            )
    assert victim.available() == 495_000


def test_a_key_books_one_entry(ledger_database: DatabaseServer) -> None:
    post = """
        SELECT ledger_post_entry(
            %s, NULL, 'transfer_suspended', %s, '', NULL, NULL, NULL, NULL,
            ARRAY[NULL, NULL]::text[], ARRAY['crypto_pool', 'suspense'], ARRAY['USDT', 'USDT'],
            ARRAY[%s, %s]::bigint[])
    """
    key = secrets.token_hex(8)
    with as_watcher(ledger_database) as database:
        first = database.execute(post, (new_id("ent"), key, 5, -5)).fetchone()
        again = database.execute(post, (new_id("ent"), key, 5, -5)).fetchone()
        assert first == again
        with pytest.raises(pg.UniqueViolation, match="already booked another entry"):
            database.execute(post, (new_id("ent"), key, 6, -6))
        assert database.execute(
            "SELECT count(*) FROM ledger_postings WHERE entry_id = %s", first
        ).fetchone() == (2,)


def test_a_status_cannot_jump_and_completion_needs_its_entry(
    shop: Shop, ledger_database: DatabaseServer
) -> None:
    payment_id = shop.create()["id"]
    move = "UPDATE payments SET status = %s WHERE id = %s"
    with as_watcher(ledger_database) as database:
        for status in ("completed", "confirming", "escrow_held", "resolved"):
            with pytest.raises(pg.CheckViolation, match="may not go from created"):
                database.execute(move, (status, payment_id))
        database.execute(move, ("pending", payment_id))
        database.execute(move, ("confirming", payment_id))
        with pytest.raises(pg.CheckViolation, match="has no ledger entry"):
            database.execute(move, ("completed", payment_id))
    with (
        as_tenant(ledger_database, shop.merchant_id) as database,
        pytest.raises(pg.InsufficientPrivilege),
    ):
        database.execute(move, ("completed", payment_id))
    assert shop.payment(payment_id)["status"] == "confirming"


def test_a_payment_cannot_be_born_completed(shop: Shop, ledger_database: DatabaseServer) -> None:
    payment_id = shop.create()["id"]
    with superuser(ledger_database) as database:
        database.execute(
            "CREATE TEMPORARY TABLE copied AS SELECT * FROM payments WHERE id = %s", (payment_id,)
        )
        database.execute(
            "UPDATE copied SET id = giovang_id('pay'), reference = 'r', status = 'completed'"
        )
        with pytest.raises(pg.CheckViolation, match="begins as created"):
            database.execute("INSERT INTO payments SELECT * FROM copied")


def test_refunds_return_at_most_what_was_paid(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    completed(api, ledger_database, shop, "1000000")  # so that the balance is not the limit
    payment_id = completed(api, ledger_database, shop, "100000")
    path = f"/api/v1/payments/{payment_id}/refunds"
    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: shop.post(path, {"amount": "30000"}), range(8)))
    codes = sorted(answer.status_code for answer in answers)
    assert codes == [201] * 3 + [409] * 5
    assert {a.json()["code"] for a in answers if a.status_code == 409} == {"refund_exceeds_payment"}
    assert shop.post(path, {"amount": "10000", "reason": "rest"}).json()["status"] == "requested"
    problem(shop.post(path, {"amount": "1"}), 409, "refund_exceeds_payment")
    assert shop.available() == 990_000 + 99_000 - 100_000


def test_only_completed_payments_are_refunded(shop: Shop) -> None:
    path = f"/api/v1/payments/{shop.create()['id']}/refunds"
    problem(shop.post(path, {"amount": "1"}), 409, "conflict")


def test_payouts_at_once_never_overdraw(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    completed(api, ledger_database, shop, "100000")
    assert shop.available() == 99_000
    body = {"amount": "25000", "asset": "VND", "destination": "VCB 0071000123456"}
    with ThreadPoolExecutor(12) as clients:
        answers = list(clients.map(lambda _: shop.post("/api/v1/payouts", body), range(12)))
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [409] * 9
    balance = shop.client.get("/api/v1/balance").json()["balances"]
    assert [(b["available"], b["payouts_reserved"]) for b in balance if b["asset"] == "VND"] == [
        ("24000", "75000")
    ]
    with superuser(ledger_database) as database:
        assert database.execute(
            "SELECT count(*) FROM payouts WHERE merchant_id = %s", (shop.merchant_id,)
        ).fetchone() == (3,)


def test_each_change_has_its_event_and_its_audit_row(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    payment_id = completed(api, ledger_database, shop, "250000")
    shop.create()
    with superuser(ledger_database) as database:
        events = database.execute(
            """SELECT seq, type, payment_id = %s FROM payment_events
               WHERE merchant_id = %s ORDER BY seq""",
            (payment_id, shop.merchant_id),
        ).fetchall()
        assert events == [
            (1, "payment.created", True),
            (2, "payment.pending", True),
            (3, "payment.confirming", True),
            (4, "payment.completed", True),
            (5, "payment.created", False),
        ]
        trail = database.execute(
            """SELECT action, actor LIKE 'key_%%', request_id LIKE 'req_%%', before ->> 'status'
               FROM audit_logs WHERE subject_id = %s ORDER BY id""",
            (payment_id,),
        ).fetchall()
        assert trail == [
            ("payment.created", True, True, None),
            ("payment.pending", False, None, "created"),
            ("payment.confirming", False, None, "pending"),
            ("payment.completed", False, None, "confirming"),
        ]
        told = database.execute(
            """SELECT count(*) FROM audit_logs
               WHERE concat(before, after) ~ '(gv_test_[0-9a-f]{20}|argon2|key_hash|password)'"""
        ).fetchone()
        assert told == (0,)


def test_the_books_balance_and_balances_are_the_sum_of_postings(
    ledger_database: DatabaseServer,
) -> None:
    with superuser(ledger_database) as database:
        assert database.execute("SELECT count(*) FROM ledger_postings").fetchone() != (0,)
        assert (
            database.execute(
                """SELECT entry_id FROM ledger_postings GROUP BY entry_id, asset
               HAVING sum(amount_minor) <> 0"""
            ).fetchall()
            == []
        )
        assert (
            database.execute(
                """SELECT a.id FROM ledger_accounts AS a LEFT JOIN ledger_postings AS p
                   ON p.account_id = a.id
               GROUP BY a.id HAVING a.posted_minor <> coalesce(sum(p.amount_minor), 0)"""
            ).fetchall()
            == []
        )


def test_the_database_has_the_contracts_words(ledger_database: DatabaseServer) -> None:
    with superuser(ledger_database) as database:
        rows = database.execute("SELECT subject, from_status, to_status FROM status_transitions")
        assert set(rows.fetchall()) == {
            (subject, before, after)
            for subject, steps in TRANSITIONS.items()
            for before, afters in steps.items()
            for after in afters
        }
        published = database.execute(
            "SELECT tablename FROM pg_publication_tables WHERE pubname = %s", (PUBLICATION,)
        ).fetchall()
        assert {name for (name,) in published} == set(CAPTURED_TABLES)
        identities = database.execute(
            "SELECT relname FROM pg_class WHERE relreplident = 'f' ORDER BY relname"
        ).fetchall()
        assert [name for (name,) in identities] == ["merchants", "payments", "payouts", "refunds"]
        year = datetime.now(UTC).year
        partitions = database.execute(
            "SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit_logs'::regclass"
        ).fetchone()
        assert partitions == (year + 2 - 2024 + 1,)


def test_migrating_again_changes_nothing(ledger_database: DatabaseServer) -> None:
    run_module("api.migrations", GIOVANG_API_MIGRATION_URL=ledger_database.url("giovang_owner"))
    with superuser(ledger_database) as database:
        assert database.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)


def test_ids_of_the_database_are_ids_of_the_product(ledger_database: DatabaseServer) -> None:
    with superuser(ledger_database) as database:
        made = [
            row[0]
            for row in database.execute("SELECT giovang_id('evt') FROM generate_series(1, 200)")
        ]
    assert len(set(made)) == 200
    ours = new_id("evt")
    assert {len(identifier) for identifier in made} == {len(ours)}
    # Both clocks tell the same hour: ids of both make one order in time.
    assert made[0][4:9] == ours[4:9]
    assert made[0][:14] <= made[-1][:14]
