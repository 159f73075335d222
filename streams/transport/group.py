"""Group: who owns the partitions of an app, and how far each was read.

One stream an app holds one ownership record, which expires unless renewed, and one offset record
a partition. Every write is a compare-and-set on its subject's last sequence, so of two workers
one wins and the other learns it. A new owner rewrites all offset records under its generation
before it reads them: from then on a former owner, alive or stopped and continued, cannot commit.
"""

import asyncio
import json
import logging
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from time import monotonic
from uuid import uuid4

from faust.types import TP
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import BadRequestError, NotFoundError

from streams.transport import names
from streams.transport.connection import RETRY_WAIT_S, TRANSIENT, Connection, Stored
from streams.transport.errors import ServerUnavailableError, WorkerFencedError
from streams.transport.topics import STREAM_NAME_IN_USE

logger = logging.getLogger(__name__)

COMMIT_DEADLINE_S = 30.0
COMPARE_AND_SET_ATTEMPTS = 20


@dataclass(slots=True)
class _Slot:
    """The offset record of a partition as this worker last saw it."""

    sequence: int
    offset: int | None


class Group:
    """Ownership and offsets of one app, seen from one worker."""

    def __init__(
        self, connection: Connection, app_id: str, *, lease_s: float, replicas: int
    ) -> None:
        self._connection = connection
        self._app_id = app_id
        self._stream = names.group_stream(app_id)
        self._subject = names.owner_subject(app_id)
        self._lease_s = lease_s
        self._replicas = replicas
        self._lease_sequence = 0
        self._slots: dict[TP, _Slot] = {}
        self.member = f"{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
        self.generation = 0
        self.owner = ""
        self.renewed_at = 0.0

    async def ensure(self) -> None:
        """Create the group's stream if it is not there."""
        wanted = StreamConfig(
            name=self._stream,
            description=f"ownership and offsets of Faust app {self._app_id}",
            subjects=[f"{names.GROUP_ROOT}.{names.token(self._app_id)}.>"],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.OLD,
            num_replicas=self._replicas,
            max_msgs_per_subject=1,
            allow_msg_ttl=True,
            allow_atomic=True,
        )

        async def add() -> None:
            try:
                await self._connection.jetstream.add_stream(wanted)
            except BadRequestError as error:
                if error.err_code != STREAM_NAME_IN_USE:
                    raise

        await self._connection.retrying(f"group of {self._app_id}", add)

    async def acquire(self) -> bool:
        """Become the owner if nobody is; a new generation begins. False: `owner` holds it."""
        current = await self._connection.last_message(self._stream, self._subject)
        holder = _member_of(current)
        if current is not None and holder != self.member:
            self.owner = holder
            return False
        sequence = await self._put_lease(current.sequence if current else 0)
        if sequence is None:
            return False
        self._lease_sequence = self.generation = sequence
        self.owner = self.member
        return True

    async def renew(self) -> None:
        """Prolong the lease; WorkerFencedError when another worker took it.

        A lease that expired while the server was away, with nobody else taking it, is taken back
        under the same generation: the offset records still guard against a successor's.
        """
        sequence = await self._put_lease(self._lease_sequence)
        if sequence is None:
            current = await self._connection.last_message(self._stream, self._subject)
            holder = _member_of(current)
            if current is not None and holder != self.member:
                self.owner = holder
                raise WorkerFencedError(self._app_id, holder)
            sequence = await self._put_lease(current.sequence if current else 0)
            if sequence is None:
                raise WorkerFencedError(self._app_id, "unknown")
        self._lease_sequence = sequence

    async def release(self) -> None:
        """Give the lease back at once, so that a standby need not wait for it to expire."""
        sequence, self._lease_sequence = self._lease_sequence, 0
        if not sequence or not self._connection.is_connected:
            return
        try:
            await self._connection.jetstream.delete_msg(self._stream, sequence)
        except (*TRANSIENT, NotFoundError, BadRequestError) as error:
            logger.info("lease left to expire: %s", error)

    async def adopt(self, partitions: Iterable[TP]) -> None:
        """Rewrite the offset records under this generation, which fences former owners."""
        self._slots = {tp: await self._adopt(tp) for tp in partitions}

    def committed(self, tp: TP) -> int | None:
        """Return the committed offset (the next to read) of an adopted partition, or None."""
        slot = self._slots.get(tp)
        return slot.offset if slot else None

    async def commit(self, offsets: Mapping[TP, int]) -> bool:
        """Store offsets durably; False when a successor has fenced this worker.

        Outages are waited out until a deadline, then ServerUnavailableError is raised.
        """
        for tp, offset in offsets.items():
            slot = self._slots.get(tp)
            if slot is None or not await self._store(tp, slot, offset):
                return False
        return True

    async def _put_lease(self, expected: int) -> int | None:
        record = {
            "member": self.member,
            "generation": self.generation,
            "lease_s": self._lease_s,
        }
        sequence = await self._connection.put_if(
            self._subject, json.dumps(record).encode(), expected=expected, ttl_s=self._lease_s
        )
        if sequence is not None:
            self.renewed_at = monotonic()
        return sequence

    async def _adopt(self, tp: TP) -> _Slot:
        subject = names.offset_subject(self._app_id, tp.topic, tp.partition)
        for _ in range(COMPARE_AND_SET_ATTEMPTS):
            stored = await self._connection.last_message(self._stream, subject)
            offset = json.loads(stored.data)["offset"] if stored else None
            sequence = await self._put_offset(tp, offset, stored.sequence if stored else 0)
            if sequence is not None:
                return _Slot(sequence, offset)
        raise WorkerFencedError(self._app_id, f"a writer of {subject}")

    async def _store(self, tp: TP, slot: _Slot, offset: int) -> bool:
        give_up_at = monotonic() + COMMIT_DEADLINE_S
        while True:
            try:
                sequence = await self._put_offset(tp, offset, slot.sequence)
            except TRANSIENT as error:
                if monotonic() >= give_up_at:
                    raise ServerUnavailableError("commit", COMMIT_DEADLINE_S) from error
                await asyncio.sleep(RETRY_WAIT_S)
                continue
            if sequence is None:
                sequence = await self._own_write(tp, offset)
            if sequence is None:
                return False
            slot.sequence, slot.offset = sequence, offset
            return True

    async def _own_write(self, tp: TP, offset: int) -> int | None:
        """Find out whether a refused write was in truth this worker's own, its answer lost."""
        subject = names.offset_subject(self._app_id, tp.topic, tp.partition)
        stored = await self._connection.last_message(self._stream, subject)
        if stored is None:
            return None
        record = json.loads(stored.data)
        mine = (self.member, self.generation, offset)
        found = (record["member"], record["generation"], record["offset"])
        return stored.sequence if found == mine else None

    async def _put_offset(self, tp: TP, offset: int | None, expected: int) -> int | None:
        record = {"offset": offset, "generation": self.generation, "member": self.member}
        return await self._connection.put_if(
            names.offset_subject(self._app_id, tp.topic, tp.partition),
            json.dumps(record).encode(),
            expected=expected,
        )


@dataclass(frozen=True, slots=True)
class Position:
    """How far an app committed one partition: `offset` is the next to read, None for none yet."""

    topic: str
    partition: int
    offset: int | None
    committed_at: datetime


@dataclass(frozen=True, slots=True)
class GroupView:
    """An app's group as an onlooker sees it; `owner` is empty while nobody owns its partitions."""

    owner: str
    generation: int
    positions: tuple[Position, ...]


async def look(connection: Connection, app_id: str) -> GroupView | None:
    """Return who owns an app's partitions and how far each is committed; None before its start.

    Changes nothing. Raises ServerUnavailableError.
    """
    stream = names.group_stream(app_id)
    offsets = names.offset_subject(app_id, "", 0).rpartition("..")[0]

    async def read() -> GroupView | None:
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
        try:
            lease = await jetstream.get_last_msg(stream, names.owner_subject(app_id))
        except NotFoundError:
            return GroupView("", 0, tuple(positions))
        record = json.loads(lease.data or b"{}")
        return GroupView(record.get("member", ""), record.get("generation", 0), tuple(positions))

    return await connection.retrying(f"group of {app_id}", read)


def _member_of(stored: Stored | None) -> str:
    return str(json.loads(stored.data)["member"]) if stored else ""
