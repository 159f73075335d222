"""Heartbeat: keeps a worker's member record alive, from a thread and a connection of its own.

The record expires unless renewed, and nothing but this thread writes it. An agent that keeps the
main loop busy does not cost a worker its membership, a loop that has hung does: the thread renews
only while the loop's stamp is fresh. A record that has expired is not brought back unasked: the
membership has `lapsed`, and its worker must find out first who owns its partitions now.
"""

import asyncio
import json
import logging
import threading
from collections.abc import Coroutine, Mapping
from math import ceil
from time import monotonic
from typing import Any

from nats.js.errors import BadRequestError, NotFoundError

from streams.transport.connection import TRANSIENT, Connection
from streams.transport.errors import TransportError

logger = logging.getLogger(__name__)

LOOP_STALL_LIMIT_S = 30.0
START_LIMIT_S = 35.0
STOP_LIMIT_S = 5.0


class Heartbeat:
    """The life of one member record, as the main loop sees and steers it.

    `renewed_at` (monotonic) is when the last acknowledged renewal was sent: the server's clock
    for the record began no earlier.
    """

    def __init__(
        self, connection: Connection, *, stream: str, subject: str, ttl_s: float, beat_s: float
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._subject = subject
        self._ttl_s = ceil(ttl_s)
        self._beat_s = beat_s
        self._record: Mapping[str, Any] | None = None
        self._sequence = 0
        self._joined = 0
        self._stamp = monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()
        self._end = asyncio.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="faust heartbeat", daemon=True)
        self.renewed_at = 0.0
        self.lapsed = False
        self.failure: BaseException | None = None

    def stamp(self) -> None:
        """Say that the main loop is alive."""
        self._stamp = monotonic()

    async def start(self) -> None:
        """Start the thread and return once it is connected; raises what stopped it."""
        self._thread.start()
        await asyncio.to_thread(self._up.wait, START_LIMIT_S)
        if self.failure is not None:
            raise self.failure

    async def join(self, record: Mapping[str, Any]) -> bool:
        """Write the record where there is none, as at the start and after a lapse."""
        return await self._call(self._join(record))

    async def tell(self, record: Mapping[str, Any]) -> bool:
        """Write changed contents now; False when the membership has lapsed."""
        return await self._call(self._tell(record))

    async def stop(self) -> None:
        """Delete the record, so that nobody need wait for its expiry, and end the thread."""
        if self._loop is None or not self._thread.is_alive():
            return
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await self._call(self._leave())
        except TimeoutError:
            logger.info("the member record is left to expire")
        await asyncio.to_thread(self._thread.join, STOP_LIMIT_S)

    async def _call(self, request: Coroutine[Any, Any, bool]) -> bool:
        assert self._loop is not None, "start() comes first"  # noqa: S101
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(request, self._loop))

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except Exception as error:  # noqa: BLE001 - the main loop raises it
            self.failure = error
        finally:
            self._up.set()

    async def _live(self) -> None:
        await self._connection.open()
        self._loop = asyncio.get_running_loop()
        self._up.set()
        try:
            while not self._end.is_set():
                if self._record is not None and not self.lapsed and self._main_loop_is_alive():
                    await self._renew()
                try:
                    async with asyncio.timeout(self._beat_s):
                        await self._end.wait()
                except TimeoutError:
                    continue
        finally:
            await self._connection.close()

    def _main_loop_is_alive(self) -> bool:
        silent_s = monotonic() - self._stamp
        if silent_s < LOOP_STALL_LIMIT_S:
            return True
        logger.error("the main loop has hung for %.0f s; membership not renewed", silent_s)
        return False

    async def _renew(self) -> None:
        try:
            async with self._lock, asyncio.timeout(max(1.0, self._ttl_s / 2)):
                await self._put()
        except (*TRANSIENT, TransportError) as error:
            logger.info("membership not renewed: %s", type(error).__name__)

    async def _join(self, record: Mapping[str, Any]) -> bool:
        async with self._lock:
            self._record, self._sequence, self.lapsed = record, 0, False
            return await self._put()

    async def _tell(self, record: Mapping[str, Any]) -> bool:
        async with self._lock:
            self._record = record
            return not self.lapsed and await self._put()

    async def _leave(self) -> bool:
        async with self._lock:
            self._record, sequence = None, self._sequence
            if sequence and self._connection.is_connected:
                try:
                    await self._connection.jetstream.delete_msg(self._stream, sequence)
                except (*TRANSIENT, NotFoundError, BadRequestError) as error:
                    logger.info("the member record is left to expire: %s", error)
        self._end.set()  # last: the thread's end would cancel this very request
        return True

    async def _put(self) -> bool:
        """Store the record behind the one before; note a lapse where that one is gone."""
        for _ in range(2):
            payload = json.dumps({**(self._record or {}), "joined": self._joined}).encode()
            sent_at = monotonic()
            sequence = await self._connection.put_if(
                self._subject, payload, expected=self._sequence, ttl_s=self._ttl_s
            )
            if sequence is not None:
                self._sequence, self.renewed_at = sequence, sent_at
                self._joined = self._joined or sequence
                return True
            # Only this thread writes here: what is there is its own, with the answer lost.
            stored = await self._connection.last_message(self._stream, self._subject)
            if stored is None:
                break
            self._sequence = stored.sequence
        self.lapsed = True
        logger.warning("the member record has expired")
        return False
