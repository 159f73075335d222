"""Faust consumer on JetStream: what Faust calls, for this worker's share of the partitions.

Offsets commit only behind finished work: delivered offsets wait in order until each is
acknowledged, however sparse they are. A commit that a later owner has fenced stores nothing.
"""

from collections.abc import Iterable, Mapping
from time import monotonic

from faust.exceptions import ConsumerNotStarted
from faust.types import TP
from mode import Service

from streams.transport import names
from streams.transport.changes import writes
from streams.transport.errors import TooManyChangesError, TransportError
from streams.transport.ownership import DRAIN_DEADLINE_S, GRACE, Ownership


class Consumer(Ownership):
    """Consumes this worker's share of the topics of an app."""

    mundane_level = "debug"

    async def on_start(self) -> None:
        """Connect, and make the readers again after every reconnect."""
        await super().on_start()
        self.connection.on_reconnect(self._revive_readers)
        await self.connection.open()
        self._assigned = set()

    async def on_stop(self) -> None:
        """Commit what is finished, then leave the group, so that others take over at once."""
        try:
            await super().on_stop()
        finally:
            for reader in self._readers.values():
                await reader.stop()
            await self.heartbeat.stop()
            await self._nudge()

    async def on_shutdown(self) -> None:
        """Close the connection once no task needs it."""
        await super().on_shutdown()
        await self.connection.close()

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Subscribe to `topics`; TopicMissingError when one has no stream."""
        wanted = set(topics)
        for topic in wanted:
            await self.catalog.load(topic)
        self._topics = wanted
        self._subscription_changed.set()

    @Service.task  # type: ignore[untyped-decorator]
    async def _serve_client(self) -> None:
        """Read every partition of what is subscribed, in no group: a client asks and listens."""
        while self.app.client_only and not await self.wait_for_stopped(self._subscription_changed):
            self._subscription_changed.clear()
            try:
                await self._read_all()
            except TransportError as error:
                await self.crash(error)

    async def _read_all(self) -> None:
        wanted = set()
        for topic in self._topics:
            shape = await self.catalog.load(topic)
            wanted |= {TP(topic, partition) for partition in range(shape.partitions)}
        for tp in self._readers.keys() - wanted:
            await self._readers.pop(tp).stop()
        from_the_end = self.app.conf.consumer_auto_offset_reset == "latest"
        for tp in wanted - self._readers.keys():
            first, end = await self.catalog.bounds(*tp)
            reader = self._new_reader(tp)
            await reader.start(end if from_the_end else first)
            self._readers[tp] = reader
        self._assigned = wanted
        self._set_active_tps(wanted)

    @Service.task  # type: ignore[untyped-decorator]
    async def _watch_readers(self) -> None:
        async for _ in self.itertimer(1.0, name="readers"):
            for reader in list(self._readers.values()):
                if self.connection.is_connected:
                    await reader.check()
            await self._lower_highwaters()

    async def _lower_highwaters(self) -> None:
        """Let a recovery end whose last changes expired after it had asked for their offsets."""
        recovery = self.app.tables._recovery  # noqa: SLF001 - not to make one
        if recovery is None or not recovery.in_recovery or not self.connection.is_connected:
            return
        for tp, high in list(recovery.active_highwaters.items()):
            now = (await self.highwaters(tp))[tp] - 1
            if tp in recovery.active_highwaters and now < high:
                recovery.active_highwaters[tp] = now

    async def _revive_readers(self) -> None:
        self._grace_until = monotonic() + GRACE * self.lease_s
        for reader in list(self._readers.values()):
            await reader.revive()

    def _filter_committable_offsets(self, tps: Iterable[TP]) -> dict[TP, int]:
        """Return what is finished and not committed: a commit may leave some for the next."""
        committable = {}
        for tp in tps:
            offset = self._new_offset(tp)
            if offset is not None:
                self._finished[tp] = offset
            if self._finished.get(tp, 0) > (self.group.committed(tp) or 0):
                committable[tp] = self._finished[tp]
        return committable

    async def _commit_tps(self, tps: Iterable[TP], start_new_transaction: bool) -> bool:  # noqa: FBT001 - Faust's signature
        if await super()._commit_tps(tps, start_new_transaction):
            return True
        # Changes that come from no event, as a timer's, wait for no offset.
        return bool(self.app.producer.changes) and bool(self.assigned()) and await self._commit({})

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Store offsets and the changes of tables that belong to them, in one step."""
        changes = self.app.producer.changes
        try:
            chosen, cuts = changes.choose(offsets, self.group.positions())
        except TooManyChangesError as error:
            await self.crash(error)
            return False
        if not cuts:
            return False
        first = await self.group.commit(cuts, writes(chosen))
        if first is None:
            self.log.error("commit refused: another worker owns the partitions")
            self._nudged.set()  # look at once whose they are
            return False
        changes.stored(chosen, first)
        return True

    @Service.task  # type: ignore[untyped-decorator]
    async def _commit_when_crowded(self) -> None:
        crowded = self.app.producer.changes.crowded
        while not self.should_stop:
            if not await self.wait_for_stopped(crowded):
                crowded.clear()
                await self.commit()

    async def wait_empty(self) -> None:
        """Wait for the events being processed, up to a deadline, and commit what is finished."""
        give_up_at = monotonic() + DRAIN_DEADLINE_S
        while self._unacked_messages and not self.should_stop and monotonic() < give_up_at:
            await self._wait_for_ack(timeout=1)
            self._clean_unacked_messages()
        # One commit may stand in for another that was under way, and a batch has a limit.
        misses = 0
        while misses < 2 and monotonic() < give_up_at + DRAIN_DEADLINE_S:
            misses = 0 if await self.commit(start_new_transaction=False) else misses + 1

    async def perform_seek(self) -> None:
        """Seek all partitions to their commits, with the flow stopped until Faust resumes it.

        Faust clears the streams' queues when it resumes: an event delivered between the seek and
        the resumption would be gone, and never acknowledged.
        """
        self.stop_flow()
        await super().perform_seek()

    async def seek_to_committed(self) -> dict[TP, int | None]:
        """Place every partition at its committed offset, or at the start where there is none."""
        positions: dict[TP, int | None] = {}
        for tp in set(self.assignment()):
            if self._is_changelog_tp(tp):
                continue
            offset = self.group.committed(tp)
            first, _ = (offset, 0) if offset is not None else await self.catalog.bounds(*tp)
            await self._seek(tp, first)
            positions[tp] = offset
        return positions

    async def _seek(self, partition: TP, offset: int) -> None:
        self._delivered[partition].clear()
        self._finished.pop(partition, None)
        self._acked[partition].clear()
        self._acked_index[partition].clear()
        reader = self._readers.get(partition)
        if reader is not None:  # given up while Faust was still about to seek
            await reader.start(offset)

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Seek partitions and return when their readers stand there."""
        for tp, offset in partitions.items():
            await self._seek(tp, offset)
            if offset > 0:
                self._read_offset[tp] = offset
            else:
                self._read_offset.pop(tp, None)

    async def position(self, tp: TP) -> int | None:
        """Return the next offset to be read of a partition, None when it is not assigned."""
        reader = self._readers.get(tp)
        return reader.position if reader else None

    async def earliest_offsets(self, *partitions: TP) -> dict[TP, int]:
        """Return the first offset of each partition; 0 when it is empty."""
        return {tp: (await self.catalog.bounds(tp.topic, tp.partition))[0] for tp in partitions}

    async def highwaters(self, *partitions: TP) -> dict[TP, int]:
        """Return the next offset of each partition; 0 when it is empty."""
        return {tp: (await self.catalog.bounds(tp.topic, tp.partition))[1] for tp in partitions}

    def assignment(self) -> set[TP]:
        """Return the partitions this worker owns; ConsumerNotStarted before the start."""
        if self._assigned is None:
            raise ConsumerNotStarted("the consumer is not connected yet")
        return self._assigned

    def topic_partitions(self, topic: str) -> int | None:
        """Return the number of partitions of a loaded topic."""
        shape = self.catalog.known(topic)
        return shape.partitions if shape else None

    def key_partition(
        self, topic: str, key: bytes | None, partition: int | None = None
    ) -> int | None:
        """Return the partition a key goes to; None when the topic is unknown or there is no key."""
        count = self.topic_partitions(topic)
        if count is None:
            return None
        if partition is not None:
            if not 0 <= partition < count:
                raise ValueError(f"topic {topic!r} has no partition {partition}")
            return partition
        return None if key is None else names.partition_for(key, count)

    async def create_topic(
        self, topic: str, partitions: int, replication: int, **options: object
    ) -> None:
        """Create the stream of a declared topic, as the producer does."""
        await self.app.producer.create_topic(topic, partitions, replication, **options)

    def close(self) -> None:
        """Nothing to close at once: `on_stop` and `on_shutdown` do it in order."""
