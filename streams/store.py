"""SQL of the warehouse processor: a batch becomes durable whole, and harmlessly twice.

Rows are copied into temporary staging tables and moved out of them by one statement a table
(`streams.targets`). The watermark moves in the same database transaction and never backwards.
Errors are sorted into three kinds: a row the database refuses (RowRefusedError), a database that is
away or busy (WarehouseAwayError, worth trying again), and one that is not ready for this version
(WarehouseNotReadyError, worth stopping for).
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, LiteralString, TypeVar

import psycopg
from psycopg import AsyncConnection, AsyncCursor

from streams.contract import LEDGER_SOURCE, WAREHOUSE_APP, Table
from streams.processor import AwayError
from streams.rows import Row, Watermark
from streams.targets import TARGETS, Target

T = TypeVar("T")

CONNECT_TIMEOUT_S: Final = 5
WRITE_DEADLINE_S: Final = 30.0
# Rows moved out of a staging table stay there dead. Sweeping it costs as much as a small batch, and
# emptying all of them at each commit (ON COMMIT DELETE ROWS) cost three times that.
DEAD_ROWS_LIMIT: Final = 2_000
# A worker that froze between two statements holds the lock on its watermark, and with it up its
# successor: not for much longer than a lease.
_OPTIONS: Final = (
    "-c statement_timeout=20s -c lock_timeout=10s -c idle_in_transaction_session_timeout=5s"
    " -c timezone=UTC"
)

MOVE_WATERMARK: Final[LiteralString] = """
INSERT INTO raw.watermark AS known
    (source, committed_through, position, ordinal, stream_sequence)
VALUES (%s, %s, %s, %s, %s)
ON CONFLICT (source) DO UPDATE SET
    committed_through = EXCLUDED.committed_through, position = EXCLUDED.position,
    ordinal = EXCLUDED.ordinal, stream_sequence = EXCLUDED.stream_sequence, updated_at = now()
WHERE (known.position, known.ordinal) < (EXCLUDED.position, EXCLUDED.ordinal)
"""


class StoreError(Exception):
    """Root of what can go wrong between the processor and the warehouse."""


class RowRefusedError(StoreError):
    """The database refuses a row of the batch: its fault, and trying again changes nothing."""


class WarehouseAwayError(StoreError, AwayError):
    """The database is away, busy or slow: the batch is whole, and worth trying again."""


class WarehouseNotReadyError(StoreError):
    """The database lacks a table or a grant: its migrations are not those of this version."""


class Session:
    """One connection to the warehouse, made when needed and made again after a failure."""

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._connection: AsyncConnection[tuple[Any, ...]] | None = None

    async def run(self, work: Callable[[AsyncConnection[tuple[Any, ...]]], Awaitable[T]]) -> T:
        """Do some work on the connection, within the deadline; raises StoreError.

        After WarehouseAwayError the outcome may be unknown, so it must be harmless to do it again.
        """
        try:
            async with asyncio.timeout(WRITE_DEADLINE_S):
                return await work(await self._connected())
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            raise RowRefusedError(_sentence(error)) from error
        except (psycopg.ProgrammingError, psycopg.NotSupportedError) as error:
            await self.close()
            raise WarehouseNotReadyError(_sentence(error)) from error
        except (psycopg.Error, OSError, TimeoutError) as error:
            await self.close()
            raise WarehouseAwayError(_sentence(error)) from error

    async def close(self) -> None:
        """Drop the connection; what is done next makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def prepare(self, connection: AsyncConnection[tuple[Any, ...]]) -> None:
        """Make what every new connection needs."""

    async def _connected(self) -> AsyncConnection[tuple[Any, ...]]:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        connection = await AsyncConnection.connect(
            self._url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name=self._name,
            options=_OPTIONS,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )
        try:
            await self.prepare(connection)
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
        return connection


class Store(Session):
    """Writes batches of rows."""

    def __init__(self, url: str) -> None:
        super().__init__(url, WAREHOUSE_APP)
        self._dead_rows: Counter[Table] = Counter()

    async def write(self, rows: Sequence[Row], watermark: Watermark | None) -> None:
        """Make `rows` and `watermark` durable, all or nothing; raises StoreError.

        Only a batch in which things happen and others are told again is two database transactions,
        the second with the watermark; done again after a failure, the first changes nothing.
        """
        happened = [row for row in rows if not row.told_again]
        told_again = [row for row in rows if row.told_again]
        if happened and told_again:
            await self.run(lambda connection: self._write(connection, happened, None))
            happened = []
        await self.run(
            lambda connection: self._write(connection, happened or told_again, watermark)
        )

    async def prepare(self, connection: AsyncConnection[tuple[Any, ...]]) -> None:
        """Make the staging tables."""
        self._dead_rows.clear()
        for target in TARGETS.values():
            await connection.execute(target.stage)

    async def _write(
        self,
        connection: AsyncConnection[tuple[Any, ...]],
        rows: Sequence[Row],
        watermark: Watermark | None,
    ) -> None:
        staged: dict[Table, list[tuple[Any, ...]]] = {}
        for row in rows:
            staged.setdefault(row.table, []).append(row.values)
        async with connection.cursor() as cursor:
            try:
                await cursor.execute("BEGIN")
                # All is handed over before anything is moved: no timeout of PostgreSQL's ends a
                # COPY whose client froze, and its successor would wait for the locks.
                for table, values in staged.items():
                    await self._stage(cursor, table, values)
                async with connection.pipeline():  # one round trip; an error skips the rest
                    for table, values in staged.items():
                        target = TARGETS[table]
                        if rows[0].told_again:
                            await cursor.execute(target.move_told_again, _span(target, values))
                        else:
                            await cursor.execute(target.move)
                    if watermark is not None:
                        await move_watermark(cursor, LEDGER_SOURCE, watermark)
                    await cursor.execute("COMMIT")
            except psycopg.Error:
                if not connection.closed:
                    await connection.rollback()
                raise
            except BaseException:
                await self.close()  # broken off by a deadline or a stop, wherever it was
                raise

    async def _stage(
        self,
        cursor: AsyncCursor[tuple[Any, ...]],
        table: Table,
        values: Sequence[tuple[Any, ...]],
    ) -> None:
        target = TARGETS[table]
        if self._dead_rows[table] > DEAD_ROWS_LIMIT:
            await cursor.execute(target.sweep)
            self._dead_rows[table] = 0
        self._dead_rows[table] += len(values)
        async with cursor.copy(target.copy) as copy:
            for row_values in values:
                await copy.write_row(row_values)


async def move_watermark(
    cursor: AsyncCursor[tuple[Any, ...]], source: str, watermark: Watermark
) -> None:
    """Move the watermark of `source`, never backwards."""
    await cursor.execute(
        MOVE_WATERMARK,
        (
            source,
            watermark.committed_through,
            watermark.position,
            watermark.ordinal,
            watermark.stream_sequence,
        ),
    )


def _sentence(error: BaseException) -> str:
    """Say what happened without row data: PostgreSQL's DETAIL and CONTEXT quote values."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return f"{error.diag.sqlstate} {error.diag.message_primary}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _span(target: Target, values: Sequence[tuple[Any, ...]]) -> dict[str, Any] | None:
    """Return the times between which the rows lie, for a statement that asks for them."""
    if not target.by_time:
        return None
    times = [row_values[0] for row_values in values]
    return {"first": min(times), "last": max(times)}
