"""From Debezium's records to acknowledged messages: the path that every change takes.

Called on one thread, one batch at a time. While one batch of messages is in flight the next is
written; never more than one is. The newest change is held back until it is known whether its
database transaction ends with it, also from one batch to the next: the end is logged with the
commit, so it follows at once. What is held back is not acknowledged, and comes again with the same
id after a restart. What cannot be told, ordered or stored raises, and the process ends.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import orjson

from ingest.checkpoint import Cursor, Done, Resume
from ingest.contract import EventId
from ingest.envelope import EnvelopeWriter, Message
from ingest.publisher import ACK_TIMEOUT_S, BatchWindow, LedgerPublisher


@dataclass(slots=True)
class Progress:
    """What the capture thread did, read by the loop that tells of it."""

    events: int = 0
    passed_over: int = 0
    position: int = 0
    heard_at: float = 0.0
    committed_us: int = 0
    acked_us: int = 0
    """When the last acknowledged event was committed, by PostgreSQL's clock, and acknowledged."""


class Pump:
    """Turns batches of records into acknowledged messages. Runs on one thread.

    `begins` is called with the first batch, before anything is counted or published; it raises
    where the engine cannot have begun at `resume`.
    """

    def __init__(
        self,
        resume: Resume,
        writer: EnvelopeWriter,
        sender: LedgerPublisher,
        loop: asyncio.AbstractEventLoop,
        begins: Callable[[], None],
    ) -> None:
        self._begins: Callable[[], None] | None = begins
        self._cursor = Cursor(resume)
        self._writer = writer
        self._sender = sender
        self._loop = loop
        self._in_flight: Future[None] | None = None
        self._held: tuple[EventId, dict[str, Any]] | None = None
        self._told_us = 0
        self.progress = Progress(position=resume.position, heard_at=time.monotonic())

    def handle(self, batch: bytes) -> Done | None:
        """Publish a batch, a JSON array of the engine's records.

        Returns the end of its last whole database transaction, None where none ends in it.
        """
        self.progress.heard_at = time.monotonic()
        if self._begins is not None:
            self._begins()
            self._begins = None
        window = BatchWindow()
        whole: int | None = None
        for record in orjson.loads(batch):
            if record is None:
                continue
            if "source" in record:
                self._change(record, window)
            elif "status" in record:
                position = self._boundary(record, window)
                whole = whole if position is None else position
        self._send(window.take())
        self._await_ack()
        self.progress.heard_at = time.monotonic()
        if self._told_us != self.progress.committed_us:
            self.progress.committed_us = self._told_us
            self.progress.acked_us = time.time_ns() // 1000
        if whole is None:
            return None
        self.progress.position = whole
        return Done(whole, self._sender.sequence)

    def _change(self, record: dict[str, Any], window: BatchWindow) -> None:
        transaction = record["transaction"] or {}
        event_id = self._cursor.change(transaction.get("total_order", 0))
        if event_id is None:
            self.progress.passed_over += 1
            return
        if self._held is not None:
            self._write(*self._held, window, ends=False)
        self._held = event_id, record

    def _boundary(self, record: dict[str, Any], window: BatchWindow) -> int | None:
        """Take a BEGIN or END record; return where the database transaction ends."""
        if record["status"] == "BEGIN":
            self._cursor.begin()
            return None
        position = int(record["id"].rpartition(":")[2])
        self._cursor.end(position, record["event_count"])
        if self._held is not None:
            self._write(*self._held, window, ends=True)
            self._held = None
        return position

    def _write(
        self, event_id: EventId, record: dict[str, Any], window: BatchWindow, *, ends: bool
    ) -> None:
        self._told_us = record["source"]["ts_us"]
        full = window.add(self._writer.message(event_id, record, ends=ends))
        if full is not None:
            self._send(full)

    def _send(self, messages: list[Message]) -> None:
        self._await_ack()
        if messages:
            self._in_flight = asyncio.run_coroutine_threadsafe(
                self._sender.publish(messages), self._loop
            )
            self.progress.events += len(messages)

    def _await_ack(self) -> None:
        if self._in_flight is not None:
            # The publisher has its own deadline; this one only guards against a loop that died.
            self._in_flight.result(timeout=2 * ACK_TIMEOUT_S)
            self._in_flight = None
