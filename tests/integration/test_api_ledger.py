"""Entries and accounts under attack by raw SQL, as each role that could be taken over."""

import secrets
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg

from api.contract import CAPTURED_TABLES, PUBLICATION, TRANSITIONS
from api.database import new_id
from tests.fixtures import books
from tests.fixtures.books import auditor, fund, refused, sign_in, standing, value
from tests.fixtures.services import DatabaseServer, run_module

BOOKING_ROLES = ("giovang_watcher", "giovang_operator")
ROLES = ("giovang_api", *BOOKING_ROLES)


@pytest.fixture(scope="module", autouse=True)
def _books_balance_afterwards(ledger_database: DatabaseServer) -> Any:
    yield
    books.assert_books_balance(ledger_database)


@pytest.fixture
def merchant(ledger_database: DatabaseServer) -> str:
    """A merchant with 500,000 dong."""
    merchant_id = books.new_merchant(ledger_database)
    fund(ledger_database, merchant_id, 500_000)
    return merchant_id


def account(
    connection: psycopg.Connection[Any], kind: str, asset: str = "USDC", merchant: str | None = None
) -> str:
    """Return the id of an account, made where it is not there yet."""
    path = value(connection, "SELECT ledger_path('test', %s, %s, %s, '')", merchant, kind, asset)
    connection.execute("SELECT ledger_open_accounts(ARRAY[%s])", (path,))
    return str(value(connection, "SELECT id FROM ledger_accounts WHERE path = %s", path))


def new_entry(connection: psycopg.Connection[Any]) -> str:
    entry_id = new_id("ent")
    connection.execute(
        """INSERT INTO ledger_entries (id, kind, idempotency_key)
           VALUES (%s, 'transfer_suspended', %s)""",
        (entry_id, entry_id),
    )
    return entry_id


def add_legs(
    connection: psycopg.Connection[Any], entry: str, first: int, *legs: tuple[str, int]
) -> None:
    """Add legs of platform accounts in USDC to an entry, all by one statement."""
    accounts = [account(connection, kind) for kind, _ in legs]
    connection.execute(
        """INSERT INTO ledger_postings (entry_id, seq, account_id, asset, amount_minor)
           SELECT %s, %s + place, account, 'USDC', amount
           FROM unnest(%s::text[], %s::bigint[]) WITH ORDINALITY AS l (account, amount, place)""",
        (entry, first - 1, accounts, [amount for _, amount in legs]),
    )


def book(connection: psycopg.Connection[Any], *legs: tuple[str, int]) -> str:
    with connection.transaction():
        entry = new_entry(connection)
        if legs:
            add_legs(connection, entry, 1, *legs)
    return entry


@pytest.mark.parametrize("role", BOOKING_ROLES)
def test_an_entry_that_does_not_balance_is_refused(
    ledger_database: DatabaseServer, role: str
) -> None:
    with sign_in(ledger_database, role) as database:
        with pytest.raises(pg.CheckViolation, match="does not balance"):
            book(database, ("crypto_pool", 10), ("suspense", -9))
        with pytest.raises(pg.CheckViolation, match="does not balance"):
            book(database, ("crypto_pool", 10))
        with pytest.raises(pg.CheckViolation, match="no postings"):
            book(database)


@pytest.mark.parametrize("role", BOOKING_ROLES)
def test_a_leg_cannot_be_added_behind_the_check(ledger_database: DatabaseServer, role: str) -> None:
    with sign_in(ledger_database, role) as database:
        for trick in (
            ("SET CONSTRAINTS ALL IMMEDIATE", "SET CONSTRAINTS ALL DEFERRED"),
            ("SET CONSTRAINTS ALL DEFERRED",),
            ("SET CONSTRAINTS ledger_entries_sum_zero DEFERRED",),
        ):
            with refused("ledger_entries_sum_zero"), database.transaction():
                entry = new_entry(database)
                add_legs(database, entry, 1, ("crypto_pool", 10), ("suspense", -10))
                for statement in trick:
                    database.execute(statement.encode())
                add_legs(database, entry, 3, ("crypto_pool", 1))
        # One leg in each of two statements would balance at the end; it is refused on the way.
        with refused("ledger_entries_sum_zero"), database.transaction():
            entry = new_entry(database)
            add_legs(database, entry, 1, ("crypto_pool", 10))
            add_legs(database, entry, 2, ("suspense", -10))


