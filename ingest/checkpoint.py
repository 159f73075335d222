"""Where capture stands: ids for each change, and the only place from which it may resume.

Debezium hands database transactions over whole and in commit order, and the stored offset is always
the end of one. So a change's id is the place of the previous commit and a counter, and it comes out
the same on every run. What the stream already holds is passed over by comparing ids as numbers.
`CaptureDisordered` is raised when the engine's own counts and ours disagree, or when the stream's
last event does not come again where it must; `ResumeRefused` when slot, offset and stream
contradict each other.
"""

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ingest.contract import MAX_ORDINAL, EventId
from ingest.errors import CaptureDisordered, ResumeRefused, SlotLost
from ingest.settings import IngestSettings

METADATA_SYSTEM: Final = "giovang.system"
METADATA_SLOT: Final = "giovang.slot"
METADATA_ORIGIN: Final = "giovang.origin"
"""Stream metadata: the cluster and slot whose log the stream tells, and where it begins."""

ENGINE_NAME: Final = "giovang"
"""Topic prefix of the engine, and half of the key under which it stores its offset."""


def offset_key(settings: IngestSettings) -> str:
    """Return the key under which Debezium looks for its offset."""
    return json.dumps([settings.slot, {"server": ENGINE_NAME}], separators=(",", ":"))


SEQUENCE_KEY: Final = "giovang_sequence"
"""Of a stored offset: the stream's last sequence when all up to the offset was acknowledged."""


@dataclass(frozen=True, slots=True)
class Done:
    """All that commits up to `position` is acknowledged, the last of it at or before `sequence`."""

    position: int
    sequence: int


def offset_value(done: Done) -> dict[str, int | str]:
    """Return Debezium's offset for "this is done"; its reader leaves out what it does not know.

    Without `lsn_proc`, Debezium starts at the position as PostgreSQL understands it, which sends
    every database transaction that commits after it, whole. With it, 3.6 first searches for the
    event after the stored one, and loses the beginning of a database transaction that was open
    across the stored position (debezium/dbz#76).
    """
    return {
        "lsn": done.position,
        "lsn_commit": done.position,
        "messageType": "COMMIT",
        SEQUENCE_KEY: done.sequence,
    }


def lsn_text(position: int) -> str:
    """Return a log position as PostgreSQL writes it."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


class WalStatus(StrEnum):
    """The slot's hold on the log, as `pg_replication_slots.wal_status` has it."""

    RESERVED = "reserved"
    EXTENDED = "extended"
    UNRESERVED = "unreserved"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class SlotState:
    """The replication slot as PostgreSQL reports it; positions in bytes."""

    confirmed: int
    restart: int
    wal_status: WalStatus
    active_pid: int | None
    room: int | None = None
    """Bytes that may still be written before the slot is given up; None where there is no limit."""


@dataclass(frozen=True, slots=True)
class LogState:
    """What the ledger database says: its identity, its log, the slot, the stored offset."""

    system: str
    position: int
    slot: SlotState | None
    offset: int | None
    origin: int | None
    """Where the slot began, as provisioning recorded it."""
    offset_sequence: int | None = None
    """What the stream held when the offset was stored; None in an offset of an earlier release."""


@dataclass(frozen=True, slots=True)
class StreamState:
    """What JetStream says about the stream."""

    last_sequence: int
    messages: int
    last_id: EventId | None
    system: str | None
    origin: int | None
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class Resume:
    """Where to go on: after `position` in the log, after `sequence` in the stream.

    `published` is the id of the stream's last event; what comes at or before it is passed over.
    `replicas` is how many the stream has.
    """

    position: int
    sequence: int
    published: EventId | None
    replicas: int = 1


def resume_from(slot: str, log: LogState, stream: StreamState | None) -> Resume:
    """Decide where capture resumes; raises `ResumeRefused` where it must not."""
    if stream is None:
        raise ResumeRefused(
            "the stream is missing: run `python -m ingest.provision`, which says what to do if it "
            "held events before"
        )
    offset = _stored_offset(log, stream)
    check_slot(slot, log.slot, offset)
    _same_history(log, stream, offset)
    return Resume(
        position=offset,
        sequence=stream.last_sequence,
        published=stream.last_id,
        replicas=stream.replicas,
    )


