"""The ledger's service on PostgreSQL: booking, reversing, holding, reading; by one and by many."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from api.database import Database, Identity, Unit, new_id
from api.errors import Conflict, InsufficientBalance
from api.ledger import service
from api.ledger.model import AccountKind, Balance, Entry, EntryKind, Hold, Leg
from tests.fixtures import books
from tests.fixtures.books import auditor, fund, standing, value
from tests.fixtures.services import DatabaseServer

CLIENTS = 16
ROUNDS = 12


@pytest.fixture(scope="module", autouse=True)
def _books_balance_afterwards(ledger_database: DatabaseServer) -> Any:
    yield
    books.assert_books_balance(ledger_database)


@pytest.fixture
def merchant(ledger_database: DatabaseServer) -> str:
    return books.new_merchant(ledger_database)


@pytest.fixture
async def watcher(ledger_database: DatabaseServer) -> AsyncIterator[Database]:
    """A pool of the watcher's role, a connection for each client."""
    url = ledger_database.url("giovang_watcher")
    async with Database(url, application_name="test", pool_size=CLIENTS) as pool:
        yield pool


@pytest.fixture
async def api(ledger_database: DatabaseServer) -> AsyncIterator[Database]:
    """A pool of the API's role, a connection for each client."""
    url = ledger_database.url("giovang_api")
    async with Database(url, application_name="test", pool_size=CLIENTS) as pool:
        yield pool


def credit(merchant: str, amount: int, **more: Any) -> Entry:
    """Return an entry that credits a merchant in dong."""
    return Entry(
        kind=EntryKind.PAYMENT_COMPLETED,
        key=more.pop("key", secrets.token_hex(8)),
        mode=more.pop("mode", "test"),
        merchant_id=merchant,
        legs=(
            Leg(AccountKind.LIQUIDITY, "VND", amount),
            Leg(AccountKind.MERCHANT_AVAILABLE, "VND", -amount, merchant),
        ),
        **more,
    )


# An asset the ledger knows and no other test books, so that its pool is this file's alone.
POOLED = "USD"


def token_entry(amount: int, key: str | None = None) -> Entry:
    """Return an entry by which tokens come into the pool, or leave it, against suspense."""
    return Entry(
        kind=EntryKind.TRANSFER_SUSPENDED if amount > 0 else EntryKind.TRANSFER_RETURNED,
        key=key or secrets.token_hex(8),
        mode="live",
        legs=(
            Leg(AccountKind.CRYPTO_POOL, POOLED, amount),
            Leg(AccountKind.SUSPENSE, POOLED, -amount),
        ),
    )


async def post(pool: Database, entry: Entry) -> str:
    async with pool.unit_of_work(Identity("test", entry.merchant_id)) as unit:
        await service.post_entry(unit, entry)
        booked: str = await unit.value(
            "SELECT id FROM ledger_entries WHERE idempotency_key = %(key)s", {"key": entry.key}
        )
        return booked


async def at_once(work: Callable[[int], Awaitable[Any]], count: int = CLIENTS) -> list[Any]:
    """Run `count` pieces of work at once; return each one's result or what it raised."""
    async with asyncio.timeout(60):
        return await asyncio.gather(*map(work, range(count)), return_exceptions=True)


def pool_shards(database: DatabaseServer) -> int:
    with auditor(database) as connection:
        return int(
            value(
                connection,
                """SELECT count(*) FROM ledger_accounts
                   WHERE kind = 'crypto_pool' AND mode = 'live' AND asset = %s
                     AND posted_minor > 0""",
                POOLED,
            )
        )


async def test_a_key_books_once_with_draws_over_several_shards(
    ledger_database: DatabaseServer, watcher: Database
) -> None:
    for _ in range(40):
        await post(watcher, token_entry(10))
    pooled = pool_shards(ledger_database)
    assert pooled > 8
    drawn = token_entry(-100)
    first = await post(watcher, drawn)
    with auditor(ledger_database) as connection:
        legs = value(
            connection,
            "SELECT count(*) FROM ledger_postings WHERE entry_id = %s AND amount_minor < 0",
            first,
        )
    assert legs > 1
    # The same entry would draw from other shards now, and is still the same.
    assert await post(watcher, drawn) == first
    assert standing(ledger_database, None, "suspense", asset=POOLED, mode="live") == (300, 0)
    with pytest.raises(psycopg.errors.UniqueViolation, match="already booked another entry"):
        await post(watcher, token_entry(-101, drawn.key))
    with pytest.raises(InsufficientBalance):
        await post(watcher, token_entry(-301))
    await post(watcher, token_entry(-300))
    assert pool_shards(ledger_database) == 0


async def test_one_key_at_once_books_one_entry(
    ledger_database: DatabaseServer, watcher: Database, merchant: str
) -> None:
    entry = credit(merchant, 1_000)
    assert len(set(await at_once(lambda _: post(watcher, entry)))) == 1
    assert standing(ledger_database, merchant) == (1_000, 0)


