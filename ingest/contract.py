"""The capture room's door: names, ids and the envelope of every message on the ledger stream.

Pure: no input, no output. An id is the place of a change in the database's log, so it is the same
for the same change however often capture restarts, and ids sort as text in commit order. A table,
status or envelope that the contract does not know raises `ValueError`; nothing is guessed.

The envelope is described, field by field, by `envelope.schema.json` beside this module.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple, Self

import orjson

SCHEMA_VERSION: Final = 2
"""Version of the envelopes that are written; version 1 is read as well, since streams keep them."""
STREAM: Final = "LEDGER"
SUBJECT_ROOT: Final = "ledger"

HEADER_EVENT_ID: Final = "Giovang-Event-Id"
HEADER_SCHEMA: Final = "Giovang-Schema"
HEADER_POSITION: Final = "Giovang-Position"
HEADER_COMMITTED_AT: Final = "Giovang-Committed-At"
HEADER_KEY: Final = "Giovang-Key"
HEADER_ENDS: Final = "Giovang-Ends"
"""Is there, with value 1, on the last change of a database transaction only."""

_ID_FORM: Final = re.compile(r"([0-9a-f]{16})-([0-9a-f]{8})")
_STATUS_FORM: Final = re.compile(r"[a-z][a-z0-9_]*")
_KEY_FORM: Final = re.compile(r"[!-~]{1,64}")
_ENDS_LINE: Final = f"{HEADER_ENDS}: 1\r\n"
MAX_POSITION: Final = 2**64 - 1
MAX_ORDINAL: Final = 2**32 - 1


class Table(StrEnum):
    """Published tables of the ledger."""

    MERCHANTS = "merchants"
    PAYMENTS = "payments"
    LEDGER_ENTRIES = "ledger_entries"
    LEDGER_POSTINGS = "ledger_postings"
    PAYOUTS = "payouts"
    REFUNDS = "refunds"
    CAPTURE_HEARTBEAT = "capture_heartbeat"
    CAPTURE_BACKFILL = "capture_backfill"
    """Carries rows that are told again; each event names the table of the row, never this one."""


class Operation(StrEnum):
    """What happened to the row."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    SNAPSHOT = "snapshot"
    """Nothing happened: a backfill tells the row as it stands at this place in commit order."""


STATUS_TABLES: Final = frozenset({Table.PAYMENTS, Table.PAYOUTS, Table.REFUNDS})
"""Tables whose subject is the status reached; an update needs the whole row before the change."""
MUTABLE_TABLES: Final = STATUS_TABLES | {Table.MERCHANTS}
"""Tables whose rows change; PostgreSQL must log them whole (`REPLICA IDENTITY FULL`)."""

_NOUNS: Final[Mapping[Table, str]] = {
    Table.MERCHANTS: "merchant",
    Table.PAYMENTS: "payment",
    Table.LEDGER_ENTRIES: "entry",
    Table.LEDGER_POSTINGS: "posting",
    Table.PAYOUTS: "payout",
    Table.REFUNDS: "refund",
}
_KEYS: Final[Mapping[str, str | None]] = {
    Table.MERCHANTS.value: "id",
    Table.CAPTURE_HEARTBEAT.value: None,
}
_INSERTED: Final[Mapping[Table, str]] = {
    Table.MERCHANTS: "created",
    Table.LEDGER_ENTRIES: "posted",
    Table.LEDGER_POSTINGS: "recorded",
}
HEARTBEAT_SUBJECT: Final = f"{SUBJECT_ROOT}.capture.heartbeat"
SUBJECTS: Final = tuple(f"{SUBJECT_ROOT}.{noun}.>" for noun in (*_NOUNS.values(), "capture"))
"""What the stream takes. Not all of `ledger.>`: others tell of the ledger too, on their streams."""


class EventId(NamedTuple):
    """Place of a change in the log; compares as numbers, and its text sorts the same way.

    `position` is where the previous database transaction's commit ends, in bytes; `ordinal` counts
    the changes of this database transaction from 1.
    """

    position: int
    ordinal: int

    def __str__(self) -> str:
        return "%016x-%08x" % self  # noqa: UP031 - a third quicker, and asked for every event

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form; `ValueError` for anything else."""
        found = _ID_FORM.fullmatch(text)
        if found is None:
            raise ValueError(f"not an event id: {text!r}")
        return cls(int(found[1], 16), int(found[2], 16))


@lru_cache(maxsize=512)
def subject_for(
    table: str, operation: str, status_before: str | None = None, status: str | None = None
) -> str:
    """Return the subject of a change.

    `status_before` and `status` are the row's status before and after it, for tables that have
    one. A status becomes a word of the subject only when the row reaches it; other updates are
    `updated`. Raises `ValueError` for an unknown table or operation, a status that is missing, or
    what is never an event.
    """
    known = Table(table)
    done = Operation(operation)
    if known is Table.CAPTURE_HEARTBEAT and done is not Operation.SNAPSHOT:
        return HEARTBEAT_SUBJECT
    if known not in _NOUNS:
        raise ValueError(f"{known}: a {done} of this table is not an event")
    if done is Operation.DELETE:
        word = "deleted"
    elif done is Operation.SNAPSHOT:
        word = "snapshot"
    elif known in STATUS_TABLES:
        word = _status_word(known, done, status_before, status)
    elif done is Operation.INSERT:
        word = _INSERTED[known]
    else:
        word = "updated"
    return f"{SUBJECT_ROOT}.{_NOUNS[known]}.{word}"


def _status_word(
    table: Table, operation: Operation, status_before: str | None, status: str | None
) -> str:
    if status is None or _STATUS_FORM.fullmatch(status) is None:
        raise ValueError(f"{table}: {status!r} cannot be a word of a subject")
    if operation is Operation.UPDATE:
        if status_before is None:
            raise ValueError(f"{table}: an update came without the row before it")
        if status_before == status:
            return "updated"
    return status


def key_of(table: str, row: Mapping[str, Any]) -> str | None:
    """Return the partition key of a row: the merchant it belongs to, or None."""
    column = _KEYS.get(table, "merchant_id")
    return None if column is None else row.get(column)


def timestamp_text(moment: datetime) -> str:
    """Return the envelope's form of a moment: ISO 8601, UTC, microseconds, `Z`."""
    utc = moment.astimezone(UTC)
    return utc.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


