"""Holds, and the payouts, refunds and payments they stand for, under attack by raw SQL."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import errors as pg
from psycopg import sql

from api.database import new_id
from tests.fixtures import books
from tests.fixtures.books import (
    ASKER,
    approve,
    ask_payment,
    ask_payout,
    ask_refund,
    auditor,
    change,
    fund,
    hold,
    refused,
    sign_in,
    standing,
    value,
    walk,
)
from tests.fixtures.services import DatabaseServer

Connection = psycopg.Connection[Any]
CANCEL = "UPDATE payouts SET status = 'cancelled' WHERE id = %s"
VOID = "UPDATE ledger_holds SET status = 'voided' WHERE payout_id = %s AND status = 'pending'"
EXPIRE = "UPDATE ledger_holds SET status = 'expired' WHERE payout_id = %s AND status = 'pending'"


@pytest.fixture(scope="module", autouse=True)
def _books_balance_afterwards(ledger_database: DatabaseServer) -> Any:
    yield
    books.assert_books_balance(ledger_database)


@pytest.fixture
def merchant(ledger_database: DatabaseServer) -> str:
    """A merchant with 500,000 dong, and a million that is test money."""
    merchant_id = books.new_merchant(ledger_database)
    fund(ledger_database, merchant_id, 500_000, mode="live")
    fund(ledger_database, merchant_id, 1_000_000)
    return merchant_id


@pytest.fixture
def tenant(ledger_database: DatabaseServer, merchant: str) -> Iterator[Connection]:
    """The API's role, speaking for the merchant."""
    with sign_in(ledger_database, "giovang_api", merchant) as connection:
        yield connection


@pytest.fixture
def operator(ledger_database: DatabaseServer) -> Iterator[Connection]:
    """The operator's role, as an admin uses it."""
    with sign_in(ledger_database, "giovang_operator") as connection:
        yield connection


@pytest.fixture
def watcher(ledger_database: DatabaseServer) -> Iterator[Connection]:
    """The watcher's role."""
    with sign_in(ledger_database, "giovang_watcher") as connection:
        yield connection


def test_a_hold_takes_from_what_is_available_and_never_more(
    ledger_database: DatabaseServer, tenant: Connection, merchant: str
) -> None:
    ask = partial(ask_payout, tenant, merchant, mode="live")
    with refused("ledger_accounts_never_overdrawn"):
        ask(500_001)
    ask(400_000)
    assert standing(ledger_database, merchant, mode="live") == (500_000, 400_000)
    with refused("ledger_accounts_never_overdrawn"):
        ask(100_001)
    ask(100_000)
    with refused("ledger_accounts_never_overdrawn"):
        ask(1)
    # What is held cannot be spent by an entry either.
    with (
        sign_in(ledger_database, "giovang_watcher") as watcher,
        refused("ledger_accounts_never_overdrawn"),
    ):
        books.post(
            watcher,
            (merchant, "merchant_available", "VND", 1),
            (None, "liquidity", "VND", -1),
            mode="live",
        )


def test_a_promise_without_its_hold_is_not_kept(
    ledger_database: DatabaseServer, tenant: Connection, merchant: str
) -> None:
    payment = books.paid(ledger_database, merchant)
    for held in (0, 9_999, 10_001):
        with refused("ledger_holds_agree"):
            ask_payout(tenant, merchant, 10_000, held=held)
        with refused("ledger_holds_agree"):
            ask_refund(tenant, merchant, payment, 10_000, held=held)
    # Checked early, the promise is still checked.
    with refused("ledger_holds_agree"), tenant.transaction():
        payout = ask_payout(tenant, merchant, 10_000)
        tenant.execute("SET CONSTRAINTS ALL IMMEDIATE")
        tenant.execute("SET CONSTRAINTS ALL DEFERRED")
        tenant.execute(VOID, (payout,))


def test_a_promise_is_held_once_and_where_its_money_is(
    tenant: Connection, merchant: str, ledger_database: DatabaseServer
) -> None:
    payout = ask_payout(tenant, merchant, 10_000, mode="live")
    with refused("ledger_holds_one_pending"):
        hold(tenant, merchant, 10_000, payout=payout, mode="live")
    fund(ledger_database, merchant, 90_000, kind="escrow_liability_pool", mode="live")
    for elsewhere in ({"mode": "test"}, {"mode": "live", "kind": "escrow_liability_pool"}):
        with refused("ledger_holds_agree"), tenant.transaction():
            tenant.execute(VOID, (payout,))
            hold(tenant, merchant, 10_000, payout=payout, **elsewhere)
    with refused("ledger_holds_one_subject"):
        hold(tenant, merchant, 10_000)
    payment = ask_payment_as(ledger_database, merchant)
    with refused("ledger_holds_one_subject"):
        hold(tenant, merchant, 10_000, payout=payout, payment=payment)
    with refused("ledger_holds_agree"):
        hold(tenant, merchant, 10_000, payment=payment)


