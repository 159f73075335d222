"""Group: how far the partitions of an app were read, and who may say so.

One stream an app holds its members, its generation, one offset record a partition and its tables'
changelogs. A new owner rewrites the offset records of its partitions under its generation before
it reads them; every commit is one atomic batch that expects the records as its writer knows them.
So a former owner, alive or stopped and continued, can store nothing more: no offset, no changelog.
"""

import asyncio
import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from uuid import uuid4

from faust.types import TP
from nats.js.errors import NotFoundError

from streams.transport import names
from streams.transport.batch import MAX_BATCH_MESSAGES, Write, publish_batch
from streams.transport.connection import RETRY_WAIT_S, TRANSIENT, Connection
from streams.transport.errors import ServerUnavailableError, WorkerFencedError
from streams.transport.membership import Membership
from streams.transport.state import ensure_state_stream

COMMIT_DEADLINE_S = 30.0
COMPARE_AND_SET_ATTEMPTS = 20


@dataclass(slots=True)
class _Slot:
    """The offset record of a partition as this worker last saw it."""

    sequence: int
    offset: int | None


class Group:
    """The offsets of one app, seen from one worker. `owner` names who owns its partitions."""

    def __init__(self, connection: Connection, app_id: str, *, replicas: int) -> None:
        self._connection = connection
        self._app_id = app_id
        self._stream = names.group_stream(app_id)
        self._replicas = replicas
        self._slots: dict[TP, _Slot] = {}
        self._writing = asyncio.Lock()
        self.member = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self.generation = 0
        self.owner = ""

    async def ensure(self) -> None:
        """Create the group's stream if it is not there."""
        await ensure_state_stream(self._connection, self._app_id, self._replicas)

    async def adopt(
        self, partitions: Iterable[TP], generation: int, begin: Mapping[TP, int] | None = None
    ) -> bool:
        """Rewrite the offset records under `generation`, which fences former owners.

        `begin` is where partitions begin that were never committed. False when a record belongs to
        a later generation: then nothing is adopted, and the later generation is to be followed.
        """
        async with self._writing:
            slots: dict[TP, _Slot] = {}
            for tp in partitions:
                slot = await self._adopt(tp, generation, (begin or {}).get(tp))
                if slot is None:
                    return False
                slots[tp] = slot
            self._slots, self.generation = slots, generation
        return True

    async def release(self) -> None:
        """Forget the partitions: they are another owner's from now on."""
        async with self._writing:
            self._slots, self.generation = {}, 0

    def committed(self, tp: TP) -> int | None:
        """Return the committed offset (the next to read) of an adopted partition, or None."""
        slot = self._slots.get(tp)
        return slot.offset if slot else None

    def positions(self) -> dict[TP, int | None]:
        """Return the committed offset of every adopted partition."""
        return {tp: slot.offset for tp, slot in self._slots.items()}

    async def commit(
        self, offsets: Mapping[TP, int | None], changes: Sequence[Write] = ()
    ) -> int | None:
        """Store offsets, and with them changes of tables, in one step; None when fenced.

        Returns the sequence of the first change. Outages are waited out until a deadline, then
        ServerUnavailableError is raised.
        """
        async with self._writing:
            if any(tp not in self._slots for tp in offsets):
                return None
            tps = list(offsets)
            room = MAX_BATCH_MESSAGES - len(changes)
            first = await self._store(tps[:room], offsets, changes)
            for start in range(room, len(tps), MAX_BATCH_MESSAGES):
                if first is not None:
                    rest = tps[start : start + MAX_BATCH_MESSAGES]
                    if await self._store(rest, offsets, ()) is None:
                        return None
            return first

    async def relocate(self, offsets: Mapping[TP, int], others: Sequence[Write]) -> bool:
        """Replace offset records, add those of new partitions, and store `others`, in one step.

        False when anybody wrote one of the records since it was adopted: then nothing is stored.
        """
        async with self._writing:
            move = uuid4().hex
            records = [
                Write(
                    names.offset_subject(self._app_id, tp.topic, tp.partition),
                    self._record(offset, self.generation, move),
                    expected=self._slots[tp].sequence if tp in self._slots else 0,
                )
                for tp, offset in offsets.items()
            ]
            return await publish_batch(self._connection, [*others, *records]) is not None

    async def _adopt(self, tp: TP, generation: int, begin: int | None) -> _Slot | None:
        subject = names.offset_subject(self._app_id, tp.topic, tp.partition)
        for _ in range(COMPARE_AND_SET_ATTEMPTS):
            stored = await self._connection.last_message(self._stream, subject)
            record = json.loads(stored.data) if stored else {"offset": None, "generation": 0}
            if record["generation"] > generation:
                return None
            offset = begin if record["offset"] is None else record["offset"]
            sequence = await self._connection.put_if(
                subject,
                self._record(offset, generation, uuid4().hex),
                expected=stored.sequence if stored else 0,
            )
            if sequence is not None:
                return _Slot(sequence, offset)
        raise WorkerFencedError(self._app_id, f"a writer of {subject}")

    async def _store(
        self, tps: Sequence[TP], offsets: Mapping[TP, int | None], changes: Sequence[Write]
    ) -> int | None:
        give_up_at = monotonic() + COMMIT_DEADLINE_S
        commit = uuid4().hex
        records = [
            Write(
                names.offset_subject(self._app_id, tp.topic, tp.partition),
                self._record(offsets[tp], self.generation, commit),
                expected=self._slots[tp].sequence,
            )
            for tp in tps
        ]
        while True:
            try:
                first = await publish_batch(self._connection, [*changes, *records])
            except TRANSIENT as error:
                if monotonic() >= give_up_at:
                    raise ServerUnavailableError("commit", COMMIT_DEADLINE_S) from error
                await asyncio.sleep(RETRY_WAIT_S)
                continue
            if first is None:
                first = await self._own_write(tps, commit, len(changes))
            if first is None:
                return None
            for sequence, tp in enumerate(tps, start=first + len(changes)):
                self._slots[tp] = _Slot(sequence, offsets[tp])
            return first

    async def _own_write(self, tps: Sequence[TP], commit: str, changes: int) -> int | None:
        """Find out whether a refused batch was in truth stored already, its answer lost."""
        subject = names.offset_subject(self._app_id, tps[0].topic, tps[0].partition)
        stored = await self._connection.last_message(self._stream, subject)
        if stored is None or json.loads(stored.data).get("commit") != commit:
            return None
        return stored.sequence - changes

    def _record(self, offset: int | None, generation: int, commit: str) -> bytes:
        record = {
            "offset": offset,
            "generation": generation,
            "member": self.member,
            "commit": commit,
        }
        return json.dumps(record).encode()