def test_assets_do_not_balance_each_other(ledger_database: DatabaseServer) -> None:
    with (
        sign_in(ledger_database, "giovang_watcher") as watcher,
        pytest.raises(pg.CheckViolation, match="does not balance"),
    ):
        books.post(watcher, (None, "crypto_pool", "USDC", 5), (None, "suspense", "USDT", -5))


@pytest.mark.parametrize("role", BOOKING_ROLES)
def test_a_booked_entry_is_sealed(ledger_database: DatabaseServer, role: str) -> None:
    with sign_in(ledger_database, role) as database:
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


def test_history_is_kept_from_whoever_may_write_every_column(
    ledger_database: DatabaseServer, merchant: str
) -> None:
    with sign_in(ledger_database, "giovang_api", merchant) as tenant:
        payout = books.ask_payout(tenant, merchant, 1_000)
    with auditor(ledger_database) as database:
        entry = value(database, "SELECT max(entry_id) FROM ledger_postings")
        held = value(database, "SELECT id FROM ledger_holds WHERE payout_id = %s", payout)
        for statement, subject in (
            ("UPDATE ledger_postings SET amount_minor = 11 WHERE entry_id = %s", entry),
            ("DELETE FROM ledger_postings WHERE entry_id = %s", entry),
            ("UPDATE ledger_entries SET description = 'x' WHERE id = %s", entry),
            ("DELETE FROM ledger_entries WHERE id = %s", entry),
            ("UPDATE ledger_holds SET amount_minor = 1 WHERE id = %s", held),
            ("UPDATE ledger_holds SET account_id = account_id WHERE id = %s", held),
            ("DELETE FROM ledger_holds WHERE id = %s", held),
            ("UPDATE ledger_accounts SET mode = 'live' WHERE merchant_id = %s", merchant),
            ("UPDATE ledger_accounts SET shard = 1 WHERE merchant_id = %s", merchant),
            ("DELETE FROM ledger_accounts WHERE merchant_id = %s", merchant),
        ):
            with pytest.raises(pg.RestrictViolation, match="history"):
                database.execute(statement.encode(), (subject,))
        for table in ("ledger_postings", "ledger_entries", "ledger_holds"):
            with pytest.raises(pg.RestrictViolation, match="history"):
                database.execute(f"TRUNCATE {table} CASCADE".encode())


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_postings SET amount_minor = 1",
        "DELETE FROM ledger_postings",
        "TRUNCATE ledger_postings",
        "UPDATE ledger_entries SET description = 'x'",
        "DELETE FROM ledger_entries",
        "TRUNCATE ledger_entries CASCADE",
        "UPDATE ledger_accounts SET posted_minor = 0",
        "UPDATE ledger_accounts SET held_minor = 0",
        "UPDATE ledger_accounts SET merchant_id = NULL",
        "DELETE FROM ledger_accounts",
        "TRUNCATE ledger_accounts CASCADE",
        "INSERT INTO ledger_accounts (id, kind, asset, posted_minor) VALUES ('a', 'x', 'VND', 1)",
        "INSERT INTO ledger_accounts (id, kind, asset, held_minor) VALUES ('a', 'x', 'VND', 1)",
        "UPDATE ledger_holds SET amount_minor = 1",
        "UPDATE ledger_holds SET payout_id = NULL",
        "DELETE FROM ledger_holds",
        "TRUNCATE ledger_holds",
        "INSERT INTO ledger_holds (id, status) VALUES ('h', 'posted')",
        "INSERT INTO merchant_events SELECT * FROM merchant_events",
        "UPDATE merchant_event_counters SET last_seq = 0",
        "DELETE FROM audit_logs",
        "UPDATE audit_logs SET actor = 'nobody'",
        "UPDATE payments SET amount_minor = 1",
        "UPDATE payments SET status_at = now()",
        "DELETE FROM payments",
        "TRUNCATE payments CASCADE",
        "UPDATE refunds SET amount_minor = 1",
        "UPDATE payouts SET mode = 'live'",
        "UPDATE payouts SET merchant_id = 'mer_x'",
        "DELETE FROM payouts",
        "UPDATE merchants SET id = 'mer_x'",
        "UPDATE status_transitions SET to_status = 'completed'",
        "UPDATE status_transitions SET api_may = true",
        "ALTER TABLE payments DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE ledger_holds DISABLE TRIGGER ALL",
        "SET session_replication_role = replica",
        "CALL close_tenant_table('payments')",
    ],
)
def test_roles_have_no_grant_to_rewrite_history(
    ledger_database: DatabaseServer, role: str, statement: str
) -> None:
    with sign_in(ledger_database, role) as database, pytest.raises(pg.InsufficientPrivilege):
        database.execute(statement.encode())


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger_accounts SET asset = 'VND'",
        "UPDATE refunds SET status = 'completed'",
        "UPDATE payments SET received_minor = 1",
        "UPDATE payments SET settled_minor = 1",
        "UPDATE payments SET fee_minor = 0",
        "UPDATE payments SET escrow_released_at = now()",
        "UPDATE payouts SET bank_reference = 'paid'",
        "UPDATE ledger_holds SET entry_id = NULL",
        "UPDATE ledger_holds SET expires_at = NULL",
        "UPDATE disputes SET outcome = 'merchant'",
        "INSERT INTO ledger_entries (id, kind, idempotency_key) VALUES ('e', 'reversal', 'k')",
        """INSERT INTO ledger_postings (entry_id, seq, account_id, asset, amount_minor)
           VALUES ('e', 1, 'a', 'VND', 1)""",
        "INSERT INTO ledger_accounts (id, kind, asset) VALUES ('a', 'liquidity', 'VND')",
        "SELECT ledger_open_accounts('{}')",
        "SELECT ledger_draw('{}', '{}', '{}')",
        "SELECT ledger_reverse_entry('ent', 'ent', 'key', '')",
        """SELECT ledger_post_entry('ent', 'test', NULL, 'reversal', 'k', '', NULL, NULL, NULL,
                                    NULL, '{}', '{}', '{}', '{}')""",
    ],
)
def test_the_api_books_nothing(
    ledger_database: DatabaseServer, merchant: str, statement: str
) -> None:
    with (
        sign_in(ledger_database, "giovang_api", merchant) as database,
        pytest.raises(pg.InsufficientPrivilege),
    ):
        database.execute(statement.encode())