@dataclass(frozen=True, slots=True)
class ChangeEvent:
    """One committed change of one row.

    `position` and `ordinal` place it in the total order, `lsn` is where its own log record starts.
    `before` and `after` map column names to JSON values: money and numeric columns are decimal
    strings, moments are ISO 8601 text in UTC with microseconds, jsonb is text. An insert or
    snapshot has no `before`, a delete no `after`.

    `ends` says that this is the last change of its database transaction; envelopes of version 1 do
    not tell, so it is None there. `backfill` is the number of the backfill that told the row, None
    for a change that happened.
    """

    table: str
    operation: Operation
    subject: str
    position: int
    ordinal: int
    ends: bool | None
    lsn: int
    database_transaction: str
    committed_at: datetime
    captured_at: datetime
    key: str | None
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    backfill: int | None = None

    @property
    def id(self) -> str:
        """The event id's text: message id, unique key and dbt test alike."""
        return str(self.event_id)

    @property
    def event_id(self) -> EventId:
        """The event id as numbers."""
        return EventId(self.position, self.ordinal)

    @property
    def row(self) -> dict[str, Any]:
        """The row as the change left it, or as it was for a delete."""
        row = self.after if self.after is not None else self.before
        if row is None:
            raise ValueError(f"event {self.id} has neither image")
        return row

    @classmethod
    def from_bytes(cls, payload: bytes) -> Self:
        """Read a message's value; `ValueError` where it is not an envelope of a known version."""
        try:
            document = orjson.loads(payload)
            version = document["schema"]
            if version not in (1, SCHEMA_VERSION) or isinstance(version, bool):
                raise ValueError(f"envelope version {version!r} is not known")
            event = cls(
                table=document["table"],
                operation=Operation(document["op"]),
                subject=document["subject"],
                position=document["position"],
                ordinal=document["ordinal"],
                ends=None if version == 1 else document["ends"],
                lsn=document["lsn"],
                database_transaction=document["database_transaction"],
                committed_at=datetime.fromisoformat(document["committed_at"]),
                captured_at=datetime.fromisoformat(document["captured_at"]),
                key=document["key"],
                before=document["before"],
                after=document["after"],
                backfill=None if version == 1 else document["backfill"],
            )
            if document["id"] != event.id:
                raise ValueError(f"id {document['id']!r} is not that of {event.id}")
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a change event: {error!r}") from error
        return event

    def to_bytes(self) -> bytes:
        """Return the message's value: UTF-8 JSON, fields in the schema's order.

        An event that was read from version 1 is written as version 1 again.
        """
        return orjson.dumps(
            {
                "schema": 1 if self.ends is None else SCHEMA_VERSION,
                "id": self.id,
                "table": self.table,
                "op": self.operation,
                "subject": self.subject,
                "position": self.position,
                "ordinal": self.ordinal,
                **({} if self.ends is None else {"ends": self.ends}),
                "lsn": self.lsn,
                "database_transaction": self.database_transaction,
                "committed_at": timestamp_text(self.committed_at),
                "captured_at": timestamp_text(self.captured_at),
                "key": self.key,
                **({} if self.ends is None else {"backfill": self.backfill}),
                "before": self.before,
                "after": self.after,
            }
        )


def header_lines(
    *, event_id: str, position: int, committed_at: str, key: str | None, ends: bool
) -> bytes:
    """Return the headers that go with an event, as NATS writes them, to route without parsing.

    `ValueError` for a key that could not stand in a header.
    """
    return (
        f"{HEADER_EVENT_ID}: {event_id}\r\n"
        f"{HEADER_SCHEMA}: {SCHEMA_VERSION}\r\n"
        f"{HEADER_POSITION}: {position}\r\n"
        f"{HEADER_COMMITTED_AT}: {committed_at}\r\n"
        f"{_key_line(key)}"
        f"{_ENDS_LINE if ends else ''}"
    ).encode()


@lru_cache(maxsize=4096)
def _key_line(key: str | None) -> str:
    if key is not None and _KEY_FORM.fullmatch(key) is None:
        raise ValueError("the partition key cannot stand in a header")
    return f"{HEADER_KEY}: {key or ''}\r\n"
