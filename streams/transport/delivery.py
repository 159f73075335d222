"""Delivery: from the readers of the partitions to the streams, and which offset is finished.

This half of the consumer replaces three parts of Faust's that do not suit sparse offsets or a fast
source: its bookkeeping of gaps commits in front of unfinished work, its fetching sleeps a second
when every buffer is full, and its loop makes two tasks a message.
"""

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable
from typing import ClassVar

from faust.transport import base
from faust.types import TP, ConsumerMessage, TransportT
from mode import ServiceT

from streams.transport import names
from streams.transport.errors import TransportError
from streams.transport.reader import PartitionReader, Record

POLL_RECORDS = 1000
YIELD_EVERY = 200


class JetStreamMessage(ConsumerMessage):  # type: ignore[misc]
    """A Faust message that also knows the subject it was published on."""

    subject: str = ""


class Delivery(base.Consumer):  # type: ignore[misc]
    """Fetches, delivers and keeps account; who owns what is the subclass's business."""

    consumer_stopped_errors: ClassVar[tuple[type[BaseException], ...]] = (TransportError,)

    def __init__(self, transport: TransportT, *args: object, **kwargs: object) -> None:
        super().__init__(transport, *args, **kwargs)
        self._n_acked = 0
        self._readers: dict[TP, PartitionReader] = {}
        self._arrived = asyncio.Event()
        self._delivered: defaultdict[TP, deque[int]] = defaultdict(deque)
        self._finished: dict[TP, int] = {}
        self._is_letting_go = False
        self._is_held = False

    def _may_deliver(self) -> bool:
        # Faust's recovery resumes the flow when it has finished, whatever happened meanwhile; and a
        # record that waited in its queue's door would come out in front of a later recovery.
        is_open = not self._is_letting_go and not self._is_held
        return self.flow_active and is_open and bool(self.app.flow_control.is_active())

    async def _getmany(
        self,
        active_partitions: set[TP] | None,
        timeout: float,  # noqa: ASYNC109 - Faust's signature
    ) -> dict[TP, list[Record]]:
        self._arrived.clear()
        records = await self._take(active_partitions)
        if not records:
            try:
                async with asyncio.timeout(timeout):
                    await self._arrived.wait()
            except TimeoutError:
                return {}
            records = await self._take(active_partitions)
        return records

    async def _take(self, active_partitions: set[TP] | None) -> dict[TP, list[Record]]:
        taken: dict[TP, list[Record]] = {}
        if not self._may_deliver():
            return taken
        for tp, reader in list(self._readers.items()):
            if active_partitions is None or tp in active_partitions:
                records = reader.take(POLL_RECORDS)
                if records:
                    taken[tp] = records
                    await reader.replenish()
        return taken

    async def _wait_next_records(
        self,
        timeout: float,  # noqa: ASYNC109 - Faust's signature
    ) -> tuple[dict[TP, list[Record]], set[TP] | None]:
        # Faust sleeps a whole second when every partition's buffer is full; here the first that
        # drains wakes the loop.
        if not self.flow_active:
            await self.wait(self.can_resume_flow)
        self.not_waiting_next_records.clear()
        try:
            active = self._get_active_partitions()
            return await self._getmany(active_partitions=active, timeout=timeout), active
        finally:
            self.not_waiting_next_records.set()

    def on_buffer_drop(self, tp: TP) -> None:
        """Wake the fetching loop: a stream has room again."""
        super().on_buffer_drop(tp)
        self._arrived.set()

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Resume fetching, and wake the fetching loop."""
        super().resume_partitions(tps)
        self._arrived.set()

    async def _drain_messages(self, fetcher: ServiceT) -> None:
        try:
            while not (self.should_stop or fetcher.should_stop):
                records, _ = await self._wait_next_records(timeout=1.0)
                if records:
                    await self._deliver(records)
                else:
                    await asyncio.sleep(0)
        except self.consumer_stopped_errors:
            if not self.app.should_stop:
                raise

    async def _deliver(self, records: dict[TP, list[Record]]) -> None:
        """Hand records to the streams in round robin; stop where the flow is suspended.

        What is not delivered goes back to its reader; one that was sought since has no use of it.
        """
        generation = self.app.consumer_generation_id
        for tp in records:
            self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
        acknowledged = {tp: self.app.topics.acks_enabled_for(tp.topic) for tp in records}
        callback, to_message = self.callback, self._to_message
        delivered: dict[TP, int] = {}
        for count, (tp, record) in enumerate(self.scheduler.iterate(records), start=1):
            if not self._may_deliver() or self.app.consumer_generation_id != generation:
                self._put_back(records, delivered)
                return
            delivered[tp] = record.sequence
            if acknowledged[tp]:
                self._delivered[tp].append(record.sequence)
            self._read_offset[tp] = record.sequence
            await callback(to_message(tp, record))
            if count % YIELD_EVERY == 0:
                await asyncio.sleep(0)
        if self._commit_every is not None and self._n_acked >= self._commit_every:
            self._n_acked = 0
            await self.commit()

    def _put_back(self, records: dict[TP, list[Record]], delivered: dict[TP, int]) -> None:
        for tp, handed_over in records.items():
            reader, last = self._readers.get(tp), delivered.get(tp, 0)
            if reader is not None:
                reader.put_back([record for record in handed_over if record.sequence > last])

    def _to_message(self, tp: TP, record: Record) -> JetStreamMessage:
        headers = record.headers
        message = JetStreamMessage(
            tp.topic,
            tp.partition,
            record.sequence,
            names.decode_timestamp(headers, record.timestamp_s),
            0,
            None,
            names.decode_key(headers),
            names.decode_value(headers, record.data),
            None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )
        message.subject = record.subject
        if headers:
            message.headers = names.decode_headers(headers)
        return message

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Do nothing: offsets are sparse by nature, and `_new_offset` knows what was delivered."""

    def _new_offset(self, tp: TP) -> int | None:
        delivered, index = self._delivered[tp], self._acked_index[tp]
        finished: int | None = None
        while delivered and delivered[0] in index:
            finished = delivered.popleft()
            index.discard(finished)
        self._acked[tp].clear()  # Faust's list of the same; the index decides
        return None if finished is None else finished + 1

    def highwater(self, tp: TP) -> int:
        """Return the next offset of a partition as the last message told it."""
        reader = self._readers.get(tp)
        return reader.high_water if reader else 0