async def test_an_entry_is_reversed_once(
    ledger_database: DatabaseServer, watcher: Database, merchant: str
) -> None:
    entry_id = await post(watcher, credit(merchant, 1_000))
    key = secrets.token_hex(8)

    async def reverse(key: str) -> str:
        async with watcher.unit_of_work(Identity("test")) as unit:
            return await service.reverse_entry(unit, entry_id, key=key, reason="twice")

    assert len(set(await at_once(lambda _: reverse(key)))) == 1
    assert standing(ledger_database, merchant) == (0, 0)
    with pytest.raises(Conflict, match="reversed already"):
        await reverse(secrets.token_hex(8))
    spent = await post(watcher, credit(merchant, 500))
    with auditor(ledger_database) as connection:
        books.ask_payout(connection, merchant, 500)
    with pytest.raises(InsufficientBalance):
        async with watcher.unit_of_work(Identity("test")) as unit:
            await service.reverse_entry(unit, spent, key="back", reason="spent meanwhile")


def hold_for(merchant: str, payout: str, amount: int) -> Hold:
    return Hold(
        key=f"payout:{payout}:1",
        mode="test",
        kind=AccountKind.MERCHANT_AVAILABLE,
        asset="VND",
        amount_minor=amount,
        merchant_id=merchant,
        payout_id=payout,
        expires_at=datetime.now(UTC) + timedelta(days=7),
    )


_ASK = """
    INSERT INTO payouts (id, merchant_id, mode, amount_minor, asset, destination, requested_by)
    VALUES (%(id)s, %(merchant_id)s, 'test', %(amount)s, 'VND', 'VCB 1', 'key')
"""


async def ask(unit: Unit, merchant: str, amount: int) -> Hold:
    """Write a payout request down, place its hold, and return that."""
    wanted = hold_for(merchant, new_id("pyo"), amount)
    await unit.run(_ASK, {"id": wanted.payout_id, "merchant_id": merchant, "amount": amount})
    await service.place_hold(unit, wanted)
    return wanted


async def test_a_hold_is_placed_once_under_its_key_and_given_back(
    ledger_database: DatabaseServer, api: Database, merchant: str
) -> None:
    fund(ledger_database, merchant, 1_000)
    identity = Identity("test", merchant)
    async with api.unit_of_work(identity) as unit:
        wanted = await ask(unit, merchant, 600)
        assert wanted.payout_id is not None
        placed = await service.pending_hold(unit, wanted.payout_id)
        assert await service.place_hold(unit, wanted) == placed
    assert standing(ledger_database, merchant) == (1_000, 600)
    with pytest.raises(psycopg.errors.UniqueViolation, match="already holds something else"):
        async with api.unit_of_work(identity) as unit:
            await service.place_hold(unit, replace(wanted, amount_minor=601))
    with pytest.raises(InsufficientBalance):
        async with api.unit_of_work(identity) as unit:
            await ask(unit, merchant, 401)
    async with api.unit_of_work(identity) as unit:
        await unit.run(
            "UPDATE payouts SET status = 'cancelled' WHERE id = %(id)s", {"id": wanted.payout_id}
        )
        await service.void_hold(unit, wanted.payout_id)
        with pytest.raises(Conflict):
            await service.void_hold(unit, wanted.payout_id)
        with pytest.raises(Conflict):
            await service.pending_hold(unit, wanted.payout_id)
    assert standing(ledger_database, merchant) == (1_000, 0)


async def test_two_holds_at_once_for_one_balance(
    ledger_database: DatabaseServer, api: Database, merchant: str
) -> None:
    fund(ledger_database, merchant, 1_000)

    async def take(_: int) -> Hold:
        async with api.unit_of_work(Identity("test", merchant)) as unit:
            return await ask(unit, merchant, 1_000)

    outcomes = await at_once(take)
    assert [type(outcome) for outcome in outcomes].count(Hold) == 1
    assert [type(outcome) for outcome in outcomes].count(InsufficientBalance) == CLIENTS - 1
    assert standing(ledger_database, merchant) == (1_000, 1_000)


async def balances(pool: Database, merchant: str, at: datetime | None = None) -> list[Balance]:
    async with pool.unit_of_work(Identity("test", merchant)) as unit:
        return await service.balances(unit, "test", at=at)


async def moment(pool: Database) -> datetime:
    async with pool.unit_of_work(Identity("test")) as unit:
        return await unit.now()