def ask_payment_as(database: DatabaseServer, merchant: str) -> str:
    with auditor(database) as connection:
        return ask_payment(connection, merchant)


def test_another_merchants_promises_and_accounts_are_out_of_reach(
    ledger_database: DatabaseServer, tenant: Connection, merchant: str
) -> None:
    other = books.new_merchant(ledger_database)
    fund(ledger_database, other, 70_000)
    with sign_in(ledger_database, "giovang_api", other) as theirs:
        payout = ask_payout(theirs, other, 70_000)
    assert tenant.execute(VOID, (payout,)).rowcount == 0
    assert tenant.execute(CANCEL, (payout,)).rowcount == 0
    with pytest.raises(pg.UniqueViolation, match="ledger_holds_one_pending"):
        hold(tenant, merchant, 70_000, payout=payout)
    with auditor(ledger_database) as connection:
        account = value(
            connection, "SELECT account_id FROM ledger_holds WHERE payout_id = %s", payout
        )
    mine = new_id("pyo")
    for owner, constraint in ((merchant, "ledger_holds_merchant"), (other, None)):
        with refused(constraint), tenant.transaction():
            tenant.execute(
                """INSERT INTO payouts (id, merchant_id, mode, amount_minor, asset, destination,
                                        requested_by)
                   VALUES (%s, %s, 'test', 5, 'VND', 'x', %s)""",
                (mine, merchant, ASKER),
            )
            tenant.execute(
                """INSERT INTO ledger_holds (id, merchant_id, account_id, asset, amount_minor,
                                             idempotency_key, payout_id)
                   VALUES (%s, %s, %s, 'VND', 5, %s, %s)""",
                (new_id("hld"), owner, account, mine, mine),
            )
    assert standing(ledger_database, other) == (70_000, 70_000)


def test_the_api_ends_holds_by_giving_back_and_in_no_other_way(
    tenant: Connection, merchant: str, operator: Connection
) -> None:
    payout = ask_payout(tenant, merchant, 10_000)
    with pytest.raises(
        pg.InsufficientPrivilege, match="may not move a hold from pending to posted"
    ):
        tenant.execute("UPDATE ledger_holds SET status = 'posted' WHERE payout_id = %s", (payout,))
    with pytest.raises(pg.InsufficientPrivilege, match="may not move a hold"):
        tenant.execute(EXPIRE, (payout,))
    with refused("ledger_holds_agree"):
        tenant.execute(VOID, (payout,))
    approve(tenant, payout)
    with refused("ledger_holds_agree"):
        tenant.execute(VOID, (payout,))
    operator.execute("UPDATE payouts SET status = 'sent' WHERE id = %s", (payout,))
    for void_by in (tenant, operator):
        with refused("ledger_holds_agree"):
            void_by.execute(VOID, (payout,))
    with refused("status_transitions"), tenant.transaction():
        tenant.execute(VOID, (payout,))
        tenant.execute(CANCEL, (payout,))


def test_a_cancelled_payout_gives_its_money_back(
    ledger_database: DatabaseServer, tenant: Connection, merchant: str
) -> None:
    payout = ask_payout(tenant, merchant, 10_000)
    with refused("ledger_holds_agree"):
        tenant.execute(CANCEL, (payout,))
    with tenant.transaction():
        tenant.execute(CANCEL, (payout,))
        tenant.execute(VOID, (payout,))
    assert standing(ledger_database, merchant) == (1_000_000, 0)
    # What has ended is history.
    with auditor(ledger_database) as connection:
        for ended in ("status = 'pending'", "expires_at = now()", "entry_id = 'ent'"):
            with pytest.raises(pg.RestrictViolation, match="history"):
                change(connection, "ledger_holds", ended, payout)


def settle(
    connection: Connection,
    merchant: str,
    payout: str,
    *,
    amount: int = 10_000,
    mode: str = "test",
    about: str | None = None,
) -> None:
    """Settle a payout by an entry of this amount, mode and subject."""
    held = value(connection, "SELECT id FROM ledger_holds WHERE payout_id = %s", payout)
    with connection.transaction():
        connection.execute("UPDATE payouts SET status = 'settled' WHERE id = %s", (payout,))
        books.post(
            connection,
            (merchant, "merchant_available", "VND", amount),
            (None, "liquidity", "VND", -amount),
            kind="payout_completed",
            mode=mode,
            payout=about or payout,
            posts_hold=held,
        )


