"""Ownership: a worker's part in its app, from joining to letting go.

A new generation is followed in the order Faust relies on: let go of everything (finish and commit
what agents have in hand, stop what will not finish), wait until every other member has let go or
is dead, fence, then read on. A worker that hears nothing from NATS holds its agents by its own
clock before anybody could take over; one whose partitions were given away meanwhile ends with
WorkerFencedError, one that is cut off for a minute with ServerUnavailableError.
"""

import asyncio
from collections.abc import Iterable, Mapping
from time import monotonic

from faust.stores.memory import Store as MemoryStore
from faust.types import TP, TransportT
from mode import Service
from nats.aio.msg import Msg

from streams.transport import names
from streams.transport.connection import TRANSIENT, Connection
from streams.transport.delivery import Delivery
from streams.transport.errors import (
    RollBackError,
    ServerUnavailableError,
    TopicMissingError,
    TransportError,
    WorkerFencedError,
)
from streams.transport.group import Group
from streams.transport.heartbeat import Heartbeat
from streams.transport.layouts import History, history_of
from streams.transport.membership import Generation, Member, Membership, Share, member_record
from streams.transport.reader import PartitionReader
from streams.transport.topics import Topics

DRAIN_DEADLINE_S = 4.0
OUTAGE_LIMIT_S = 60.0
BARRIER_POLL_S = 0.1

# Fractions of the lease, by this worker's own clock: nobody takes over before the whole has passed.
HOLD_AFTER = 0.6
CANCEL_AFTER = 0.85
GRACE = 1.5


class ClusterView:
    """What Faust's partition assignor asks of a cluster: the partitions of a topic."""

    def __init__(self, partitions: Mapping[str, int]) -> None:
        self._partitions = partitions

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        """Return the partition numbers of `topic`, None when it is unknown."""
        count = self._partitions.get(topic)
        return set(range(count)) if count else None