@pytest.mark.parametrize("role", BOOKING_ROLES)
def test_an_account_keeps_its_name_its_owner_and_its_floor(
    ledger_database: DatabaseServer, merchant: str, role: str
) -> None:
    with sign_in(ledger_database, role) as database:
        with pytest.raises(pg.RestrictViolation):
            database.execute("UPDATE ledger_accounts SET asset = 'USDT' WHERE asset = 'VND'")
        for legs in (
            (
                (merchant, "merchant_available", "VND", 500_001),
                (None, "liquidity", "VND", -500_001),
            ),
            ((None, "crypto_pool", "USDC", -(10**15)), (None, "liquidity", "USDC", 10**15)),
            ((None, "fee_revenue", "VND", 10**15), (None, "liquidity", "VND", -(10**15))),
            ((None, "suspense", "USDC", 10**15), (None, "liquidity", "USDC", -(10**15))),
            ((merchant, "payer_excess", "USDC", 1), (None, "liquidity", "USDC", -1)),
            ((merchant, "escrow_liability_pool", "VND", 1), (None, "liquidity", "VND", -1)),
        ):
            with refused("ledger_accounts_never_overdrawn"):
                books.post(database, *legs)
        for owner, kind in ((None, "merchant_available"), (None, "gold"), (merchant, "liquidity")):
            with pytest.raises(pg.CheckViolation, match="ledger_accounts_owner"):
                books.post(database, (None, "liquidity", "VND", 1), (owner, kind, "VND", -1))
        for shard, owner, kind in ((32, None, "liquidity"), (1, None, "suspense")):
            with pytest.raises(pg.CheckViolation, match="ledger_accounts_shard"):
                database.execute(
                    """INSERT INTO ledger_accounts (id, merchant_id, mode, kind, asset, shard)
                       VALUES (%s, %s, 'test', %s, 'USD', %s)""",
                    (new_id("acc"), owner, kind, shard),
                )
        with pytest.raises(pg.CheckViolation, match="ledger_accounts_shard"):
            database.execute(
                """INSERT INTO ledger_accounts (id, merchant_id, mode, kind, asset, shard)
                   VALUES (%s, %s, 'test', 'merchant_available', 'VND', 1)""",
                (new_id("acc"), merchant),
            )
    assert standing(ledger_database, merchant) == (500_000, 0)


