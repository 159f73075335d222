"""What the warehouse processor's database transaction holds while it may be kept waiting."""

import asyncio
from collections.abc import Sequence
from typing import Any

import psycopg
import pytest
from psycopg import AsyncCursor

from streams.contract import Table
from streams.rows import Row, row_for, table_for
from streams.store import Store
from streams.targets import TARGETS
from tests.fixtures import ledger_stream as ledger
from tests.fixtures.services import DatabaseServer
from tests.fixtures.warehouse import Warehouse
from tests.fixtures.workers import eventually_async

LOCKED = """
SELECT relation::regclass::text FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE application_name = 'giovang-warehouse' AND locktype = 'relation'
  AND mode = 'RowExclusiveLock' AND relation::regclass::text LIKE 'raw.%'
"""
WAITING = """
SELECT FROM pg_stat_activity
WHERE application_name = 'giovang-warehouse' AND wait_event_type = 'Lock'
"""


class WatchedStore(Store):
    """Notes before each COPY which tables are locked."""

    def __init__(self, server: DatabaseServer) -> None:
        super().__init__(server.url("giovang_streams"))
        self._warehouse = Warehouse(server)
        self.seen: dict[Table, list[tuple[Any, ...]]] = {}

    async def _stage(
        self,
        cursor: AsyncCursor[tuple[Any, ...]],
        table: Table,
        values: Sequence[tuple[Any, ...]],
    ) -> None:
        self.seen[table] = self._warehouse.query(LOCKED)
        await super()._stage(cursor, table, values)


async def test_a_worker_that_freezes_while_it_copies_holds_no_lock_of_its_successors(
    analytics_database: DatabaseServer,
) -> None:
    """No timeout of PostgreSQL's ends a COPY whose client says nothing."""
    Warehouse(analytics_database).clear()
    store = WatchedStore(analytics_database)
    try:
        await store.write([row for message in ledger.lives(0, 1) if (row := _row(message))], None)
    finally:
        await store.close()
    assert store.seen == {
        Table.PAYMENT_ANALYTICS: [],
        Table.LEDGER_ENTRIES: [],
        Table.LEDGER_POSTINGS: [],
    }


async def test_a_write_that_is_broken_off_leaves_nothing_for_the_next(
    analytics_database: DatabaseServer,
) -> None:
    warehouse = Warehouse(analytics_database)
    warehouse.clear()
    store = Store(analytics_database.url("giovang_streams"))
    broken_off, after = (
        [row for message in ledger.lives(number, 1) if (row := _row(message))] for number in (0, 1)
    )
    try:
        with psycopg.connect(analytics_database.superuser_url("analytics")) as other:
            other.execute("LOCK TABLE raw.payment_analytics")
            writing = asyncio.create_task(store.write(broken_off, None))

            async def waits() -> bool:
                return bool(warehouse.query(WAITING))

            await eventually_async(waits, within_s=30, what="the write waits for the lock")
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
        await store.write(after, None)
    finally:
        await store.close()
    found = {event for (event,) in warehouse.query("SELECT event_id FROM raw.payment_analytics")}
    events = TARGETS[Table.PAYMENT_ANALYTICS].columns.index("event_id")
    assert found == {row.values[events] for row in after if row.table is Table.PAYMENT_ANALYTICS}


def _row(message: ledger.Message) -> Row | None:
    table = table_for(message.subject)
    return None if table is None else row_for(table, message.subject, message.payload)
