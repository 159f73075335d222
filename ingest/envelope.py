"""From Debezium's JSON to the envelope of the contract.

Cheap on purpose: one parse, the columns that need another form changed in place, one dump. Which
columns those are follows from their names, as the house has them: `*_minor` is money in minor
units, `*_at` is a moment in UTC; `ingest.columns` holds the published tables against that. The
shape of a table's rows is looked at when it is first seen: without a column that a reader needs
nothing more of that table is told. A change that cannot be told raises `EnvelopeInvalid` and names
table and column, never a value.
"""

import base64
import re
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson

from ingest import contract
from ingest.columns import MOMENT_SUFFIX, MONEY_SUFFIX, NEEDED, Family, missing
from ingest.contract import EventId, Operation, Table
from ingest.errors import EnvelopeInvalid
from ingest.masking import NO_MASKS, Mask, Masks, hashed_already

_OPERATIONS: Final = {"c": Operation.INSERT, "u": Operation.UPDATE, "d": Operation.DELETE}
_TOLD_AGAIN: Final = {"snapshot": Operation.SNAPSHOT, "delete": Operation.DELETE}
_TOLD_TABLES: Final = frozenset(Table) - {Table.CAPTURE_BACKFILL, Table.CAPTURE_HEARTBEAT}
_BACKFILL: Final = Table.CAPTURE_BACKFILL.value
_INSERT: Final = Operation.INSERT
_CLASSES: Final[Mapping[Family, type]] = {
    Family.TEXT: str,
    Family.INTEGER: int,
    Family.BOOLEAN: bool,
}
_FULL_MOMENT: Final = len("2026-01-31T17:30:00.123456Z")
_MINOR_UNITS: Final = re.compile(r"-?[0-9]+")
_MAX_PLANS: Final = 256


class Message(NamedTuple):
    """One event, ready to be published; `headers` are lines as NATS writes them."""

    event_id: EventId
    subject: str
    headers: bytes
    payload: bytes


class _Plan(NamedTuple):
    """What is done with the rows of one shape."""

    money: tuple[str, ...]
    moments: tuple[str, ...]
    needed: tuple[tuple[str, type], ...]
    masks: tuple[tuple[str, Mask], ...]


_Image = dict[str, Any] | None
_Change = tuple[str, Operation, _Image, _Image, int | None]
"""A change as it is told, also where a backfill carries it: table, operation, images, backfill."""


def utc_text(epoch_us: int) -> str:
    """Return microseconds since 1970 as the envelope writes a moment."""
    seconds, microseconds = divmod(epoch_us, 1_000_000)
    return f"{_second_text(seconds)}.{microseconds:06d}Z"