def test_a_payout_settles_by_one_entry_of_its_own_amount(
    ledger_database: DatabaseServer, tenant: Connection, merchant: str, operator: Connection
) -> None:
    payout, other = (ask_payout(tenant, merchant, 10_000) for _ in range(2))
    approve(tenant, payout)
    operator.execute("UPDATE payouts SET status = 'sent' WHERE id = %s", (payout,))
    with refused("ledger_holds_agree"):
        operator.execute("UPDATE payouts SET status = 'settled' WHERE id = %s", (payout,))
    for wrong in ({"amount": 9_999}, {"amount": 10_001}, {"mode": "live"}, {"about": other}):
        with refused("ledger_holds_posted_in_full"):
            settle(operator, merchant, payout, **wrong)
    # An entry booked before for something else cannot serve again.
    fund_entry = fund(ledger_database, merchant, 10_000)
    with refused("ledger_holds_posted_in_full"), operator.transaction():
        operator.execute("UPDATE payouts SET status = 'settled' WHERE id = %s", (payout,))
        operator.execute(
            "UPDATE ledger_holds SET status = 'posted', entry_id = %s WHERE payout_id = %s",
            (fund_entry, payout),
        )
    settle(operator, merchant, payout)
    with refused("status_transitions"):
        operator.execute("UPDATE payouts SET status = 'sent' WHERE id = %s", (payout,))
    with refused("ledger_holds_pending"):
        held = value(operator, "SELECT id FROM ledger_holds WHERE payout_id = %s", payout)
        books.post(
            operator,
            (merchant, "merchant_available", "VND", 10_000),
            (None, "liquidity", "VND", -10_000),
            payout=payout,
            posts_hold=held,
        )
    assert standing(ledger_database, merchant) == (1_000_000, 10_000)


def test_an_amended_amount_needs_its_new_hold(
    ledger_database: DatabaseServer, tenant: Connection, merchant: str
) -> None:
    payout = ask_payout(tenant, merchant, 10_000)
    amend = "UPDATE payouts SET amount_minor = 30000, revision = 2 WHERE id = %s"
    with refused("ledger_holds_agree"):
        tenant.execute(amend, (payout,))
    with tenant.transaction():
        tenant.execute(amend, (payout,))
        tenant.execute(VOID, (payout,))
        hold(tenant, merchant, 30_000, payout=payout)
    assert standing(ledger_database, merchant) == (1_000_000, 30_000)


def test_a_refund_completes_and_fails_with_its_hold(
    ledger_database: DatabaseServer, tenant: Connection, merchant: str, operator: Connection
) -> None:
    payment = books.paid(ledger_database, merchant)
    refund, failing = (ask_refund(tenant, merchant, payment, 10_000) for _ in range(2))
    for status in ("completed", "failed"):
        with refused("ledger_holds_agree"):
            operator.execute("UPDATE refunds SET status = %s WHERE id = %s", (status, refund))
    held = value(operator, "SELECT id FROM ledger_holds WHERE refund_id = %s", refund)
    legs = ((merchant, "merchant_available", "VND", 10_000), (None, "liquidity", "VND", -10_000))
    with refused("ledger_holds_agree"):
        books.post(operator, *legs, payment=payment, refund=refund, posts_hold=held)
    with operator.transaction():
        operator.execute("UPDATE refunds SET status = 'completed' WHERE id = %s", (refund,))
        books.post(operator, *legs, payment=payment, refund=refund, posts_hold=held)
    with operator.transaction():
        operator.execute("UPDATE refunds SET status = 'failed' WHERE id = %s", (failing,))
        operator.execute(
            "UPDATE ledger_holds SET status = 'voided' WHERE refund_id = %s", (failing,)
        )
    assert standing(ledger_database, merchant) == (1_240_000, 0)


def test_refunds_at_once_return_at_most_what_was_settled(
    ledger_database: DatabaseServer, merchant: str
) -> None:
    payment = books.paid(ledger_database, merchant, 100_000)

    def ask(_: int) -> bool:
        with sign_in(ledger_database, "giovang_api", merchant) as connection:
            try:
                ask_refund(connection, merchant, payment, 30_000)
            except pg.CheckViolation as refusal:
                if refusal.diag.constraint_name != "refunds_within_payment":
                    raise
                return False
            return True

    with ThreadPoolExecutor(8) as clients:
        assert sum(clients.map(ask, range(8))) == 3
    assert standing(ledger_database, merchant) == (1_100_000, 90_000)


