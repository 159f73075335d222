"""Warehouse processor: the ledger's events become rows of the hypertables, each once.

A batch is acknowledged only after its rows and the watermark are committed. While the warehouse
is away the batch waits, and with it the stream: nothing is dropped, nothing overtakes. A poison
event goes to the dead letters and its neighbours pass; where the database refuses a batch, halving
it finds the row at fault.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from time import monotonic

from infra.telemetry import get_logger
from streams.deadletter import DeadLetters
from streams.progress import Progress
from streams.rows import PoisonEventError, Row, Watermark, row_for, table_for, watermark_for
from streams.store import RowRefusedError, Store, WarehouseAwayError
from streams.transport import JetStreamMessage

log = get_logger(__name__)

FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 5.0

table_of = lru_cache(maxsize=256)(table_for)


class InterruptedBatchError(Exception):
    """The worker is stopping while the warehouse is away: the batch stays unacknowledged."""


@dataclass(frozen=True, slots=True)
class Mapped:
    """An event of the stream with the row it became."""

    message: JetStreamMessage
    row: Row


class WarehouseProcessor:
    """Writes batches of ledger events; holds no state that a restart could miss."""

    def __init__(
        self,
        *,
        store: Store,
        deadletters: DeadLetters,
        progress: Progress,
        pause: Callable[[float], Awaitable[object]],
        stopping: Callable[[], bool],
    ) -> None:
        self._store = store
        self.deadletters = deadletters
        self._progress = progress
        self._pause = pause
        self._stopping = stopping

    async def process(self, messages: Sequence[JetStreamMessage]) -> None:
        """Make a batch durable, in order; InterruptedBatchError when told to stop meanwhile."""
        mapped: list[Mapped] = []
        for message in messages:
            table = table_of(message.subject)
            if table is None:
                continue
            try:
                row = row_for(table, message.subject, message.value)
            except PoisonEventError as error:
                await self._bury(message, str(error), attempt=1)
            else:
                if row is not None:
                    mapped.append(Mapped(message, row))
        watermark = _last_watermark(messages)
        if mapped or watermark is not None:
            await self._write(mapped, watermark, attempt=1)
        self._progress.advanced(
            sequence=messages[-1].offset,
            committed_at=watermark.committed_through if watermark else None,
            events=len(messages),
            rows=len(mapped),
        )

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
                await self._bury(mapped[0].message, str(refusal), attempt)
                await self._persist([], watermark)
            else:
                raise

    async def _persist(self, rows: Sequence[Row], watermark: Watermark | None) -> None:
        """Write, waiting out a warehouse that is away."""
        wait_s = FIRST_WAIT_S
        away_since = 0.0
        while rows or watermark is not None:
            try:
                await self._store.write(rows, watermark)
            except WarehouseAwayError as error:
                away_since = away_since or monotonic()
                self._progress.blocked(f"warehouse away, trying again: {error}")
                log.warning("warehouse away", error=str(error), wait_s=round(wait_s, 2))
                await self._pause(wait_s * random.uniform(0.5, 1.0))
                if self._stopping():
                    raise InterruptedBatchError from error
                wait_s = min(wait_s * 2, LONGEST_WAIT_S)
            else:
                if away_since:
                    log.info("warehouse back", away_s=round(monotonic() - away_since, 1))
                self._progress.unblocked()
                return

    async def _bury(self, message: JetStreamMessage, reason: str, attempt: int) -> None:
        await self.deadletters.send(
            sequence=message.offset,
            subject=message.subject,
            headers=message.headers or {},
            payload=message.value,
            reason=reason,
            attempt=attempt,
        )
        self._progress.dead_letters += 1


def _last_watermark(messages: Sequence[JetStreamMessage]) -> Watermark | None:
    for message in reversed(messages):
        watermark = watermark_for(message.headers or {}, message.offset)
        if watermark is not None:
            return watermark
    return None


async def close(store: Store, deadline_s: float = 3.0) -> None:
    """Close the store's connection, waiting no longer than `deadline_s`."""
    async with asyncio.timeout(deadline_s):
        await store.close()
