"""What the warehouse processor's database transaction holds while it may be kept waiting."""

from collections.abc import Sequence
from typing import Any

from psycopg import AsyncCursor

from streams.contract import Table
from streams.rows import Row, row_for, table_for
from streams.store import Store
from tests.fixtures import ledger_stream as ledger
from tests.fixtures.services import DatabaseServer
from tests.fixtures.warehouse import Warehouse

LOCKED = """
SELECT relation::regclass::text FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE application_name = 'giovang-warehouse' AND locktype = 'relation'
  AND mode = 'RowExclusiveLock' AND relation::regclass::text LIKE 'raw.%'
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


def _row(message: ledger.Message) -> Row | None:
    table = table_for(message.subject)
    return None if table is None else row_for(table, message.subject, message.payload)
