"""What the audit trail's chain is made of: rows, links, and what a verification can find.

The digest of a row is computed here a second time, from its columns and by code that PostgreSQL
does not run, so that the database is not its own witness. Migration 110 describes the text.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

NO_LINK: Final = hashlib.sha256(b"").digest()
_VERSION: Final = "giovang-audit-1"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A row of the trail; `before` and `after` as PostgreSQL writes jsonb."""

    id: int
    event_time: datetime
    actor: str
    action: str
    subject_type: str
    subject_id: str
    merchant_id: str | None
    request_id: str | None
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Link:
    """One link of the chain: which row, its digest, and the digest of all up to here."""

    seq: int
    log_id: int
    event_time: datetime
    row_digest: bytes
    chain_digest: bytes


@dataclass(frozen=True, slots=True)
class Head:
    """Where the chain should end, and the last link there is; rows to `complete_id` are linked."""

    seq: int
    chain_digest: bytes
    complete_id: int
    last_seq: int


class Flaw(StrEnum):
    """What can be wrong with a row or its link."""

    ROW_CHANGED = "row_changed"
    ROW_REMOVED = "row_removed"
    ROW_INSERTED = "row_inserted"
    LINK_CHANGED = "link_changed"
    LINK_REMOVED = "link_removed"
    HEAD_CHANGED = "head_changed"
    HEAD_UNKNOWN = "head_unknown"


_ROW_MEANING: Final[dict[Flaw, str]] = {
    Flaw.ROW_CHANGED: "was changed after it was sealed",
    Flaw.ROW_REMOVED: "was removed after it was sealed",
    Flaw.ROW_INSERTED: "has no link, though the chain is past it: it was inserted by hand",
    Flaw.LINK_CHANGED: "has a link that was changed",
}
_CHAIN_MEANING: Final[dict[Flaw, str]] = {
    Flaw.LINK_REMOVED: "was removed from the chain",
    Flaw.HEAD_CHANGED: "is not what the chain's last link says",
    Flaw.HEAD_UNKNOWN: "stands nowhere in the chain: what it sealed was written anew",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong, with what names it: audit row, moment, link, or digest."""

    flaw: Flaw
    log_id: int | None = None
    event_time: datetime | None = None
    seq: int | None = None
    digest: str | None = None

    def sentence(self) -> str:
        """Say it in one sentence."""
        if self.flaw in _CHAIN_MEANING:
            subject = f"the head {self.digest}" if self.digest else f"link {self.seq}"
            return f"{subject} {_CHAIN_MEANING[self.flaw]}"
        moment = "" if self.event_time is None else f" of {self.event_time:%Y-%m-%d %H:%M:%S.%f}Z"
        place = "" if self.seq is None else f" (link {self.seq})"
        return f"audit row {self.log_id}{moment}{place} {_ROW_MEANING[self.flaw]}"


@dataclass(slots=True)
class Verification:
    """What a verification saw: counts of rows, the head it computed, and what is wrong."""

    verified: int = 0
    archived: int = 0
    waiting: int = 0
    head_seq: int = 0
    head_digest: str = NO_LINK.hex()
    sealed_through: datetime | None = None
    expected_head_seq: int | None = None
    flaws: int = 0
    first: Finding | None = None
    by_flaw: dict[str, int] = field(default_factory=dict)

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong."""
        return self.flaws == 0

    def note(self, finding: Finding, *, times: int = 1) -> None:
        """Count a flaw; the one of the oldest row is kept by name, one of the chain if no row's."""
        self.flaws += times
        self.by_flaw[finding.flaw] = self.by_flaw.get(finding.flaw, 0) + times
        if self.first is None or _place(finding) < _place(self.first):
            self.first = finding


def row_digest(row: AuditRow) -> bytes:
    """Return the SHA-256 of a row's canonical text, 32 bytes."""
    fields: Iterable[str | None] = (
        str(row.id),
        str((row.event_time - _EPOCH) // timedelta(microseconds=1)),
        row.actor,
        row.action,
        row.subject_type,
        row.subject_id,
        row.merchant_id,
        row.request_id,
        row.before,
        row.after,
    )
    text = ",".join((_VERSION, *(_measured(value) for value in fields)))
    return hashlib.sha256(text.encode()).digest()


def chain_digest(before: bytes, digest: bytes) -> bytes:
    """Return the digest of a link from that of the link before it and that of its row."""
    return hashlib.sha256(before + digest).digest()


def _measured(value: str | None) -> str:
    return "-" if value is None else f"{len(value.encode())}:{value}"


def _place(finding: Finding) -> float:
    return float("inf") if finding.log_id is None else finding.log_id
