"""From Debezium's JSON to the envelope of the contract.

Cheap on purpose: one parse, the columns that need another form changed in place, one dump. Which
columns those are follows from their names, as the house has them: `*_minor` is money in minor
units, `*_at` is a moment in UTC; the guardian checks the published tables against that. A change
that cannot be told raises `EnvelopeInvalid` and names table and column, never a value.
"""

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson

from ingest import contract
from ingest.contract import EventId, Operation
from ingest.errors import EnvelopeInvalid

MONEY_SUFFIX: Final = "_minor"
MOMENT_SUFFIX: Final = "_at"
_OPERATIONS: Final = {"c": Operation.INSERT, "u": Operation.UPDATE, "d": Operation.DELETE}
_FULL_MOMENT: Final = len("2026-01-31T17:30:00.123456Z")
_MAX_PLANS: Final = 256


class Message(NamedTuple):
    """One event, ready to be published; `headers` are lines as NATS writes them."""

    event_id: EventId
    subject: str
    headers: bytes
    payload: bytes


def utc_text(epoch_us: int) -> str:
    """Return microseconds since 1970 as the envelope writes a moment."""
    seconds, microseconds = divmod(epoch_us, 1_000_000)
    return f"{_second_text(seconds)}.{microseconds:06d}Z"


@lru_cache(maxsize=16)
def _second_text(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def full_moment(text: str) -> str:
    """Return Debezium's shortened moment with all six digits of its fraction."""
    if len(text) == _FULL_MOMENT:
        return text
    whole, _, fraction = text.removesuffix("Z").partition(".")
    if not text.endswith("Z") or len(whole) != len("2026-01-31T17:30:00") or len(fraction) > 6:
        raise ValueError("not a moment in UTC")
    return f"{whole}.{fraction:0<6}Z"


class EnvelopeWriter:
    """Writes envelopes; remembers per table shape which columns change form.

    `unchanged` is the text that Debezium puts where PostgreSQL logged nothing, because a large
    value did not change; it never leaves this class.
    """

    def __init__(self, unchanged: str, clock_us: Callable[[], int]) -> None:
        self._unchanged = unchanged
        self._clock_us = clock_us
        self._plans: dict[tuple[str, ...], tuple[tuple[str, ...], tuple[str, ...]]] = {}

    def message(self, event_id: EventId, record: dict[str, Any]) -> Message:
        """Return the message for one data change record of Debezium's, parsed from JSON."""
        source = record["source"]
        table: str = source["table"]
        operation = _OPERATIONS.get(record["op"])
        if operation is None:
            raise EnvelopeInvalid(f"table {table}: operation {record['op']!r} is not captured")
        identity = str(event_id)
        before: dict[str, Any] | None = record["before"]
        after: dict[str, Any] | None = record["after"]
        try:
            if before is not None:
                self._rewrite(before)
            if after is not None:
                self._rewrite(after)
                self._restore(table, before, after)
            row = after if after is not None else before or {}
            key = contract.key_of(table, row)
            subject = contract.subject_for(
                table, operation, before.get("status") if before else None, row.get("status")
            )
            committed_at = utc_text(source["ts_us"])
            headers = contract.header_lines(
                event_id=identity, position=event_id.position, committed_at=committed_at, key=key
            )
        except ValueError as error:
            raise EnvelopeInvalid(f"change {event_id} of table {table}: {error}") from error
        payload = orjson.dumps(
            {
                "schema": contract.SCHEMA_VERSION,
                "id": identity,
                "table": table,
                "op": operation,
                "subject": subject,
                "position": event_id.position,
                "ordinal": event_id.ordinal,
                "lsn": source["lsn"],
                "database_transaction": str(source["txId"]),
                "committed_at": committed_at,
                "captured_at": utc_text(self._clock_us()),
                "key": key,
                "before": before,
                "after": after,
            }
        )
        return Message(event_id, subject, headers, payload)

    def _rewrite(self, row: dict[str, Any]) -> None:
        shape = tuple(row)
        plan = self._plans.get(shape)
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[shape] = (
                tuple(name for name in shape if name.endswith(MONEY_SUFFIX)),
                tuple(name for name in shape if name.endswith(MOMENT_SUFFIX)),
            )
        money, moments = plan
        for name in money:
            value = row[name]
            if value is not None:
                row[name] = str(value)
        for name in moments:
            value = row[name]
            if value is not None and len(value) != _FULL_MOMENT:
                try:
                    row[name] = full_moment(value)
                except ValueError as error:
                    raise ValueError(f"column {name}: {error}") from error

    def _restore(self, table: str, before: dict[str, Any] | None, after: dict[str, Any]) -> None:
        if self._unchanged not in after.values():
            return
        for name, value in after.items():
            if value != self._unchanged:
                continue
            if before is None:
                raise ValueError(
                    f"column {name} did not change and is not in the log; "
                    f"ALTER TABLE {table} REPLICA IDENTITY FULL"
                )
            after[name] = before[name]