@dataclass(frozen=True, slots=True)
class Position:
    """How far an app committed one partition: `offset` is the next to read, None for none yet."""

    topic: str
    partition: int
    offset: int | None
    committed_at: datetime


@dataclass(frozen=True, slots=True)
class GroupView:
    """An app's group as an onlooker sees it.

    `owner` names the living members that own partitions, empty for none.
    """

    owner: str
    generation: int
    positions: tuple[Position, ...]


async def look(connection: Connection, app_id: str) -> GroupView | None:
    """Return who owns an app's partitions and how far each is committed; None before its start.

    Changes nothing. Raises ServerUnavailableError.
    """
    stream = names.group_stream(app_id)
    offsets = names.offset_subject(app_id, "", 0).rpartition("..")[0]

    async def read() -> list[Position] | None:
        jetstream = connection.jetstream
        try:
            info = await jetstream.stream_info(stream, subjects_filter=f"{offsets}.>")
        except NotFoundError:
            return None
        positions = []
        for subject in sorted(info.state.subjects or {}):
            topic, _, partition = subject.removeprefix(f"{offsets}.").rpartition(".")
            stored = await jetstream.get_last_msg(stream, subject)
            record = json.loads(stored.data or b"")
            positions.append(
                Position(names.from_token(topic), int(partition), record["offset"], stored.time)
            )
        return positions

    positions = await connection.retrying(f"group of {app_id}", read)
    if positions is None:
        return None
    membership = Membership(connection, app_id)
    generation, members = await membership.generation(), await membership.members()
    owners = generation.owners() if generation else ()
    return GroupView(
        ", ".join(name for name in owners if name in members),
        generation.number if generation else 0,
        tuple(positions),
    )
