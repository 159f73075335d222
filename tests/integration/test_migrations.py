"""Migrations: from nothing, and from the release before with its rows."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, LiteralString

import api.migrations
from api.database import Database, Identity, Unit, new_id
from api.ledger.model import AccountKind, Entry, EntryKind, Leg
from api.ledger.service import pending_hold, post_entry, void_hold
from tests.fixtures.audit import number, seal, verify
from tests.fixtures.ledgers import LedgerDatabase
from tests.fixtures.releases import (
    check_books,
    migrations,
    mode_of,
    revision_of,
    revisions,
    rows_of,
    shape_of,
    write_payment,
)

# Of the SQL files of released revisions, one after the other. What is released is never edited:
# a database that has it would not get the change.
RELEASED_FILES = ("010", "020", "030", "040", "050", "060", "070", "080")
RELEASED_SHA256 = "077d4178def746827ad9e68be502e3fc3ebe881f4affd90f3d1fae9f6cc9f27d"
SQL_FOLDER = Path(api.migrations.__file__).parent / "sql"

# Tables of the release before that have another name now.
RENAMED = {"payment_events": "merchant_events"}
# What an upgrade may change in rows that were there: columns by table.
CHANGED = {
    "ledger_accounts": {"posted_minor"},  # open promises: held now, not moved
    "refunds": {"updated_at"},
    "payouts": {"updated_at"},
}


def test_revisions_make_one_line_with_one_head() -> None:
    script = revisions()
    line = list(script.walk_revisions())
    assert len(script.get_heads()) == 1
    assert [one.down_revision for one in line] == [one.revision for one in line[1:]] + [None]
    assert [one.revision for one in line] == sorted((one.revision for one in line), reverse=True)
    used = [
        name
        for one in line
        for name in sorted(path.name for path in SQL_FOLDER.glob("*.sql"))
        if f'"{name}"' in Path(one.path).read_text()
    ]
    assert sorted(used) == sorted(path.name for path in SQL_FOLDER.glob("*.sql"))


def test_what_is_released_is_not_edited() -> None:
    digest = hashlib.sha256()
    for prefix in RELEASED_FILES:
        (file,) = SQL_FOLDER.glob(f"{prefix}_*.sql")
        digest.update(file.read_bytes())
    assert digest.hexdigest() == RELEASED_SHA256


def test_from_nothing_to_the_head_and_again(empty_ledger: LedgerDatabase) -> None:
    answer = migrations(empty_ledger)
    assert answer.returncode == 0, answer.stderr
    head = revisions().get_current_head()
    assert revision_of(empty_ledger) == head
    told = [line.split()[0] for line in answer.stderr.splitlines() if line.endswith(" s")]
    assert told == sorted(one.revision for one in revisions().walk_revisions())
    shape = shape_of(empty_ledger)
    again = migrations(empty_ledger)
    assert again.returncode == 0
    assert not [line for line in again.stderr.splitlines() if line.endswith(" s")]
    assert (revision_of(empty_ledger), shape_of(empty_ledger)) == (head, shape)


async def test_a_connection_plans_for_full_tables_while_they_are_empty(
    empty_ledger: LedgerDatabase,
) -> None:
    # Functions and foreign keys keep the plan of their first run, and nothing analyses new tables.
    empty_ledger.migrate()
    merchant = new_id("mer")
    with empty_ledger.superuser() as database:
        database.execute(
            "INSERT INTO merchants (id, name, trade, timezone, country)"
            " VALUES (%s, 'Phở Thìn', 'restaurant', 'Asia/Ho_Chi_Minh', 'VN')",
            (merchant,),
        )
        before = _rows_read_whole(database)
    url = empty_ledger.url("giovang_watcher")
    async with Database(url, application_name="test", pool_size=1) as ledger:
        for booked in range(10):
            async with ledger.unit_of_work(Identity("test")) as unit:
                entry = Entry(
                    kind=EntryKind.PAYMENT_OVERPAID,
                    key=str(booked),
                    mode="test",
                    merchant_id=merchant,
                    legs=(
                        Leg(AccountKind.CRYPTO_POOL, "USDC", 100),
                        Leg(AccountKind.PAYER_EXCESS, "USDC", -100, merchant),
                    ),
                )
                await post_entry(unit, entry)
    with empty_ledger.superuser() as database:
        assert _rows_read_whole(database) == before


def _rows_read_whole(database: Any) -> dict[str, int]:
    """Return of tables that grow with payments how many rows were read by scanning them whole."""
    rows = database.execute(
        "SELECT relname, seq_tup_read FROM pg_stat_user_tables"
        " WHERE relname ~ '^(ledger|merchant|idempotency|payments)'"
    ).fetchall()
    return {str(name): int(read) for name, read in rows}


def test_from_the_release_before_is_the_same_schema(
    old_ledger: LedgerDatabase, empty_ledger: LedgerDatabase
) -> None:
    old_ledger.migrate()
    empty_ledger.migrate()
    assert shape_of(old_ledger) == shape_of(empty_ledger)


def test_nothing_is_lost(old_ledger: LedgerDatabase) -> None:
    before = rows_of(old_ledger)
    old_ledger.migrate()
    after = rows_of(old_ledger)
    assert sum(len(rows) for rows in before.values()) > 300
    for table, rows in before.items():
        kept = [
            {name: value for name, value in row.items() if name in rows[0]}
            for row in after[RENAMED.get(table, table)]
        ]
        for row in rows:
            free = CHANGED.get(table, ())
            same = [
                other
                for other in kept
                if all(other[name] == value for name, value in row.items() if name not in free)
            ]
            assert same, f"{table}: {row}"
    mode = mode_of(old_ledger)
    for table in ("ledger_accounts", "payouts", "merchant_events"):
        assert {row["mode"] for row in after[table]} == {mode}


def money_of(ledger: LedgerDatabase) -> dict[tuple[Any, ...], int]:
    """What is on each account, with what merchants were owed in all their VND accounts as one."""
    with ledger.superuser() as database:
        rows = database.execute(
            """SELECT merchant_id,
                      CASE WHEN kind IN ('merchant_available', 'payouts_reserved',
                                         'refunds_payable') THEN 'owed' ELSE kind END AS what,
                      asset, sum(posted_minor)::bigint
               FROM ledger_accounts GROUP BY 1, 2, 3"""
        ).fetchall()
    return {(merchant, what, asset): amount for merchant, what, asset, amount in rows}


def test_money_stands_as_it_did_and_promises_are_held(old_ledger: LedgerDatabase) -> None:
    before = money_of(old_ledger)
    old_ledger.migrate()
    assert money_of(old_ledger) == before
    check_books(old_ledger)
    with old_ledger.superuser() as database:
        held = database.execute(
            """SELECT merchant_id, kind, held_minor FROM ledger_accounts
               WHERE held_minor <> 0 ORDER BY merchant_id"""
        ).fetchall()
        assert held == [
            (f"mer_{1:026}", "merchant_available", 100_000),
            (f"mer_{2:026}", "merchant_available", 100_000 + 90_000 + 80_000),
        ]
        closed: LiteralString = """
            SELECT count(*) FROM ledger_accounts
            WHERE kind IN ('payouts_reserved', 'refunds_payable') AND posted_minor <> 0"""
        assert number(database, closed) == 0


def as_operator(ledger: LedgerDatabase, *works: Callable[[Unit], Awaitable[None]]) -> None:
    async def run() -> None:
        url = ledger.url("giovang_operator")
        async with Database(url, application_name="test", pool_size=1) as pool:
            for work in works:
                async with pool.unit_of_work(Identity("adm_test")) as unit:
                    await work(unit)

    asyncio.run(run())


def test_open_refunds_and_payouts_can_be_carried_on(old_ledger: LedgerDatabase) -> None:
    old_ledger.migrate()
    mode = mode_of(old_ledger)

    async def move(unit: Unit, subject: str, status: str) -> None:
        if subject.startswith("rfd_"):
            await unit.run(
                "UPDATE refunds SET status = %(status)s WHERE id = %(id)s",
                {"id": subject, "status": status},
            )
        else:
            await unit.run(
                """UPDATE payouts SET status = %(status)s,
                       approved_by = coalesce(approved_by, 'adm_test'),
                       approved_revision = coalesce(approved_revision, revision),
                       approved_at = coalesce(approved_at, now())
                   WHERE id = %(id)s""",
                {"id": subject, "status": status},
            )

    async def pay(unit: Unit, subject: str, merchant_id: str, amount: int) -> None:
        refund = subject.startswith("rfd_")
        entry = Entry(
            kind=EntryKind.REFUND_COMPLETED if refund else EntryKind.PAYOUT_COMPLETED,
            key=f"carried_on:{subject}",
            mode=mode,
            merchant_id=merchant_id,
            refund_id=subject if refund else None,
            payout_id=None if refund else subject,
            legs=(
                Leg(AccountKind.MERCHANT_AVAILABLE, "VND", amount, merchant_id),
                Leg(AccountKind.LIQUIDITY, "VND", -amount),
            ),
        )
        await post_entry(unit, entry, posts_hold=await pending_hold(unit, subject))

    async def refund(unit: Unit) -> None:
        await pay(unit, f"rfd_{1:026}", f"mer_{1:026}", 100_000)
        await move(unit, f"rfd_{1:026}", "completed")

    async def approve(unit: Unit) -> None:
        await move(unit, f"pyo_{1:026}", "approved")

    async def send(unit: Unit) -> None:
        await move(unit, f"pyo_{1:026}", "sent")

    async def settle(unit: Unit) -> None:
        for payout, amount in ((1, 100_000), (3, 80_000)):
            await pay(unit, f"pyo_{payout:026}", f"mer_{2:026}", amount)
            await move(unit, f"pyo_{payout:026}", "settled")

    async def cancel(unit: Unit) -> None:
        await void_hold(unit, f"pyo_{2:026}")
        await move(unit, f"pyo_{2:026}", "cancelled")

    as_operator(old_ledger, refund, approve, send, settle, cancel)
    check_books(old_ledger)
    with old_ledger.superuser() as database:
        left = database.execute(
            """SELECT merchant_id, -posted_minor, held_minor FROM ledger_accounts
               WHERE kind = 'merchant_available' ORDER BY merchant_id"""
        ).fetchall()
    assert left == [
        (f"mer_{1:026}", 4 * 247_500 - 50_000 - 100_000, 0),
        (f"mer_{2:026}", 2 * 247_500 - 70_000 - 100_000 - 80_000, 0),
    ]


def test_what_follows_goes_on_where_the_past_ended(old_ledger: LedgerDatabase) -> None:
    with old_ledger.superuser() as database:
        trail = number(database, "SELECT count(*) FROM audit_logs")
    old_ledger.migrate()
    mode = mode_of(old_ledger)
    with old_ledger.connect("giovang_api") as database:
        merchant = f"mer_{1:026}"
        database.execute("SELECT set_config('giovang.merchant_id', %s, false)", (merchant,))
        kept = database.execute(
            "SELECT status, body FROM begin_claiming(%s, 'test', '', 'order-1', %s)",
            (merchant, mode),
        ).fetchone()
        assert kept == (201, '{"id": "pay"}')
        write_payment(database, merchant, mode)
        seqs = database.execute(
            "SELECT seq FROM merchant_events WHERE mode = %s ORDER BY seq", (mode,)
        ).fetchall()
    assert [seq for (seq,) in seqs] == list(range(1, len(seqs) + 1))
    # The trail of before is sealed with what came after.
    assert seal(old_ledger) > trail
    found = verify(old_ledger)
    assert (found.intact, found.waiting) == (True, 0)


def test_a_refund_of_the_other_mode_than_the_books_ends_and_gives_back(
    old_ledger: LedgerDatabase,
) -> None:
    with old_ledger.superuser() as database:
        database.execute("SET session_replication_role = replica")
        database.execute("UPDATE payments SET mode = 'live'")
        open_ones = database.execute(
            """UPDATE payments SET mode = 'test'
               WHERE id IN (SELECT payment_id FROM refunds WHERE status = 'requested')
               RETURNING id"""
        ).fetchall()
    assert open_ones
    before = money_of(old_ledger)
    old_ledger.migrate()
    assert money_of(old_ledger) == before
    check_books(old_ledger)
    with old_ledger.superuser() as database:
        assert database.execute(
            """SELECT DISTINCT status, failure_reason IS NULL FROM refunds
               WHERE payment_id = ANY (%s) AND status <> 'completed'""",
            ([payment_id for (payment_id,) in open_ones],),
        ).fetchall() == [("failed", False)]
