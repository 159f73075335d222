"""A Faust stream that acknowledges finished work only.

Faust's own `take` acknowledges in a `finally`, so a batch whose processing failed or was
cancelled is committed as if it were done. Here a batch is acknowledged when the agent asks for
the next one; an agent that fails leaves it unacknowledged, and it is read again.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from time import monotonic
from typing import Any, TypeVar

import faust
from faust._cython.streams import StreamIterator
from faust.types import EventT
from mode.utils.times import Seconds, want_seconds

T = TypeVar("T")


class Stream(faust.Stream):  # type: ignore[misc]
    """Set `Stream="streams.transport:Stream"` on the app to use it."""

    current_event: EventT | None

    async def _c_aiter(self) -> AsyncIterator[Any]:
        """Iterate as Faust does, but leave the event unacknowledged that a stop broke off.

        Faust acknowledges in a `finally`, so an event whose agent was cancelled half-way would be
        committed. An agent that fails by itself passes its event by, as in Faust.
        """
        self._finalized = True
        started_here = await self.maybe_start()
        events = StreamIterator(self)
        try:
            while not self.should_stop:
                acknowledge = self.enable_acks
                value, sensor_state = await events.next()
                skipped = value is self._skipped_value
                try:
                    if not skipped:
                        self.events_total += 1
                        yield value
                except GeneratorExit:
                    acknowledge = acknowledge and not self.app.should_stop
                    raise
                finally:
                    event, self.current_event = self.current_event, None
                    events.after(event, acknowledge or skipped, sensor_state)
        except StopAsyncIteration:
            return
        finally:
            self._channel_stop_iteration(self.channel)
            if started_here:
                await self.stop()
                self.service_reset()

    async def take(self, max_: int, within: Seconds) -> AsyncGenerator[Sequence[Any], None]:
        """Yield lists of at most `max_` values, the first at most `within` seconds old."""
        batches = self.take_events(max_, within)
        try:
            async for events in batches:
                yield [event.value for event in events]
        finally:
            await batches.aclose()

    async def take_events(
        self, max_: int, within: Seconds
    ) -> AsyncGenerator[Sequence[EventT], None]:
        """Yield lists of at most `max_` events, the first at most `within` seconds old.

        While one batch is being processed the next collects, at most `max_` events, and its window
        runs meanwhile: a busy stream has no pauses, an idle one costs no timer.
        """
        window_s = want_seconds(within) if within else 0.0
        waiting: list[EventT] = []
        first_at = 0.0
        some, full, room = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def collect(value: T) -> T:
            nonlocal first_at
            event = self.current_event
            if event is None:
                raise RuntimeError("an event reached take() outside of a stream")
            if not waiting:
                first_at = monotonic()
                some.set()
            waiting.append(event)
            if len(waiting) >= max_:
                full.set()
                room.clear()
                await self.wait(room)
            return value

        self.enable_acks = False  # for good: nothing but a finished batch acknowledges
        self.add_processor(collect)
        self._enable_passive(aiter(self.channel))
        try:
            while not self.should_stop:
                if await self.wait_for_stopped(some):
                    break
                left_s = first_at + window_s - monotonic()
                if left_s > 0 and not full.is_set():
                    await self.wait_for_stopped(full, timeout=left_s)
                # What was collected before partitions moved is not this worker's any more: it is
                # read again, here or elsewhere.
                generation = self.app.consumer_generation_id
                events = [e for e in waiting if e.message.generation_id == generation]
                waiting.clear()
                some.clear()
                full.clear()
                room.set()
                if not events:
                    continue
                yield events
                for event in events:
                    await self.ack(event)
        finally:
            self._processors.remove(collect)
            room.set()  # an event that waits to be collected would keep the stream for ever
