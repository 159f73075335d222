"""Relocation: an app's offsets and tables follow a topic into its next layout, in one step.

The app's former workers are fenced first, so that what is copied is what they committed. The
changes of its tables are copied under subjects that nobody reads yet, each to the partition its
event would be in now. Then one atomic batch says where offsets and tables lie from now on. Killed
before it, the app is where it was; after it, where it should be; a second run tidies up.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import ceil
from typing import Any
from uuid import uuid4

from faust.types import TP

from streams.transport import names
from streams.transport.batch import MAX_BATCH_MESSAGES, Write, publish_batch
from streams.transport.connection import TRANSIENT, TTL_HEADER, Connection
from streams.transport.errors import PartitionsRefusedError, ServerUnavailableError
from streams.transport.group import Group, look
from streams.transport.layouts import AppLayout, History, placed_anew, scan
from streams.transport.membership import Membership
from streams.transport.reader import Record
from streams.transport.topics import TopicShape

COPY_BATCH = MAX_BATCH_MESSAGES // 2
BATCH_DEADLINE_S = 30.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class TableRecord:
    """Where the changelog of a table lies; `sequence` is that of the record that says so."""

    topic: str
    partitions: int
    layout: str
    sequence: int

    def root(self, app_id: str) -> str:
        """Return what its subjects begin with."""
        return names.changelog_root(app_id, self.topic, self.layout)


@dataclass(frozen=True, slots=True)
class AppState:
    """An app as it lies in its state stream: who lives, what it read, and its tables."""

    app_id: str
    members: tuple[str, ...]
    subscribed: frozenset[str]
    offsets: Mapping[TP, int | None]
    tables: tuple[TableRecord, ...]

    def topics(self) -> set[str]:
        """Return the topics it has offsets of."""
        return {tp.topic for tp in self.offsets}


async def app_state(connection: Connection, app_id: str) -> AppState:
    """Read an app's state."""
    view = await look(connection, app_id)
    members = await Membership(connection, app_id).members()
    stream, records = names.group_stream(app_id), names.changelog_record(app_id, "")
    info = await connection.retrying(
        f"tables of {app_id}",
        lambda: connection.jetstream.stream_info(stream, subjects_filter=f"{records}*"),
    )
    tables = []
    for subject in sorted(info.state.subjects or {}):
        stored = await connection.last_message(stream, subject)
        if stored is not None:
            record = json.loads(stored.data)
            topic = names.from_token(subject.removeprefix(records))
            tables.append(
                TableRecord(topic, record["partitions"], record.get("layout", ""), stored.sequence)
            )
    return AppState(
        app_id,
        tuple(sorted(members)),
        frozenset(topic for member in members.values() for topic in member.subscription),
        {TP(each.topic, each.partition): each.offset for each in (view.positions if view else ())},
        tuple(tables),
    )


