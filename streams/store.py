"""SQL of the warehouse processor: one batch is one database transaction.

Rows are copied into temporary staging tables and moved by one statement a table; a row that is
already there stays as it is, so a replay changes nothing. What a backfill tells again counts only
where it is news: a state that is not known by its status and time, a merchant of whom something is
known differently. The watermark moves in the same database transaction and never backwards. Errors
are sorted into three kinds: a row the database refuses (RowRefusedError), a database that is away
or busy (WarehouseAwayError, worth trying again), and one that is not ready for this version
(WarehouseNotReadyError, worth stopping for).
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final, LiteralString

import psycopg
from psycopg import AsyncConnection, AsyncCursor

from streams.contract import LEDGER_SOURCE, Table
from streams.processor import AwayError
from streams.rows import Row, Watermark

CONNECT_TIMEOUT_S: Final = 5
WRITE_DEADLINE_S: Final = 30.0
_OPTIONS: Final = (
    "-c statement_timeout=20s -c lock_timeout=10s -c idle_in_transaction_session_timeout=60s"
    " -c timezone=UTC"
)

# The columns of the staging tables are in the order in which `streams.rows` gives the values.
STAGE: Final[tuple[LiteralString, ...]] = (
    """
    CREATE TEMPORARY TABLE staged_payments ON COMMIT DELETE ROWS AS
    SELECT time, merchant_id, amount_vnd, amount_usd, currency, chain, payer_country, status,
           event_id, payment_id, exception, asset_amount, fee_vnd, payer_address,
           position, ordinal, committed_at
    FROM raw.payment_analytics
    WITH NO DATA
    """,
    """
    CREATE TEMPORARY TABLE staged_refunds ON COMMIT DELETE ROWS AS
    SELECT time, event_id, refund_id, payment_id, merchant_id, amount_vnd, status,
           position, ordinal, committed_at
    FROM raw.refunds
    WITH NO DATA
    """,
    """
    CREATE TEMPORARY TABLE staged_merchants ON COMMIT DELETE ROWS AS
    SELECT merchant_id, name, trade, timezone, country, deleted_at,
           event_id, position, ordinal, committed_at
    FROM raw.merchants
    WITH NO DATA
    """,
)
COPY: Final[dict[Table, LiteralString]] = {
    Table.PAYMENT_ANALYTICS: "COPY staged_payments FROM STDIN",
    Table.REFUNDS: "COPY staged_refunds FROM STDIN",
    Table.MERCHANTS: "COPY staged_merchants FROM STDIN",
}
_INTO_PAYMENTS: Final[LiteralString] = """
    INSERT INTO raw.payment_analytics (
        time, merchant_id, amount_vnd, amount_usd, currency, chain, payer_country, status,
        event_id, payment_id, exception, asset_amount, fee_vnd, payer_address,
        position, ordinal, committed_at
    )
"""
_INTO_REFUNDS: Final[LiteralString] = """
    INSERT INTO raw.refunds (
        time, event_id, refund_id, payment_id, merchant_id, amount_vnd, status,
        position, ordinal, committed_at
    )
"""
# The newest of a batch, and only over an older one; recorded_at tells when it arrived.
_UPSERT_MERCHANTS: Final[LiteralString] = """
    INSERT INTO raw.merchants AS known (
        merchant_id, name, trade, timezone, country, deleted_at,
        event_id, position, ordinal, committed_at
    )
    SELECT DISTINCT ON (merchant_id) *
    FROM staged_merchants
    ORDER BY merchant_id, position DESC, ordinal DESC
    ON CONFLICT (merchant_id) DO UPDATE SET
        name = EXCLUDED.name, trade = EXCLUDED.trade, timezone = EXCLUDED.timezone,
        country = EXCLUDED.country, deleted_at = EXCLUDED.deleted_at,
        event_id = EXCLUDED.event_id, position = EXCLUDED.position,
        ordinal = EXCLUDED.ordinal, committed_at = EXCLUDED.committed_at, recorded_at = now()
    WHERE (known.position, known.ordinal) < (EXCLUDED.position, EXCLUDED.ordinal)