@pytest.mark.parametrize("role", BOOKING_ROLES)
def test_test_money_and_live_money_do_not_mix(
    ledger_database: DatabaseServer, merchant: str, role: str
) -> None:
    fund(ledger_database, merchant, 10, mode="live")
    with auditor(ledger_database) as database:
        by_mode = dict(
            database.execute(
                "SELECT mode, id FROM ledger_accounts WHERE merchant_id = %s", (merchant,)
            ).fetchall()
        )
    with (
        sign_in(ledger_database, role) as database,
        refused("ledger_postings_merchant", "all are of one mode"),
        database.transaction(),
    ):
        entry = new_entry(database)
        database.execute(
            """INSERT INTO ledger_postings
                   (entry_id, seq, merchant_id, account_id, asset, amount_minor)
               VALUES (%(entry)s, 1, %(merchant)s, %(test)s, 'VND', 5),
                      (%(entry)s, 2, %(merchant)s, %(live)s, 'VND', -5)""",
            {"entry": entry, "merchant": merchant, **by_mode},
        )


def test_an_operator_for_one_merchant_does_not_reach_another(
    ledger_database: DatabaseServer, merchant: str
) -> None:
    me = books.new_merchant(ledger_database)
    theirs = (merchant, "merchant_available", "VND", 5)
    with sign_in(ledger_database, "giovang_operator", me) as database:
        assert (
            value(database, "SELECT count(*) FROM ledger_accounts WHERE merchant_id = %s", merchant)
            == 0
        )
        with pytest.raises(pg.InsufficientPrivilege, match="row-level security"):
            books.post(database, theirs, (me, "merchant_available", "VND", -5))
    with auditor(ledger_database) as database:
        their_account = account(database, "merchant_available", "VND", merchant)
    # A foreign key looks past row-level security; the trigger on postings does not.
    with (
        sign_in(ledger_database, "giovang_operator", me) as database,
        refused("ledger_postings_merchant"),
        database.transaction(),
    ):
        entry = new_entry(database)
        mine = account(database, "merchant_available", "VND", me)
        database.execute(
            """INSERT INTO ledger_postings
                   (entry_id, seq, merchant_id, account_id, asset, amount_minor)
               VALUES (%(entry)s, 1, %(me)s, %(theirs)s, 'VND', 5),
                      (%(entry)s, 2, %(me)s, %(mine)s, 'VND', -5)""",
            {"entry": entry, "me": me, "theirs": their_account, "mine": mine},
        )
    assert standing(ledger_database, merchant) == (500_000, 0)
    assert standing(ledger_database, me) == (0, 0)