class Relocation:
    """The way of one app into the present layout of `shapes`, all of `partitions` partitions."""

    def __init__(
        self,
        connection: Connection,
        app: AppState,
        shapes: Mapping[str, tuple[TopicShape, AppLayout]],
        partitions: int,
        say: Say,
    ) -> None:
        self._connection = connection
        self._app = app
        self._shapes = shapes
        self._partitions = partitions
        self._say = say
        self._stream = names.group_stream(app.app_id)
        former = {shape.counts[layout.layout] for shape, layout in shapes.values()}
        self.tables = tuple(table for table in app.tables if table.partitions in former)

    async def examine(self) -> None:
        """Tell what is to be done; PartitionsRefusedError where a partition was no key's choice."""
        keys, step = 0, len(self._shapes) * (self._partitions + 1) + len(self.tables)
        if step > MAX_BATCH_MESSAGES:
            raise PartitionsRefusedError(
                f"app {self._app.app_id!r} would need {step} records written in one step, "
                f"and the server takes {MAX_BATCH_MESSAGES}: ask for fewer partitions"
            )
        for table in self.tables:
            async for records in scan(self._connection, self._stream, f"{self._root(table)}.*.*"):
                keys += len(records)
                for record in records:
                    self._target(table, record)
        waiting = 0
        for shape, layout in self._shapes.values():
            waiting += await self._waiting(shape, layout)
        self._say(
            f"app {self._app.app_id}: {keys} keys in {len(self.tables)} tables to move, "
            f"{waiting} events not processed yet"
        )

    async def run(self) -> None:
        """Move the app; a second time it does nothing but tidy up."""
        app_id = self._app.app_id
        group = await self._fence()
        self._say(f"app {app_id}: its former workers are fenced")
        await tidy_up(self._connection, app_id)
        run = f"m{uuid4().hex}"
        leavings = {table.topic: table.layout for table in self.tables}
        await self._put(names.move_subject(app_id), {"run": run, "former": leavings})
        writes = []
        for table in self.tables:
            moved = await self._copy(table, names.changelog_root(app_id, table.topic, run))
            self._say(f"app {app_id}: {moved} keys of {table.topic} copied")
            record = {"partitions": self._partitions, "layout": run}
            writes.append(
                Write(
                    names.changelog_record(app_id, table.topic),
                    json.dumps(record).encode(),
                    expected=table.sequence,
                )
            )
        offsets: dict[TP, int] = {}
        for shape, layout in self._shapes.values():
            starts = await self._starts(shape, layout.layout, group.positions())
            done = {**layout.done, layout.layout: starts}
            begin = max(1, min(starts))
            offsets |= {TP(shape.topic, each): begin for each in range(shape.partitions)}
            writes.append(
                Write(
                    names.layout_subject(app_id, shape.topic),
                    AppLayout(0, shape.layout, done).payload(),
                    expected=layout.sequence,
                )
            )
        self._say(f"app {app_id}: about to switch")
        await self._switch(group, offsets, writes)
        self._say(f"app {app_id}: offsets and tables are in their new partitions")
        await tidy_up(self._connection, app_id)

    async def _fence(self) -> Group:
        """Let no former worker store anything, and none be alive."""
        app_id = self._app.app_id
        membership, group = (
            Membership(self._connection, app_id),
            Group(self._connection, app_id, replicas=1),
        )
        before = await membership.generation()
        if await membership.begin({}, after=before.number if before else 0):
            generation = await membership.generation()
            fenced = generation is not None and await group.adopt(
                self._app.offsets, generation.number
            )
            if fenced and not await membership.members():
                return group
        raise PartitionsRefusedError(
            f"a worker of app {app_id!r} has started meanwhile: stop it, "
            "then tell the command again"
        )

    async def _switch(self, group: Group, offsets: Mapping[TP, int], writes: list[Write]) -> None:
        try:
            switched = await group.relocate(offsets, writes)
        except TRANSIENT as error:
            raise ServerUnavailableError("switch", BATCH_DEADLINE_S) from error
        if not switched:
            raise PartitionsRefusedError(
                f"a worker of app {self._app.app_id!r} or another run of this command came "
                "between: stop it, then tell the command again"
            )

    async def _starts(
        self, shape: TopicShape, layout: int, offsets: Mapping[TP, int | None]
    ) -> list[int]:
        """Return for each partition of the app's layout where what it did not process begins.

        That is the end of the layout where nothing is left, so that nobody reads it again.
        """
        earlier = [await self._last(shape, shape.former(each)) for each in range(layout)]
        whole = await self._last(shape, shape.former(layout))
        committed = [
            offsets.get(TP(shape.topic, each)) or 0 for each in range(shape.counts[layout])
        ]
        end = max(*earlier, whole, *(each - 1 for each in committed)) + 1
        starts = []
        for partition, offset in enumerate(committed):
            own = await self._last(shape, shape.former(layout, partition))
            starts.append(end if offset > max(*earlier, own, 0) else offset)
        return starts

    async def _last(self, shape: TopicShape, subjects: str) -> int:
        stored = await self._connection.last_message(shape.stream, subjects)
        return stored.sequence if stored else 0

    async def _copy(self, table: TableRecord, root: str) -> int:
        """Copy a changelog below `root`; return how many messages it had."""
        now_s, moved = await self._server_time_s(), 0
        source = f"{self._root(table)}.*.*"
        async for records in scan(self._connection, self._stream, source):
            writes: dict[str, Write] = {}
            for record in records:
                headers = _headers(record, now_s)
                if headers is None:
                    continue  # it expires in this moment
                key = record.subject.rpartition(".")[2]
                subject = f"{root}.{self._target(table, record)}.{key}"
                writes.pop(subject, None)
                writes[subject] = Write(subject, record.data, headers=headers)
            batch = list(writes.values())
            for start in range(0, len(batch), COPY_BATCH):
                await self._store(batch[start : start + COPY_BATCH])
            moved += len(batch)
        return moved

    async def _store(self, batch: Sequence[Write]) -> None:
        await self._connection.retrying(
            f"copy tables of {self._app.app_id}",
            lambda: publish_batch(self._connection, batch),
            BATCH_DEADLINE_S,
        )

    def _target(self, table: TableRecord, record: Record) -> int:
        """Return the partition of a change, by the key of the event that made it."""
        partition = int(record.subject.split(".")[-2])
        try:
            source = names.decode_source(record.headers)
        except KeyError:
            raise PartitionsRefusedError(
                f"app {self._app.app_id!r}: table {table.topic!r} has changes from before this "
                "version, which do not say by which key they were placed: "
                "let its app write each of its keys again first"
            ) from None
        if source is not None and names.partition_for(source, table.partitions) != partition:
            raise PartitionsRefusedError(_no_choice_of_keys(f"table {table.topic!r}"))
        return placed_anew(source, partition, table.partitions, self._partitions)

    async def _waiting(self, shape: TopicShape, layout: AppLayout) -> int:
        """Count the events not processed; each key must be where the partitioner puts it."""
        former = layout.layout
        starts = await self._starts(shape, former, self._app.offsets)
        history = History(shape, {**layout.done, former: starts})
        waiting = 0
        for each in range(shape.layout + 1):
            async for records in scan(
                self._connection, shape.stream, shape.former(each), max(1, min(starts))
            ):
                for record in records:
                    if history.is_done(record):
                        continue
                    waiting += 1
                    key, count = names.decode_key(record.headers), shape.counts[each]
                    _, partition = shape.origin(record.subject)
                    if key is not None and names.partition_for(key, count) != partition:
                        raise PartitionsRefusedError(_no_choice_of_keys(f"topic {shape.topic!r}"))
        return waiting

    def _root(self, table: TableRecord) -> str:
        return table.root(self._app.app_id)

    async def _put(self, subject: str, document: Mapping[str, Any]) -> None:
        payload = json.dumps(document).encode()
        await self._connection.retrying(
            f"write {subject}", lambda: self._connection.jetstream.publish(subject, payload)
        )

    async def _server_time_s(self) -> float:
        info = await self._connection.stream_document(self._stream)
        return datetime.fromisoformat(info["ts"]).timestamp()


