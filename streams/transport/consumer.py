"""Faust consumer on JetStream: one owner of all partitions, with standbys behind it.

Offsets commit only behind finished work: delivered offsets wait in order until each is
acknowledged, however sparse they are. A worker that loses its ownership commits nothing more and
stops with WorkerFencedError; one that cannot reach NATS for a minute stops with
ServerUnavailableError.
"""

import asyncio
from collections.abc import Iterable, Mapping
from time import monotonic

from faust.exceptions import ConsumerNotStarted
from faust.types import TP, TransportT
from mode import Service

from streams.transport import names
from streams.transport.connection import TRANSIENT, Connection
from streams.transport.delivery import Delivery
from streams.transport.errors import ServerUnavailableError, TransportError
from streams.transport.group import Group
from streams.transport.reader import PartitionReader
from streams.transport.topics import Topics

DRAIN_DEADLINE_S = 4.0
OUTAGE_LIMIT_S = 60.0


class ClusterView:
    """What Faust's partition assignor asks of a cluster: the partitions of a topic."""

    def __init__(self, partitions: Mapping[str, int]) -> None:
        self._partitions = partitions

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        """Return the partition numbers of `topic`, None when it is unknown."""
        count = self._partitions.get(topic)
        return set(range(count)) if count else None


class Consumer(Delivery):
    """Consumes the topics of an app, as its only owner or as a standby."""

    mundane_level = "debug"

    def __init__(self, transport: TransportT, *args: object, **kwargs: object) -> None:
        super().__init__(transport, *args, **kwargs)
        conf = self.app.conf
        self.connection: Connection = transport.connect(f"{conf.id} consumer")
        self.catalog = Topics(self.connection, transport.external)
        self.group = Group(
            self.connection,
            conf.id,
            lease_s=conf.broker_session_timeout,
            replicas=conf.topic_replication_factor,
        )
        self._assigned: set[TP] | None = None
        self._topics: set[str] = set()
        self._subscription_changed = asyncio.Event()

    async def on_start(self) -> None:
        """Connect, and make the readers again after every reconnect."""
        await super().on_start()
        self.connection.on_reconnect(self._revive_readers)
        await self.connection.open()
        self._assigned = set()

    async def on_stop(self) -> None:
        """Commit what is finished, then give the ownership back."""
        try:
            await super().on_stop()
        finally:
            for reader in self._readers.values():
                await reader.stop()
            await self.group.release()

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
    async def _membership(self) -> None:
        """Become the owner when there is none, stay it, and say so to Faust."""
        if await self.wait_for_stopped(self._subscription_changed):
            return
        beat_s = min(self.group_lease_s / 4, self.app.conf.broker_heartbeat_interval)
        await self.group.ensure()
        while not self.should_stop:
            if self._subscription_changed.is_set() and await self._try_acquire():
                self._subscription_changed.clear()
                await self._rebalance()
            elif self.group.generation:
                await self._renew()
            await self.sleep(beat_s)

    @property
    def group_lease_s(self) -> float:
        """Seconds after which an owner that fell silent is taken for dead."""
        return float(self.app.conf.broker_session_timeout)

    async def _try_acquire(self) -> bool:
        try:
            return await self.group.acquire()
        except TRANSIENT as error:
            self.log.info("ownership not decided: %s", type(error).__name__)
            return False

    async def _renew(self) -> None:
        try:
            await self.group.renew()
        except TRANSIENT as error:
            silent_s = monotonic() - self.group.renewed_at
            if silent_s > OUTAGE_LIMIT_S:
                await self.crash(ServerUnavailableError("renew ownership", OUTAGE_LIMIT_S))
            self.log.info("ownership not renewed for %.1f s: %s", silent_s, type(error).__name__)
        except TransportError as error:
            await self.crash(error)

    async def _rebalance(self) -> None:
        """Take all partitions under a new generation, in the order Faust relies on."""
        held = self.assignment()
        await self.commit()
        self.app.on_rebalance_start()
        await self.on_partitions_revoked(set(held))
        for tp in held:
            await self._readers.pop(tp).stop()
        counts = {topic: (await self.catalog.load(topic)).partitions for topic in self._topics}
        assignor = self.app.assignor
        decided = assignor.assign(
            ClusterView(counts), {self.group.member: assignor.metadata(self._topics)}
        )[self.group.member]
        assignor.on_assignment(decided)
        assigned = {
            TP(topic, partition) for topic, parts in decided.assignment for partition in parts
        }
        await self.group.adopt(assigned)
        for tp in assigned:
            self._readers[tp] = self._new_reader(tp)
        self._assigned = assigned
        self.app.consumer_generation_id = self.group.generation
        await self.on_partitions_assigned(assigned, self.group.generation)

    def _new_reader(self, tp: TP) -> PartitionReader:
        shape = self.catalog.known(tp.topic)
        if shape is None:
            raise RuntimeError(f"topic {tp.topic!r} was assigned before it was loaded")
        return PartitionReader(
            self.connection,
            stream=shape.stream,
            subject_filter=shape.filter(tp.partition),
            on_arrival=self._arrived.set,
        )

    @Service.task  # type: ignore[untyped-decorator]
    async def _watch_readers(self) -> None:
        async for _ in self.itertimer(1.0, name="readers"):
            for reader in list(self._readers.values()):
                if self.connection.is_connected:
                    await reader.check()

    async def _revive_readers(self) -> None:
        for reader in list(self._readers.values()):
            await reader.revive()

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        if await self.group.commit(offsets):
            return True
        self.log.error("commit refused: another worker owns the partitions")
        return False

    async def wait_empty(self) -> None:
        """Wait for the events being processed, up to a deadline, and commit what is finished."""
        give_up_at = monotonic() + DRAIN_DEADLINE_S
        while self._unacked_messages and not self.should_stop and monotonic() < give_up_at:
            await self._wait_for_ack(timeout=1)
            self._clean_unacked_messages()
        await self.commit_and_end_transactions()

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
        for tp in self.assignment():
            if self._is_changelog_tp(tp):
                continue
            offset = self.group.committed(tp)
            await self._seek(tp, await self._reset_offset(tp) if offset is None else offset)
            positions[tp] = offset
        return positions

    async def _reset_offset(self, tp: TP) -> int:
        first, following = await self.catalog.bounds(tp.topic, tp.partition)
        latest = self.app.conf.consumer_auto_offset_reset == "latest"
        return following if latest else first

    async def _seek(self, partition: TP, offset: int) -> None:
        self._delivered[partition].clear()
        self._acked[partition].clear()
        self._acked_index[partition].clear()
        await self._readers[partition].start(offset)

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
