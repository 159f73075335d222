"""From Debezium's records to acknowledged messages: the path that every change takes.

Called by the engine on its own thread, one batch at a time. While one batch of messages is in
flight the next is written; never more than one is. What cannot be told, ordered or stored raises,
and the process ends.
"""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import orjson

from ingest.checkpoint import Cursor, Resume
from ingest.envelope import EnvelopeWriter, Message
from ingest.publisher import ACK_TIMEOUT_S, BatchWindow, LedgerPublisher


@dataclass(slots=True)
class Progress:
    """What the capture thread did, read by the loop that tells of it."""

    events: int = 0
    passed_over: int = 0
    position: int = 0
    heard_at: float = 0.0


class Pump:
    """Turns batches of records into acknowledged messages. Runs on the engine's thread."""

    def __init__(
        self,
        resume: Resume,
        writer: EnvelopeWriter,
        sender: LedgerPublisher,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._cursor = Cursor(resume)
        self._writer = writer
        self._sender = sender
        self._loop = loop
        self._in_flight: Future[None] | None = None
        self.progress = Progress(position=resume.position, heard_at=time.monotonic())

    def handle(self, values: Sequence[Any]) -> tuple[int, int] | None:
        """Publish the batch; return index and position of its last whole database transaction."""
        self.progress.heard_at = time.monotonic()
        window = BatchWindow()
        whole: tuple[int, int] | None = None
        for index, value in enumerate(values):
            if value is None:
                continue
            record = orjson.loads(memoryview(value))
            if "source" in record:
                self._change(record, window)
            elif "status" in record:
                position = self._boundary(record)
                whole = whole if position is None else (index, position)
        self._send(window.take())
        self._await_ack()
        self.progress.heard_at = time.monotonic()
        if whole is not None:
            self.progress.position = whole[1]
        return whole

    def _change(self, record: dict[str, Any], window: BatchWindow) -> None:
        transaction = record["transaction"] or {}
        event_id = self._cursor.change(transaction.get("total_order", 0))
        if event_id is None:
            self.progress.passed_over += 1
            return
        full = window.add(self._writer.message(event_id, record))
        if full is not None:
            self._send(full)

    def _boundary(self, record: dict[str, Any]) -> int | None:
        """Take a BEGIN or END record; return where the database transaction ends."""
        if record["status"] == "BEGIN":
            self._cursor.begin()
            return None
        position = int(record["id"].rpartition(":")[2])
        self._cursor.end(position, record["event_count"])
        return position

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
