"""The warehouse's staging tables: one session, many batches, nothing left behind in any of them."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from streams import store as stores
from streams.contract import Table
from streams.rows import Row, row_for
from streams.store import RowRefusedError, Store
from tests.fixtures import ledger_stream as ledger
from tests.fixtures.services import DatabaseServer

AT = ledger.START + timedelta(days=950)
NUMBER = 940_000
LIMIT = 5


def payment(number: int) -> Row:
    row = ledger.payment_row(number, "created", AT)
    event = ledger.change("payments", row, position=2 * 10**9 + number, ordinal=1, at=AT)
    made = row_for(Table.PAYMENT_ANALYTICS, event.subject, event.to_bytes())
    assert made is not None
    return made


def known(server: DatabaseServer, first: int) -> list[int]:
    """Return the numbers, from `first`, of the payments that the warehouse has."""
    with psycopg.connect(server.superuser_url("analytics")) as database:
        found = database.execute(
            "SELECT right(payment_id, 26)::bigint FROM raw.payment_analytics"
            " WHERE payment_id >= %s AND time = %s ORDER BY 1",
            (f"pay_{first:026d}", AT),
        )
        return [number for (number,) in found]


async def staged(store: Store) -> tuple[int, int]:
    """Return how many rows the session's staging table holds, and its pages on disk."""

    async def ask(connection: psycopg.AsyncConnection[Any]) -> tuple[int, int]:
        cursor = await connection.execute(
            "SELECT count(*), pg_relation_size('staged_payment_analytics') / 8192"
            " FROM staged_payment_analytics"
        )
        found = await cursor.fetchone()
        assert found is not None
        rows, pages = found
        return rows, pages

    return await store.run(ask)


async def test_batches_leave_nothing_staged(
    analytics_database: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "DEAD_ROWS_LIMIT", LIMIT)
    store = Store(analytics_database.url("giovang_streams"))
    try:
        pages = []
        for first in range(NUMBER, NUMBER + 600, 3):
            await store.write([payment(number) for number in range(first, first + 3)], None)
            rows, size = await staged(store)
            assert rows == 0
            pages.append(size)
        assert max(pages) == 1, "what was moved out is swept"
        assert known(analytics_database, NUMBER) == list(range(NUMBER, NUMBER + 600))
    finally:
        await store.close()


async def test_a_refused_batch_is_not_moved_by_the_next(
    analytics_database: DatabaseServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "DEAD_ROWS_LIMIT", LIMIT)
    store = Store(analytics_database.url("giovang_streams"))
    first = NUMBER + 10_000
    good = payment(first + 2)
    bad = replace(good, values=(*good.values[:1], None, *good.values[2:]))
    try:
        for number in range(first, first + 2):
            for _ in range(LIMIT + 1):
                with pytest.raises(RowRefusedError):
                    await store.write([payment(first + 5), bad], None)
            await store.write([payment(number)], None)
            assert await staged(store) == (0, 1)
        assert known(analytics_database, first) == [first, first + 1]
    finally:
        await store.close()