def test_a_key_books_one_entry(ledger_database: DatabaseServer, merchant: str) -> None:
    pool, waiting = (None, "crypto_pool", "USDT", 5), (None, "suspense", "USDT", -5)
    cash, credit = (None, "liquidity", "VND", 7), (merchant, "merchant_available", "VND", -7)
    key = secrets.token_hex(8)
    with sign_in(ledger_database, "giovang_watcher") as database:
        first = books.post(database, pool, waiting, cash, credit, key=key)
        assert books.post(database, cash, pool, credit, waiting, key=key) == first
        for other in (
            ((None, "crypto_pool", "USDT", 6), (None, "suspense", "USDT", -6)),
            (pool, waiting),
            (pool, waiting, cash, (None, "fee_revenue", "VND", -7)),
        ):
            with pytest.raises(pg.UniqueViolation, match="already booked another entry"):
                books.post(database, *other, key=key)
        with pytest.raises(pg.UniqueViolation, match="already booked another entry"):
            books.post(database, pool, waiting, cash, credit, key=key, mode="live")
        with pytest.raises(pg.UniqueViolation, match="already booked another entry"):
            books.post(database, pool, waiting, cash, credit, key=key, kind="payment_overpaid")
        assert (
            value(database, "SELECT count(*) FROM ledger_postings WHERE entry_id = %s", first) == 4
        )
    assert standing(ledger_database, merchant) == (500_007, 0)


def test_each_change_has_its_event_and_its_audit_row(
    ledger_database: DatabaseServer, merchant: str
) -> None:
    payment = books.paid(ledger_database, merchant)
    with sign_in(ledger_database, "giovang_api", merchant) as tenant:
        books.ask_refund(tenant, merchant, payment, 1_000)
        payout = books.ask_payout(tenant, merchant, 2_000)
        books.approve(tenant, payout)
        assert tenant.execute(
            """SELECT seq, type, payment_id = %s, payout_id = %s FROM merchant_events
               WHERE mode = 'test' ORDER BY seq""",
            (payment, payout),
        ).fetchall() == [
            (1, "payment.created", True, None),
            (2, "payment.pending", True, None),
            (3, "payment.confirming", True, None),
            (4, "payment.completed", True, None),
            (5, "refund.requested", True, None),
            (6, "payout.requested", None, True),
            (7, "payout.approved", None, True),
        ]
    with auditor(ledger_database) as database:
        assert database.execute(
            """SELECT action, before ->> 'status' FROM audit_logs
               WHERE subject_id = %s OR after ->> 'payout_id' = %s ORDER BY id""",
            (payout, payout),
        ).fetchall() == [
            ("payout.created", None),
            ("hold.created", None),
            ("payout.approved", "requested"),
        ]
        told = value(
            database,
            """SELECT count(*) FROM audit_logs
               WHERE concat(before, after) ~ '(gv_test_[0-9a-f]{20}|argon2|key_hash|password)'""",
        )
        assert told == 0


def test_the_database_has_the_contracts_words(ledger_database: DatabaseServer) -> None:
    with auditor(ledger_database) as database:
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
        partitions = value(
            database, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit_logs'::regclass"
        )
        assert partitions == year + 2 - 2024 + 1


def test_migrating_again_changes_nothing(ledger_database: DatabaseServer) -> None:
    run_module("api.migrations", GIOVANG_API_MIGRATION_URL=ledger_database.url("giovang_owner"))
    with auditor(ledger_database) as database:
        assert value(database, "SELECT count(*) FROM alembic_version") == 1


def test_ids_of_the_database_are_ids_of_the_product(ledger_database: DatabaseServer) -> None:
    with auditor(ledger_database) as database:
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
