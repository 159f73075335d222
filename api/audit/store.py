"""The SQL of the audit trail: recording, sealing, and reading it back in bounded pages."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString

from psycopg.types.json import Jsonb

from api.audit.model import AuditRow, Head, Link
from api.database import Unit

_RECORD: Final[LiteralString] = """
    SELECT audit_record(%(action)s, %(subject_type)s, %(subject_id)s, %(after)s)
"""
_SEAL: Final[LiteralString] = "SELECT linked, more FROM audit_seal(%(most)s)"

_HEAD: Final[LiteralString] = """
    SELECT seq, chain_digest, complete_id,
           (SELECT coalesce(max(seq), 0) FROM audit_chain) AS last_seq
    FROM audit_chain_head
"""
_LAST_ID_GIVEN: Final[LiteralString] = "SELECT last_value FROM audit_logs_id_seq"
_FIRST_SINCE: Final[LiteralString] = """
    SELECT coalesce(min(seq), (SELECT seq + 1 FROM audit_chain_head))
    FROM audit_chain WHERE event_time >= %(since)s
"""
_CHAIN_DIGEST: Final[LiteralString] = "SELECT chain_digest FROM audit_chain WHERE seq = %(seq)s"
_SEQ_OF_DIGEST: Final[LiteralString] = """
    SELECT seq FROM audit_chain WHERE chain_digest = %(digest)s
"""
# The event's time leads each look-up into the one partition that can hold the row.
_LINKS: Final[LiteralString] = """
    SELECT link.seq, link.log_id, link.event_time, link.row_digest, link.chain_digest,
           log.id, log.actor, log.action, log.subject_type, log.subject_id, log.merchant_id,
           log.request_id, log.before::text AS before, log.after::text AS after
    FROM (SELECT * FROM audit_chain
          WHERE seq > %(after)s AND seq <= %(through)s
          ORDER BY seq LIMIT %(most)s) AS link
    LEFT JOIN LATERAL (
        SELECT * FROM audit_logs
        WHERE id = link.log_id AND event_time = link.event_time) AS log ON true
    ORDER BY link.seq
"""
_MARKS: Final[LiteralString] = """
    SELECT log.id, log.event_time, link.seq IS NOT NULL AS linked
    FROM (SELECT id, event_time FROM audit_logs
          WHERE id > %(after)s AND event_time >= %(since)s
          ORDER BY id LIMIT %(most)s) AS log
    LEFT JOIN audit_chain AS link ON link.log_id = log.id AND link.event_time = log.event_time
    ORDER BY log.id
"""
_YEARS: Final[LiteralString] = """
    SELECT right(child.relname, 4)::int AS year
    FROM pg_inherits JOIN pg_class AS child ON child.oid = inhrelid
    WHERE inhparent = 'public.audit_logs'::regclass
"""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What one step of sealing did."""

    linked: int
    more: bool


@dataclass(frozen=True, slots=True)
class LinkedRow:
    """A link and its row as they stand, the row None where there is none."""

    link: Link
    row: AuditRow | None


@dataclass(frozen=True, slots=True)
class RowMark:
    """A row of the trail by name, and whether a link names it."""

    id: int
    event_time: datetime
    linked: bool


@dataclass(frozen=True, slots=True)
class _Joined:
    seq: int
    log_id: int
    event_time: datetime
    row_digest: bytes
    chain_digest: bytes
    id: int | None
    actor: str
    action: str
    subject_type: str
    subject_id: str
    merchant_id: str | None
    request_id: str | None
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class _Year:
    year: int


async def record(
    unit: Unit, *, action: str, subject_type: str, subject_id: str, after: dict[str, Any] | None
) -> None:
    """Write an audit row in the unit of work, signed with its identity."""
    await unit.run(
        _RECORD,
        {
            "action": action,
            "subject_type": subject_type,
            "subject_id": subject_id,
            "after": None if after is None else Jsonb(after),
        },
    )


async def seal(unit: Unit, *, most: int) -> Sealed:
    """Link at most `most` new rows and `most` late ones."""
    return await unit.one(Sealed, _SEAL, {"most": most})


async def head(unit: Unit) -> Head:
    """Return where the chain ends."""
    return await unit.one(Head, _HEAD, {})


async def first_since(unit: Unit, since: datetime) -> int:
    """Return the place of the first link whose row is of this moment or later."""
    seq: int = await unit.value(_FIRST_SINCE, {"since": since})
    return seq


async def chain_digest_at(unit: Unit, seq: int) -> bytes | None:
    """Return the chained digest of a link."""
    digest: bytes | None = await unit.value(_CHAIN_DIGEST, {"seq": seq})
    return digest


async def seq_of_digest(unit: Unit, digest: bytes) -> int | None:
    """Return the place of the link with this chained digest; reads the whole chain."""
    seq: int | None = await unit.value(_SEQ_OF_DIGEST, {"digest": digest})
    return seq


async def links(unit: Unit, *, after: int, through: int, most: int) -> list[LinkedRow]:
    """Return the next links with their rows, in the order of the chain."""
    found = await unit.all(_Joined, _LINKS, {"after": after, "through": through, "most": most})
    return [LinkedRow(_link(one), _row(one)) for one in found]


async def marks(unit: Unit, *, after: int, since: datetime, most: int) -> list[RowMark]:
    """Return the next rows of the trail by name, in the order of ids."""
    return await unit.all(RowMark, _MARKS, {"after": after, "since": since, "most": most})


async def last_id_given(unit: Unit) -> int:
    """Return the greatest id that the trail has given to a row, by now."""
    last: int = await unit.value(_LAST_ID_GIVEN, {})
    return last


async def years(unit: Unit) -> set[int]:
    """Return the years whose rows are here."""
    return {found.year for found in await unit.all(_Year, _YEARS, {})}


def _link(one: _Joined) -> Link:
    return Link(one.seq, one.log_id, one.event_time, one.row_digest, one.chain_digest)


def _row(one: _Joined) -> AuditRow | None:
    if one.id is None:
        return None
    return AuditRow(
        id=one.id,
        event_time=one.event_time,
        actor=one.actor,
        action=one.action,
        subject_type=one.subject_type,
        subject_id=one.subject_id,
        merchant_id=one.merchant_id,
        request_id=one.request_id,
        before=one.before,
        after=one.after,
    )