def test_escrow_is_held_while_the_payment_waits(
    ledger_database: DatabaseServer, tenant: Connection, merchant: str, operator: Connection
) -> None:
    payment = books.in_escrow(ledger_database, merchant)
    pool = partial(standing, ledger_database, merchant, "escrow_liability_pool")
    assert pool() == (250_000, 250_000)
    void = "UPDATE ledger_holds SET status = 'voided' WHERE payment_id = %s"
    for database in (tenant, operator):
        with refused("ledger_holds_agree"):
            database.execute(void, (payment,))
    with refused("ledger_accounts_never_overdrawn"):
        books.post(
            operator,
            (merchant, "escrow_liability_pool", "VND", 1),
            (merchant, "merchant_available", "VND", -1),
        )
    tenant.execute(
        """UPDATE payments SET status = 'awaiting_release',
                  escrow_release_due_at = now() + interval '1 day' WHERE id = %s""",
        (payment,),
    )
    release = """UPDATE payments SET status = 'completed', escrow_released_at = now(),
                        escrow_released_by = 'payer' WHERE id = %s"""
    with refused("ledger_holds_agree"), operator.transaction():
        operator.execute(release, (payment,))
        books.post(
            operator,
            (None, "liquidity", "VND", 1),
            (merchant, "merchant_available", "VND", -1),
            kind="escrow_released",
            payment=payment,
        )
    held = value(operator, "SELECT id FROM ledger_holds WHERE payment_id = %s", payment)
    with operator.transaction():
        operator.execute(release, (payment,))
        books.post(
            operator,
            (merchant, "escrow_liability_pool", "VND", 250_000),
            (merchant, "merchant_available", "VND", -247_500),
            (None, "fee_revenue", "VND", -2_500),
            kind="escrow_released",
            payment=payment,
            posts_hold=held,
        )
    assert pool() == (0, 0)
    assert standing(ledger_database, merchant) == (1_247_500, 0)


def test_a_payments_status_cannot_jump_and_the_api_moves_no_money(
    ledger_database: DatabaseServer, tenant: Connection, merchant: str, watcher: Connection
) -> None:
    with auditor(ledger_database) as connection:
        payment = ask_payment(connection, merchant)
        escrow = ask_payment(connection, merchant, is_escrow=True)
    for status in ("completed", "confirming", "escrow_held", "resolved", "disputed"):
        with pytest.raises(pg.CheckViolation, match="may not go from created"):
            walk(watcher, payment, status)
    for subject in (payment, escrow):
        walk(tenant, subject, "pending")
        for status in ("confirming", "expired", "failed"):
            with pytest.raises(
                pg.InsufficientPrivilege, match="giovang_api may not move a payment"
            ):
                walk(tenant, subject, status)
        walk(watcher, subject, "confirming")
        for status in ("completed", "escrow_held"):
            with pytest.raises(
                pg.InsufficientPrivilege, match="giovang_api may not move a payment"
            ):
                walk(tenant, subject, status)
    for subject, status in ((payment, "completed"), (escrow, "escrow_held")):
        with refused("payments_completed_is_booked"):
            walk(watcher, subject, status)


@pytest.mark.parametrize("table", ["payments", "refunds", "payouts", "ledger_holds"])
def test_nothing_is_born_grown_up(
    ledger_database: DatabaseServer, tenant: Connection, merchant: str, table: str
) -> None:
    payment = books.paid(ledger_database, merchant)
    payout = ask_payout(tenant, merchant, 1)
    refund = ask_refund(tenant, merchant, payment, 1)
    subject, prefix, grown = {
        "payments": (payment, "pay", "completed"),
        "refunds": (refund, "rfd", "completed"),
        "payouts": (payout, "pyo", "settled"),
        "ledger_holds": (
            value(tenant, "SELECT id FROM ledger_holds WHERE payout_id = %s", payout),
            "hld",
            "expired",
        ),
    }[table]
    with auditor(ledger_database) as connection:
        born = sql.SQL("CREATE TEMPORARY TABLE born AS SELECT * FROM {} WHERE id = %s")
        connection.execute(born.format(sql.Identifier(table)), (subject,))
        connection.execute("UPDATE born SET id = %s, status = %s", (new_id(prefix), grown))
        with pytest.raises(pg.CheckViolation, match="begins as"):
            connection.execute(
                sql.SQL("INSERT INTO {} SELECT * FROM born").format(sql.Identifier(table))
            )