@lru_cache(maxsize=16)
def _second_text(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


# All changes of a database transaction were committed at one moment.
_commit_text: Final = lru_cache(maxsize=16)(utc_text)


def full_moment(text: str) -> str:
    """Return Debezium's shortened moment with all six digits of its fraction."""
    if len(text) == _FULL_MOMENT:
        return text
    whole, _, fraction = text.removesuffix("Z").partition(".")
    if not text.endswith("Z") or len(whole) != len("2026-01-31T17:30:00") or len(fraction) > 6:
        raise ValueError("not a moment in UTC")
    return f"{whole}.{fraction:0<6}Z"


class EnvelopeWriter:
    """Writes envelopes; remembers, for each shape of a table's rows, what is to be done with it.

    `unchanged` is the text that Debezium puts where PostgreSQL logged nothing, because a large
    value did not change; it never leaves this class.
    """

    def __init__(
        self, unchanged: str, clock_us: Callable[[], int], masks: Masks = NO_MASKS
    ) -> None:
        self._unchanged = _Unchanged(unchanged)
        self._clock_us = clock_us
        self._masks = masks
        self._plans: dict[tuple[str, ...], _Plan] = {}

    def message(self, event_id: EventId, record: dict[str, Any], *, ends: bool) -> Message:
        """Return the message for one data change record of Debezium's, parsed from JSON.

        `ends` says that no other change of its database transaction follows. The record's images
        are changed in place.
        """
        table = record["source"]["table"]
        try:
            change = (
                self._read_told_again(record) if table == _BACKFILL else self._read(table, record)
            )
            return self._write(event_id, record["source"], change, ends=ends)
        except ValueError as error:
            raise EnvelopeInvalid(f"change {event_id} of table {table}: {error}") from error

    def _write(
        self, event_id: EventId, source: dict[str, Any], change: _Change, *, ends: bool
    ) -> Message:
        table, operation, before, after, backfill = change
        row = after if after is not None else before or {}
        key = contract.key_of(table, row)
        subject = contract.subject_for(
            table, operation, before.get("status") if before else None, row.get("status")
        )
        identity = str(event_id)
        committed_at = _commit_text(source["ts_us"])
        headers = contract.header_lines(
            event_id=identity,
            position=event_id.position,
            committed_at=committed_at,
            key=key,
            ends=ends,
        )
        document = {
            "schema": contract.SCHEMA_VERSION,
            "id": identity,
            "table": table,
            "op": operation,
            "subject": subject,
            "position": event_id.position,
            "ordinal": event_id.ordinal,
            "ends": ends,
            "lsn": source["lsn"],
            "database_transaction": str(source["txId"]),
            "committed_at": committed_at,
            "captured_at": utc_text(self._clock_us()),
            "key": key,
            "backfill": backfill,
            "before": before,
            "after": after,
        }
        payload = orjson.dumps(document)
        # PostgreSQL logs an insertion whole, so only the others are looked through.
        if operation is not _INSERT and self._unchanged.is_in(payload):
            payload = self._unchanged.restored(table, document)
        return Message(event_id, subject, headers, payload)

    def _read(self, table: str, record: dict[str, Any]) -> _Change:
        """Return what a record tells, its images in the envelope's form."""
        operation = _OPERATIONS.get(record["op"])
        if operation is None:
            raise ValueError(f"operation {record['op']!r} is not captured")
        before: _Image = record["before"]
        after: _Image = record["after"]
        row = after if after is not None else before
        if row is not None:
            plan = self._plan(table, row)
            self._rewrite(plan, row)
            if before is not None and before is not row:
                # Both images have one shape: the engine's record has one for both.
                self._rewrite(plan, before)
            _verify_needed(plan, row)
        return table, operation, before, after, None

    def _read_told_again(self, record: dict[str, Any]) -> _Change:
        row = record["after"]
        if record["op"] != "c":
            raise ValueError("only insertions tell anything")
        operation = _TOLD_AGAIN.get(row["operation"])
        table = row["table_name"]
        if operation is None or table not in _TOLD_TABLES:
            raise ValueError("a row is told again by an operation or of a table that is not known")
        image = _parsed_image(row["image"])
        if operation is Operation.SNAPSHOT:
            plan = self._plan(table, image)
            self._rewrite(plan, image)
            _verify_needed(plan, image)
            return table, operation, None, image, row["run"]
        # The image of a row that is gone comes from the stream: masked as it was told, and in the
        # shape that its table had then.
        for name, mask in self._masks.get(table, {}).items():
            value = image.get(name)
            if value is not None and not hashed_already(value):
                image[name] = mask(value)
        return table, operation, image, None, row["run"]

    def _rewrite(self, plan: _Plan, row: dict[str, Any]) -> None:
        for name in plan.money:
            value = row[name]
            if value.__class__ is int:
                row[name] = str(value)
            elif value is not None and not _is_minor_units(value):
                raise ValueError(f"column {name}: not an integer of minor units")
        for name in plan.moments:
            value = row[name]
            if value is not None and (value.__class__ is not str or len(value) != _FULL_MOMENT):
                row[name] = _moment(name, value)
        for name, mask in plan.masks:
            value = row[name]
            if value is not None and value != self._unchanged.text:
                row[name] = mask(value)

    def _plan(self, table: str, row: dict[str, Any]) -> _Plan:
        shape = (table, *row)
        plan = self._plans.get(shape)
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[shape] = self._new_plan(table, shape[1:])
        return plan

    def _new_plan(self, table: str, shape: tuple[str, ...]) -> _Plan:
        """Look at a shape; `ValueError` where a reader would miss a column."""
        needs = NEEDED[Table(table)]
        if absent := [name for name in needs if name not in shape]:
            raise ValueError(
                f"{'; '.join(missing(table, name) for name in absent)}. Nothing is lost: capture "
                "goes on from here once these readers and ingest/columns.py do without"
            )
        masks = self._masks.get(table, {})
        if hidden := [name for name in masks if name not in shape]:
            raise ValueError(
                f"GIOVANG_INGEST_MASK names {table}.{', '.join(hidden)}, which is missing: under "
                "another name it would leave unmasked"
            )
        return _Plan(
            money=tuple(name for name in shape if name.endswith(MONEY_SUFFIX)),
            moments=tuple(name for name in shape if name.endswith(MOMENT_SUFFIX)),
            needed=tuple(
                (name, _CLASSES[need.family])
                for name, need in needs.items()
                if need.family in _CLASSES
            ),
            masks=tuple(masks.items()),
        )


def _verify_needed(plan: _Plan, row: dict[str, Any]) -> None:
    """Raise `ValueError` where a column that a reader needs is of another type now."""
    for name, kind in plan.needed:
        value = row[name]
        if value.__class__ is not kind and value is not None:
            raise ValueError(f"column {name} holds {type(value).__name__}, not {kind.__name__}")


def _is_minor_units(value: object) -> bool:
    return isinstance(value, str) and _MINOR_UNITS.fullmatch(value) is not None


def _moment(name: str, value: object) -> str:
    try:
        return full_moment(value if isinstance(value, str) else "")
    except ValueError as error:
        raise ValueError(f"column {name}: {error}") from error


def _parsed_image(text: str) -> dict[str, Any]:
    try:
        image = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ValueError("column image: not JSON") from error
    if isinstance(image, dict):
        return image
    raise ValueError("column image: not a row")


class _Unchanged:
    """The forms in which Debezium says that a large value is not in the log, by the column's type.

    Looked for in the finished message, where none of them can hide.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        raw = text.encode()
        encoded = base64.b64encode(raw).decode()
        self._forms: tuple[Any, ...] = (text, encoded, [text], [encoded], list(raw))
        self._marks = (raw, encoded.encode(), orjson.dumps(list(raw))[1:-1])

    def is_in(self, payload: bytes) -> bool:
        """Say whether a message holds one."""
        first, second, third = self._marks
        return first in payload or second in payload or third in payload

    def restored(self, table: str, document: dict[str, Any]) -> bytes:
        """Return the message with the values that the row before the change has."""
        before, after = document["before"], document["after"] or {}
        for name in [name for name, value in after.items() if value in self._forms]:
            if before is None:
                raise ValueError(
                    f"column {name} did not change and is not in the log; "
                    f"ALTER TABLE {table} REPLICA IDENTITY FULL"
                )
            after[name] = before[name]
        payload = orjson.dumps(document)
        if self.is_in(payload):
            raise ValueError("a value that is not in the log stands where none can be")
        return payload