async def test_a_balance_now_and_at_any_past_moment(
    ledger_database: DatabaseServer, api: Database, watcher: Database, merchant: str
) -> None:
    before = await moment(api)
    await post(watcher, credit(merchant, 1_000))
    await post(watcher, credit(merchant, 77, mode="live"))
    funded = await moment(api)
    async with api.unit_of_work(Identity("test", merchant)) as unit:
        payout = (await ask(unit, merchant, 400)).payout_id
    assert payout is not None
    held = await moment(api)
    async with api.unit_of_work(Identity("test", merchant)) as unit:
        await unit.run("UPDATE payouts SET status = 'cancelled' WHERE id = %(id)s", {"id": payout})
        await service.void_hold(unit, payout)
    fund(ledger_database, merchant, 30, kind="escrow_liability_pool")
    fund(ledger_database, merchant, 9, kind="payer_excess", asset="USDC")

    def dong(posted: int, pending: int, escrow: int = 0) -> Balance:
        return Balance("VND", posted, pending, posted - pending, escrow, 0)

    usdc = Balance("USDC", 0, 0, 0, 0, 9)
    now = await balances(api, merchant)
    assert now == [usdc, dong(1_000, 0, 30)]
    assert await balances(api, merchant, await moment(api)) == now
    none_yet = Balance("USDC", 0, 0, 0, 0, 0)
    assert await balances(api, merchant, before) == [none_yet, dong(0, 0)]
    assert await balances(api, merchant, funded) == [none_yet, dong(1_000, 0)]
    assert await balances(api, merchant, held) == [none_yet, dong(1_000, 400)]


async def test_a_statement_runs_through_pages(
    ledger_database: DatabaseServer, api: Database, watcher: Database, merchant: str
) -> None:
    amounts = [1_000, 200, 30, 4, 5]
    for amount in amounts:
        await post(watcher, credit(merchant, amount, description=f"number {amount}"))
    await post(watcher, credit(merchant, 9_999, mode="live"))

    async def read(**window: Any) -> list[tuple[int, int]]:
        async with api.unit_of_work(Identity("test", merchant)) as unit:
            page = await service.statement(
                unit,
                "test",
                kind=AccountKind.MERCHANT_AVAILABLE,
                asset="VND",
                **{"limit": 10, **window},
            )
        lines.extend(page)
        return [(line.amount_minor, line.balance_minor) for line in page]

    lines: list[Any] = []
    whole = [(1_000, 1_000), (200, 1_200), (30, 1_230), (4, 1_234), (5, 1_239)]
    assert await read() == whole
    assert [line.description for line in lines] == [f"number {amount}" for amount in amounts]
    times = [line.created_at for line in lines]
    lines.clear()
    assert await read(limit=2) == whole[:2]
    assert await read(limit=2, after=(lines[-1].entry_id, lines[-1].seq)) == whole[2:4]
    assert await read(limit=2, after=(lines[-1].entry_id, lines[-1].seq)) == whole[4:]
    assert await read(limit=2, after=(lines[-1].entry_id, lines[-1].seq)) == []
    assert await read(since=times[1], until=times[3]) == whole[1:3]
    other = books.new_merchant(ledger_database)
    async with api.unit_of_work(Identity("test", other)) as unit:
        kind = AccountKind.MERCHANT_AVAILABLE
        assert await service.statement(unit, "test", kind=kind, asset="VND", limit=10) == []


@pytest.mark.parametrize("spread", [False, True], ids=["hot", "sharded"])
async def test_many_post_at_once_and_every_sum_is_right(
    ledger_database: DatabaseServer, watcher: Database, spread: bool
) -> None:
    """Sixteen connections on accounts that nobody opened yet: no deadlock, nothing lost."""
    count = 8 if spread else 1
    merchants = [books.new_merchant(ledger_database) for _ in range(count)]

    async def work(client: int) -> None:
        for number in range(ROUNDS):
            entry = credit(merchants[(client + number) % count], 10, mode="live")
            fee = (
                Leg(AccountKind.FEE_REVENUE, "VND", -1),
                Leg(AccountKind.SPREAD_REVENUE, "VND", -1),
                Leg(AccountKind.LIQUIDITY, "VND", 2),
            )
            await post(watcher, replace(entry, legs=(*entry.legs, *fee)))

    assert await at_once(work) == [None] * CLIENTS
    owed = sum(standing(ledger_database, merchant, mode="live")[0] for merchant in merchants)
    assert owed == CLIENTS * ROUNDS * 10


async def test_tokens_are_drawn_and_paid_in_at_once(
    ledger_database: DatabaseServer, watcher: Database
) -> None:
    for _ in range(20):
        await post(watcher, token_entry(100))
    before = standing(ledger_database, None, "suspense", asset=POOLED, mode="live")[0]

    async def work(client: int) -> None:
        for _ in range(ROUNDS):
            await post(watcher, token_entry(7 if client % 2 else -7))

    assert await at_once(work) == [None] * CLIENTS
    assert standing(ledger_database, None, "suspense", asset=POOLED, mode="live") == (before, 0)
