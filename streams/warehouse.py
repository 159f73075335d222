"""Entrypoint `python -m streams.warehouse`: events become rows of the hypertables, each once.

A batch is acknowledged only after its rows and the watermark are committed. While the warehouse
is away the batch waits, and with it the stream: nothing is dropped, nothing overtakes. A poison
event goes to the dead letters and its neighbours pass; where the database refuses a batch, halving
it finds the row at fault.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

from infra.telemetry import configure_logging
from streams.app import Reading, processor_worker, serve
from streams.contract import WAREHOUSE_APP, WAREHOUSE_DEADLETTER_SUBJECT
from streams.processor import LedgerMessage, Processor, Surroundings, last_watermark
from streams.rows import Row, Watermark, row_for, table_for
from streams.settings import StreamsSettings
from streams.store import RowRefusedError, Store

CLOSE_DEADLINE_S: Final = 3.0

table_of = lru_cache(maxsize=256)(table_for)


@dataclass(frozen=True, slots=True)
class Mapped:
    """An event of the stream with the row it became."""

    message: LedgerMessage
    row: Row


class WarehouseProcessor(Processor):
    """Writes batches of ledger events."""

    needs = "warehouse"

    def __init__(self, store: Store, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        self._store = store

    async def process(self, messages: Sequence[LedgerMessage]) -> None:
        """Make a batch durable, in order; InterruptedBatchError when told to stop meanwhile."""
        mapped: list[Mapped] = []
        for message in messages:
            table = table_of(message.subject)
            if table is None:
                continue
            row = await self.understood(
                message, partial(row_for, table, message.subject, message.value)
            )
            if row is not None:
                mapped.append(Mapped(message, row))
        watermark = last_watermark(messages)
        if mapped or watermark is not None:
            await self._write(mapped, watermark, attempt=1)
        self.finished(messages, len(mapped))

    async def _write(
        self, mapped: Sequence[Mapped], watermark: Watermark | None, attempt: int
    ) -> None:
        """Write a batch; where the database refuses it, halve it down to the row at fault."""
        try:
            await self._persist([item.row for item in mapped], watermark)
        except RowRefusedError as refusal:
            if len(mapped) > 1:
                half = len(mapped) // 2
                await self._write(mapped[:half], None, attempt + 1)
                await self._write(mapped[half:], watermark, attempt + 1)
            elif mapped:
                await self.bury(mapped[0].message, refusal, attempt)
                await self._persist([], watermark)
            else:
                raise

    async def _persist(self, rows: Sequence[Row], watermark: Watermark | None) -> None:
        if rows or watermark is not None:
            await self.until_back(lambda: self._store.write(rows, watermark))

    async def close(self) -> None:
        """Close the store's connection."""
        async with asyncio.timeout(CLOSE_DEADLINE_S):
            await self._store.close()


def processor(settings: StreamsSettings, surroundings: Surroundings) -> WarehouseProcessor:
    """Return the processor on the warehouse of the settings; it connects at its first batch."""
    return WarehouseProcessor(Store(settings.warehouse_url.get_secret_value()), surroundings)


def main() -> None:
    """Run the warehouse worker until it is told to stop."""
    configure_logging("warehouse")
    settings = StreamsSettings()
    reading = Reading(
        WAREHOUSE_APP,
        agent="warehouse",
        deadletter_subject=WAREHOUSE_DEADLETTER_SUBJECT,
        window_s=settings.batch_window_ms / 1000,
    )
    serve(processor_worker(settings, reading, partial(processor, settings)))


if __name__ == "__main__":
    main()