async def tidy_up(connection: Connection, app_id: str) -> None:
    """Remove what the last move of an app left: its sources where it was done, else its copies."""
    stream, subject = names.group_stream(app_id), names.move_subject(app_id)
    stored = await connection.last_message(stream, subject)
    if stored is None:
        return
    move = json.loads(stored.data)
    for topic, former in move["former"].items():
        record = await connection.last_message(stream, names.changelog_record(app_id, topic))
        is_done = record is not None and json.loads(record.data).get("layout") == move["run"]
        dead = names.changelog_root(app_id, topic, former if is_done else move["run"])
        await _purge(connection, stream, f"{dead}.*.*")
    await _purge(connection, stream, subject)


async def _purge(connection: Connection, stream: str, subjects: str) -> None:
    await connection.retrying(
        f"tidy up {stream}", lambda: connection.jetstream.purge_stream(stream, subject=subjects)
    )


def _headers(record: Record, now_s: float) -> dict[str, str] | None:
    """Return the headers of a copied change; None where its time to live is over."""
    headers = {
        name: text for name, text in (record.headers or {}).items() if not name.startswith("Nats-")
    }
    lifetime = (record.headers or {}).get(TTL_HEADER)
    if lifetime is not None:
        left_s = ceil(int(lifetime.removesuffix("s")) - (now_s - record.timestamp_s))
        if left_s <= 0:
            return None
        headers[TTL_HEADER] = f"{left_s}s"
    return headers


def _no_choice_of_keys(where: str) -> str:
    return (
        f"{where} holds keys outside the partition that the partitioner gives them: "
        "whoever sends them chooses partitions, so they cannot be moved"
    )