"""
MOVE: Final[dict[Table, LiteralString]] = {
    Table.PAYMENT_ANALYTICS: _INTO_PAYMENTS  # noqa: S608
    + """
    SELECT * FROM staged_payments
    ON CONFLICT (event_id, time) DO NOTHING
    """,
    Table.REFUNDS: _INTO_REFUNDS  # noqa: S608
    + """
    SELECT * FROM staged_refunds
    ON CONFLICT (event_id, time) DO NOTHING
    """,
    Table.MERCHANTS: _UPSERT_MERCHANTS,
}
# After the rows that happened, which may be what is told again. The batch's span of time is given,
# so that only the chunks of the hypertable that it reaches are asked.
MOVE_TOLD_AGAIN: Final[dict[Table, LiteralString]] = {
    Table.PAYMENT_ANALYTICS: _INTO_PAYMENTS  # noqa: S608
    + """
    SELECT DISTINCT ON (payment_id, status, time) *
    FROM staged_payments AS told
    WHERE NOT EXISTS (
        SELECT FROM raw.payment_analytics AS known
        WHERE known.payment_id = told.payment_id AND known.status = told.status
          AND known.time = told.time AND known.time BETWEEN %(first)s AND %(last)s)
    ORDER BY payment_id, status, time, position, ordinal
    ON CONFLICT (event_id, time) DO NOTHING
    """,
    Table.REFUNDS: _INTO_REFUNDS  # noqa: S608
    + """
    SELECT DISTINCT ON (refund_id, status, time) *
    FROM staged_refunds AS told
    WHERE NOT EXISTS (
        SELECT FROM raw.refunds AS known
        WHERE known.merchant_id = told.merchant_id AND known.refund_id = told.refund_id
          AND known.status = told.status
          AND known.time = told.time AND known.time BETWEEN %(first)s AND %(last)s)
    ORDER BY refund_id, status, time, position, ordinal
    ON CONFLICT (event_id, time) DO NOTHING
    """,
    Table.MERCHANTS: _UPSERT_MERCHANTS
    + """
      AND (known.name, known.trade, known.timezone, known.country, known.deleted_at)
          IS DISTINCT FROM (EXCLUDED.name, EXCLUDED.trade, EXCLUDED.timezone, EXCLUDED.country,
                            EXCLUDED.deleted_at)
    """,
}
UNSTAGE: Final[dict[Table, LiteralString]] = {
    Table.PAYMENT_ANALYTICS: "TRUNCATE staged_payments",
    Table.REFUNDS: "TRUNCATE staged_refunds",
    Table.MERCHANTS: "TRUNCATE staged_merchants",
}
_BY_TIME: Final = frozenset({Table.PAYMENT_ANALYTICS, Table.REFUNDS})
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


class Store:
    """One connection to the warehouse, made when needed and made again after a failure."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: AsyncConnection[tuple[Any, ...]] | None = None

    async def write(self, rows: Sequence[Row], watermark: Watermark | None) -> None:
        """Make `rows` and `watermark` durable, all or nothing.

        After WarehouseAwayError the outcome may be unknown; writing the same again is harmless.
        """
        try:
            async with asyncio.timeout(WRITE_DEADLINE_S):
                await self._write(rows, watermark)
        except (psycopg.DataError, psycopg.IntegrityError) as error:
            raise RowRefusedError(_sentence(error)) from error
        except (psycopg.ProgrammingError, psycopg.NotSupportedError) as error:
            await self.close()
            raise WarehouseNotReadyError(_sentence(error)) from error
        except (psycopg.Error, OSError, TimeoutError) as error:
            await self.close()
            raise WarehouseAwayError(_sentence(error)) from error

    async def close(self) -> None:
        """Drop the connection; the next write makes a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _write(self, rows: Sequence[Row], watermark: Watermark | None) -> None:
        connection = await self._connected()
        happened: dict[Table, list[tuple[Any, ...]]] = {}
        told_again: dict[Table, list[tuple[Any, ...]]] = {}
        for row in rows:
            by_table = told_again if row.told_again else happened
            by_table.setdefault(row.table, []).append(row.values)
        async with connection.transaction(), connection.cursor() as cursor:
            for table, values in happened.items():
                await _stage(cursor, table, values)
                await cursor.execute(MOVE[table])
            for table, values in told_again.items():
                if table in happened:
                    await cursor.execute(UNSTAGE[table])
                await _stage(cursor, table, values)
                await cursor.execute(MOVE_TOLD_AGAIN[table], _span(table, values))
            if watermark is not None:
                await cursor.execute(
                    MOVE_WATERMARK,
                    (
                        LEDGER_SOURCE,
                        watermark.committed_through,
                        watermark.position,
                        watermark.ordinal,
                        watermark.stream_sequence,
                    ),
                )

    async def _connected(self) -> AsyncConnection[tuple[Any, ...]]:
        if self._connection is not None and not self._connection.closed:
            return self._connection
        connection = await AsyncConnection.connect(
            self._url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            application_name="giovang-warehouse",
            options=_OPTIONS,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )
        try:
            for statement in STAGE:
                await connection.execute(statement)
        except BaseException:
            await connection.close()
            raise
        self._connection = connection
        return connection


def _sentence(error: BaseException) -> str:
    """Say what happened without row data: PostgreSQL's DETAIL and CONTEXT quote values."""
    if isinstance(error, psycopg.Error) and error.diag.message_primary:
        return f"{error.diag.sqlstate} {error.diag.message_primary}"
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


async def _stage(
    cursor: AsyncCursor[tuple[Any, ...]], table: Table, values: Sequence[tuple[Any, ...]]
) -> None:
    async with cursor.copy(COPY[table]) as copy:
        for row_values in values:
            await copy.write_row(row_values)


def _span(table: Table, values: Sequence[tuple[Any, ...]]) -> dict[str, Any] | None:
    """Return the times between which the rows lie; None where the table has no time."""
    if table not in _BY_TIME:
        return None
    times = [row_values[0] for row_values in values]
    return {"first": min(times), "last": max(times)}