def check_slot(slot: str, state: SlotState | None, offset: int) -> None:
    """Raise `SlotLost` or `ResumeRefused` where the slot no longer gives all after `offset`."""
    if state is None:
        raise SlotLost(
            f"replication slot {slot} is missing: changes since it was dropped can no longer be "
            "captured; run `python -m ingest.provision`, which says what to do"
        )
    if state.wal_status is WalStatus.LOST:
        raise SlotLost(
            f"replication slot {slot} was invalidated because PostgreSQL removed the log it needed "
            "(max_slot_wal_keep_size): changes are missing and have to be backfilled; run "
            "`python -m ingest.provision`, which says what to do"
        )
    if state.confirmed > offset:
        raise ResumeRefused(
            f"replication slot {slot} is at {lsn_text(state.confirmed)}, ahead of the stored "
            f"offset {lsn_text(offset)}: PostgreSQL would leave out the changes between"
        )


def _stored_offset(log: LogState, stream: StreamState) -> int:
    if log.offset is not None:
        return log.offset
    if stream.last_sequence > 0:
        raise ResumeRefused(
            f"no offset is stored, but the stream went up to sequence {stream.last_sequence}: the "
            "place to resume from is unknown"
        )
    raise ResumeRefused("no offset is stored: run `python -m ingest.provision` first")


def _same_history(log: LogState, stream: StreamState, offset: int) -> None:
    if stream.system != log.system:
        raise ResumeRefused(
            f"the stream tells the log of PostgreSQL system {stream.system}, but this database is "
            f"system {log.system}: log positions of two systems cannot be compared"
        )
    if stream.last_sequence < (log.offset_sequence or 0):
        raise ResumeRefused(
            f"the stream ends at sequence {stream.last_sequence}, but JetStream acknowledged "
            f"{log.offset_sequence}: it lost events; run `python -m ingest.provision`, which says "
            "what to do"
        )
    if stream.last_id is None:
        if stream.last_sequence > 0:
            raise ResumeRefused(
                f"the stream was emptied after sequence {stream.last_sequence}: its last event, "
                "from which capture resumes, is gone"
            )
        if stream.origin != offset:
            raise ResumeRefused(
                f"the stream is empty, but the stored offset {lsn_text(offset)} says that events "
                "were published"
            )
    elif stream.last_id.position > log.position:
        raise ResumeRefused(
            f"the stream's last event follows {lsn_text(stream.last_id.position)}, but the "
            f"database's log ends at {lsn_text(log.position)}: the database went back in time"
        )


class Cursor:
    """Gives each change its id, and tells which ones the stream already holds.

    Fed in the order of the engine: `begin`, one `change` per row, `end`. Not safe for threads.
    """

    def __init__(self, resume: Resume) -> None:
        self._position = resume.position
        self._ordinal = 0
        self._open = False
        self._published = resume.published
        # Events before the stored offset do not come again, so there is nothing to wait for.
        self._passing = resume.published is not None and resume.published.position >= self._position

    @property
    def position(self) -> int:
        """Where the last whole database transaction ends, in bytes of log."""
        return self._position

    def begin(self) -> None:
        """Open a database transaction."""
        if self._open:
            raise CaptureDisordered(
                f"a database transaction began after {lsn_text(self._position)} before the last "
                "one ended"
            )
        self._open = True
        self._ordinal = 0

    def change(self, counted: int) -> EventId | None:
        """Return the change's id, or None where the stream holds it already.

        `counted` is the engine's own number for this change within its database transaction.
        """
        self._ordinal += 1
        if not self._open or counted != self._ordinal or self._ordinal > MAX_ORDINAL:
            raise CaptureDisordered(
                f"after {lsn_text(self._position)} the engine counts change {counted}, capture "
                f"counts {self._ordinal if self._open else 'no open database transaction'}"
            )
        found = EventId(self._position, self._ordinal)
        if not self._passing:
            return found
        self._pass_over(found)
        return None

    def _pass_over(self, found: EventId) -> None:
        assert self._published is not None, "passing over needs an id to reach"  # noqa: S101
        if found > self._published:
            raise CaptureDisordered(
                f"the stream's last event {self._published} did not come again: the engine went "
                f"on with {found}"
            )
        self._passing = found != self._published

    def end(self, position: int, count: int) -> None:
        """Close the database transaction whose commit ends at `position` after `count` changes."""
        if not self._open or count != self._ordinal or position <= self._position:
            raise CaptureDisordered(
                f"a database transaction ended at {lsn_text(position)} with {count} changes; "
                f"capture counts {self._ordinal} after {lsn_text(self._position)}"
            )
        self._open = False
        self._position = position