class Ownership(Delivery):
    """Takes part in the app's group; what is read and committed is the subclass's business."""

    def __init__(self, transport: TransportT, *args: object, **kwargs: object) -> None:
        super().__init__(transport, *args, **kwargs)
        conf = self.app.conf
        self.lease_s = float(conf.broker_session_timeout)
        self._beat_s = min(self.lease_s / 4, float(conf.broker_heartbeat_interval))
        self.connection: Connection = transport.connect(f"{conf.id} consumer")
        self.catalog = Topics(self.connection, transport.external, transport.changelogs())
        self.group = Group(self.connection, conf.id, replicas=conf.topic_replication_factor)
        self.membership = Membership(self.connection, conf.id)
        self.heartbeat = Heartbeat(
            transport.connect(f"{conf.id} heartbeat"),
            stream=names.group_stream(conf.id),
            subject=names.member_subject(conf.id, self.group.member),
            ttl_s=self.lease_s,
            beat_s=self._beat_s,
        )
        self._assigned: set[TP] | None = None
        self._topics: set[str] = set()
        self._histories: dict[str, History | None] = {}
        self._subscription_changed = asyncio.Event()
        self._nudged = asyncio.Event()
        self._released = 0
        self._grace_until = 0.0

    def assigned(self) -> set[TP]:
        """Return the partitions this worker owns, none before it is connected."""
        return self._assigned or set()

    @Service.task  # type: ignore[untyped-decorator]
    async def _take_part(self) -> None:
        """Join the group once there is a subscription; then follow it, and lead it if oldest."""
        if self.app.client_only or await self.wait_for_stopped(self._subscription_changed):
            return
        try:
            await self.group.ensure()
            await self._look_back(self._topics)
            await self.connection.client.subscribe(
                names.nudge_subject(self.app.conf.id), cb=self._on_nudge
            )
            await self.heartbeat.start()
            self._subscription_changed.clear()
            await self.heartbeat.join(self._about_me())
            while not self.should_stop:
                try:
                    await self._look_around()
                except TRANSIENT as error:
                    self.log.info("group not looked at: %s", type(error).__name__)
                await self._wait_for_nudge(self._beat_s)
        except TransportError as error:
            await self.crash(error)

    async def _look_around(self) -> None:
        me = self.group.member
        generation = await self.membership.generation()
        self._note_owners(generation)
        if self.assigned() and (generation is None or me not in generation.shares):
            raise WorkerFencedError(self.app.conf.id, self.group.owner or "nobody yet")
        if self.heartbeat.lapsed:
            self._is_held = bool(self.assigned())
            await self.heartbeat.join(self._about_me())
            await self._nudge()
        if self._subscription_changed.is_set():
            self._subscription_changed.clear()
            await self._tell()
        members = await self.membership.members()
        if generation is not None and me in generation.shares:
            is_heard = monotonic() - self.heartbeat.renewed_at < self.lease_s * HOLD_AFTER
            is_current = generation.number == self.group.generation and not self._is_held
            if not is_current and is_heard and not self.app.should_stop:
                await self._follow(generation)
        if me in members and me == min(members.values(), key=lambda each: each.joined).name:
            await self._lead(generation, members)

    async def _lead(self, generation: Generation | None, members: Mapping[str, Member]) -> None:
        """Write the next generation if members or subscriptions differ from the last one."""
        shares = generation.shares if generation else {}
        if {name: share.subscription for name, share in shares.items()} == {
            name: member.subscription for name, member in members.items()
        }:
            return
        if monotonic() < self._grace_until and not shares.keys() <= members.keys():
            return  # a restarted server forgot members that live: they come back
        counts = {}
        for topic in {topic for member in members.values() for topic in member.subscription}:
            try:
                counts[topic] = (await self.catalog.confirm(topic)).partitions
            except TopicMissingError:
                self.log.warning("topic %r of another member has no stream: left out", topic)
        decided = self.app.assignor.assign(ClusterView(counts), members)
        has_begun = await self.membership.begin(
            {
                name: Share(
                    members[name].subscription,
                    tuple((topic, list(parts)) for topic, parts in share.assignment),
                    share.user_data,
                )
                for name, share in decided.items()
            },
            after=generation.number if generation else 0,
        )
        await self._nudge()
        if has_begun:
            await self.membership.remove_dead()

    async def _follow(self, generation: Generation) -> None:
        """Take this worker's share of a generation, in the order Faust relies on."""
        number, share = generation.number, generation.shares[self.group.member]
        decided = {TP(topic, partition) for topic, parts in share.assignment for partition in parts}
        await self._look_back({tp.topic for tp in decided})
        sources = {tp for tp in decided if not self._is_changelog_tp(tp)}
        if decided == self.assigned() and self.group.generation and not self._is_held:
            # Nothing changes for this worker: it goes on reading, fenced anew.
            self.app.assignor.on_assignment(share)
            if await self.group.adopt(sources, number):
                await self._tell(released=number)
            return
        await self._let_go(number)
        if not await self._wait_for_others(generation):
            return
        self.app.assignor.on_assignment(share)
        if not await self.group.adopt(sources, number, await self._beginnings(sources)):
            return
        for tp in decided:
            self._readers[tp] = self._new_reader(tp)
        self._assigned, self._is_held = decided, False
        self.app.consumer_generation_id = number
        self.app.producer.changes.open()
        self._is_letting_go = False
        await self._tell()
        await self.on_partitions_assigned(set(decided), number)

    async def _look_back(self, topics: Iterable[str]) -> None:
        """Make sure that the topics lie as they are known, and this app's state with them."""
        for topic in topics:
            shape = await self.catalog.confirm(topic)
            self._histories[topic] = await history_of(self.connection, self.app.conf.id, shape)

    async def _let_go(self, number: int) -> None:
        """Finish and commit what is in hand, give all partitions up, and say so."""
        held = set(self.assigned())
        if held:
            await self._drain()
        self._is_letting_go = True
        self.app.on_rebalance_start()
        await self.on_partitions_revoked(held)
        for tp in held:
            await self._readers.pop(tp).stop()
        self._assigned = set()
        await self.group.release()
        for changelog in self.app.producer.changes.drop():
            self._roll_back(changelog)
        await self._tell(released=number)

    def _roll_back(self, changelog: str) -> None:
        """Empty a table that holds what was never committed: it is recovered whole."""
        tables = self.app.tables
        store, recovery = tables._changelogs[changelog].data, tables.recovery  # noqa: SLF001
        if not isinstance(store, MemoryStore):
            raise RollBackError(changelog, str(store.url))
        store.data.clear()
        store._key_partition.clear()  # noqa: SLF001
        for offsets in (recovery.active_offsets, recovery.standby_offsets):
            for tp in [tp for tp in offsets if tp.topic == changelog]:
                del offsets[tp]

    async def _drain(self) -> None:
        """Let agents finish what they began, up to a deadline; stop the rest of it."""
        self._hold()
        await self.wait_empty()
        if self._unfinished():
            self._cancel_agents()

    def _hold(self) -> None:
        """Let no agent begin another event."""
        self.stop_flow()
        self.app.flow_control.suspend()
        self.app.flow_control.clear()

    def _unfinished(self) -> bool:
        self._clean_unacked_messages()
        return bool(self._unacked_messages)

    def _cancel_agents(self) -> None:
        """Stop agents in the middle of their events, which stay unfinished and are read again.

        Faust acknowledges the event an agent is cancelled in; marked before, it is left alone.
        """
        self.log.warning("agents stopped in the middle of %d events", len(self._unacked_messages))
        for message in list(self._unacked_messages):
            message.acked = True
        self._unacked_messages.clear()
        for agent in self.app.agents.values():
            for actor in list(agent._actors):  # noqa: SLF001 - Faust's cancel ends them for good
                if actor.actor_task is not None:
                    actor.actor_task.cancel()  # its supervisor starts it again

    async def _wait_for_others(self, generation: Generation) -> bool:
        """Wait until no other member holds on to anything; False when a later generation began."""
        give_up_at = monotonic() + self.app.conf.broker_rebalance_timeout
        while not self.should_stop:
            current = await self.membership.generation()
            if current is None or current.number != generation.number:
                return False
            members = await self.membership.members()
            if all(
                members[name].released >= generation.number
                for name in generation.shares
                if name in members
            ):
                return True
            if monotonic() > give_up_at:
                limit_s = self.app.conf.broker_rebalance_timeout
                raise ServerUnavailableError("wait for other members to let go", limit_s)
            await self._wait_for_nudge(BARRIER_POLL_S)
        return False

    async def _beginnings(self, partitions: Iterable[TP]) -> dict[TP, int]:
        """Return where an app begins that reads from the latest event on, and never committed."""
        if self.app.conf.consumer_auto_offset_reset != "latest":
            return {}
        return {tp: (await self.catalog.bounds(tp.topic, tp.partition))[1] for tp in partitions}

    def _new_reader(self, tp: TP) -> PartitionReader:
        shape = self.catalog.known(tp.topic)
        if shape is None:
            raise RuntimeError(f"topic {tp.topic!r} was assigned before it was loaded")
        history = self._histories.get(tp.topic)
        return PartitionReader(
            self.connection,
            stream=shape.stream,
            subject_filter=history.filters(tp.partition) if history else shape.filter(tp.partition),
            on_arrival=self._arrived.set,
            wanted=history.wants(tp.partition) if history else None,
        )

    @Service.task  # type: ignore[untyped-decorator]
    async def _guard(self) -> None:
        """Stamp the loop's life, and stop the agents before the lease can have run out."""
        while not self.should_stop:
            self.heartbeat.stamp()
            if self.heartbeat.failure is not None:
                await self.crash(self.heartbeat.failure)
            renewed_at = self.heartbeat.renewed_at
            silent_s = monotonic() - renewed_at if renewed_at else 0.0
            if silent_s > OUTAGE_LIMIT_S:
                await self.crash(ServerUnavailableError("renew membership", OUTAGE_LIMIT_S))
            if self.assigned() and silent_s > self.lease_s * HOLD_AFTER:
                if not self._is_held:
                    self._is_held = True
                    self.log.warning("no renewal for %.1f s: the agents are held", silent_s)
                    self._hold()
                if silent_s > self.lease_s * CANCEL_AFTER and self._unfinished():
                    self._cancel_agents()
            await self.sleep(min(self.lease_s / 20, 0.25))

    def _about_me(self) -> Mapping[str, object]:
        metadata = self.app.assignor.metadata(self._topics)
        return member_record(self._topics, metadata.user_data, self._released)

    async def _tell(self, *, released: int | None = None) -> None:
        if released is not None:
            self._released = released
        await self.heartbeat.tell(self._about_me())
        await self._nudge()

    async def _nudge(self) -> None:
        if self.connection.is_connected:
            await self.connection.client.publish(names.nudge_subject(self.app.conf.id))

    async def _on_nudge(self, _: Msg) -> None:
        self._nudged.set()

    async def _wait_for_nudge(self, limit_s: float) -> None:
        await self.wait_for_stopped(self._nudged, timeout=limit_s)
        self._nudged.clear()

    def _note_owners(self, generation: Generation | None) -> None:
        owners = generation.owners() if generation else ()
        self.group.owner = ", ".join(name for name in owners if name != self.group.member)
