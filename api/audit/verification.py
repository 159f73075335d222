"""Verify the audit trail: recompute every digest and name the first row that was tampered with.

The rows stream through in pages, so memory stays bounded however long the trail is. Each row is
digested here, from its columns; each link must follow from the one before; each row below the
chain's complete id must have a link. Rows whose year was taken to the archive are checked as far as
they are here: by their links. Nothing is written. Raises DatabaseUnavailable.

What this cannot see alone: that somebody with all rights wrote rows and chain anew from some point
on. That is what a head kept elsewhere is for.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from api.audit import store
from api.audit.model import (
    NO_LINK,
    Finding,
    Flaw,
    Head,
    Link,
    Verification,
    chain_digest,
    row_digest,
)
from api.database import Database, Identity

PAGE_ROWS: Final = 1000
# A year goes to the archive once its last row is two years old.
_YEARS_KEPT: Final = 2
_BELOW_ALL_IDS: Final = -(2**63)
_ALWAYS: Final = datetime(1970, 1, 1, tzinfo=UTC)
_VERIFIER: Final = Identity("verifier")

Progress = Callable[[int, int], None]


async def verify(
    database: Database,
    *,
    since: datetime | None = None,
    expected_head: bytes | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Verify all rows, or those from `since` on; `expected_head` must be a link of the chain.

    `progress` is told, page after page, how many links of how many were looked at.
    """
    return await _Walk(database, since, progress).run(expected_head)


class _Walk:
    """One verification on its way through the trail."""

    def __init__(
        self, database: Database, since: datetime | None, progress: Progress | None
    ) -> None:
        self._database = database
        self._since = since
        self._progress = progress
        self._found = Verification()
        self._years: set[int] = set()
        self._archived_before = 0

    async def run(self, expected_head: bytes | None) -> Verification:
        async with self._database.unit_of_work(_VERIFIER) as unit:
            head = await store.head(unit)
            self._years = await store.years(unit)
            self._archived_before = (await unit.now()).year - _YEARS_KEPT
            first = 1 if self._since is None else await store.first_since(unit, self._since)
            before = NO_LINK if first == 1 else await store.chain_digest_at(unit, first - 1)
        if before is None:
            self._found.note(Finding(Flaw.LINK_REMOVED, seq=first - 1))
        else:
            self._found.head_seq, self._found.head_digest = first - 1, before.hex()
        await self._walk_chain(head, first, before)
        await self._walk_rows(head)
        if expected_head is not None:
            await self._look_for(expected_head)
        return self._found

    async def _walk_chain(self, head: Head, first: int, before: bytes | None) -> None:
        """Check each link against the one before it and against its row."""
        found, expected_seq = self._found, first
        self._tell(0, head.seq - first + 1)
        while expected_seq <= head.seq:
            async with self._database.unit_of_work(_VERIFIER) as unit:
                page = await store.links(
                    unit, after=expected_seq - 1, through=head.seq, most=PAGE_ROWS
                )
            for linked in page:
                link = linked.link
                if link.seq > expected_seq:
                    self._miss(expected_seq, link.seq)
                    before = None
                self._check(linked, before)
                before, expected_seq = link.chain_digest, link.seq + 1
                found.head_seq, found.head_digest = link.seq, link.chain_digest.hex()
                found.sealed_through = link.event_time
            if not page:
                self._miss(expected_seq, head.seq + 1)
                expected_seq, before = head.seq + 1, None
            self._tell(expected_seq - first, head.seq - first + 1)
        if head.last_seq > head.seq or (before is not None and before != head.chain_digest):
            found.note(Finding(Flaw.HEAD_CHANGED, seq=head.seq, digest=head.chain_digest.hex()))

    def _tell(self, done: int, of: int) -> None:
        if self._progress is not None:
            self._progress(done, of)

    def _miss(self, from_seq: int, to_seq: int) -> None:
        self._found.note(Finding(Flaw.LINK_REMOVED, seq=from_seq), times=to_seq - from_seq)

    def _check(self, linked: store.LinkedRow, before: bytes | None) -> None:
        link, row = linked.link, linked.row
        if before is not None and chain_digest(before, link.row_digest) != link.chain_digest:
            self._found.note(_named(Flaw.LINK_CHANGED, link))
        if row is None:
            if self._is_archived(link.event_time):
                self._found.archived += 1
            else:
                self._found.note(_named(Flaw.ROW_REMOVED, link))
        elif row_digest(row) != link.row_digest:
            self._found.note(_named(Flaw.ROW_CHANGED, link))
        else:
            self._found.verified += 1

    def _is_archived(self, moment: datetime) -> bool:
        year = moment.astimezone(UTC).year
        return year not in self._years and year < self._archived_before

    async def _walk_rows(self, head: Head) -> None:
        """Find rows without a link: those behind the chain's end wait, others do not belong."""
        after = _BELOW_ALL_IDS
        while True:
            async with self._database.unit_of_work(_VERIFIER) as unit:
                page = await store.marks(
                    unit, after=after, since=self._since or _ALWAYS, most=PAGE_ROWS
                )
                # Read after the rows: none of them can have got a greater one.
                last_id_given = await store.last_id_given(unit)
            for mark in page:
                if mark.linked:
                    continue
                if head.complete_id < mark.id <= last_id_given:
                    self._found.waiting += 1
                else:
                    self._found.note(
                        Finding(Flaw.ROW_INSERTED, log_id=mark.id, event_time=mark.event_time)
                    )
            if len(page) < PAGE_ROWS:
                return
            after = page[-1].id

    async def _look_for(self, digest: bytes) -> None:
        if digest == NO_LINK:
            self._found.expected_head_seq = 0
            return
        async with self._database.unit_of_work(_VERIFIER) as unit:
            self._found.expected_head_seq = await store.seq_of_digest(unit, digest)
        if self._found.expected_head_seq is None:
            self._found.note(Finding(Flaw.HEAD_UNKNOWN, digest=digest.hex()))


def _named(flaw: Flaw, link: Link) -> Finding:
    return Finding(flaw, log_id=link.log_id, event_time=link.event_time, seq=link.seq)
