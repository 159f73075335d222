"""List what happened on a token account since the cursor, oldest first and never with a gap.

The network answers newest first, so every page down to the cursor is read before the oldest is
known. Memory stays bounded: of a long backlog only the oldest part is kept, and the next sweep goes
on from where that ends. Of several lists of the same account the union counts: a line that one
provider drops is there where another has it.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from api.chain.model import Cursor, SignatureInfo
from api.errors import ChainUnavailable


@dataclass(frozen=True, slots=True)
class Backlog:
    """Lines of history, oldest first; `complete` where they reach up to the newest."""

    lines: tuple[SignatureInfo, ...]
    complete: bool


class Histories(Protocol):
    """Whoever tells the histories of accounts."""

    async def signatures(
        self, account: str, *, before: str | None, until: str | None, limit: int
    ) -> list[SignatureInfo]:
        """See `api.chain.interface.Chain.signatures`."""
        ...

    async def still_known(self, signatures: Sequence[str]) -> set[str]:
        """See `api.chain.interface.Chain.still_known`."""
        ...


async def read_backlog(
    chain: Histories, account: str, cursor: Cursor | None, *, page_limit: int, keep: int
) -> Backlog:
    """Return the oldest `keep` lines after the cursor; raises ChainUnavailable."""
    oldest: deque[SignatureInfo] = deque(maxlen=keep)
    listed = 0
    before: str | None = None
    until = None if cursor is None else cursor.signature
    # A node that never heard of the cursor's signature would tell everything there ever was.
    floor = -1 if cursor is None else cursor.slot
    while True:
        page = await chain.signatures(account, before=before, until=until, limit=page_limit)
        if not page and before is not None and not await chain.still_known([before]):
            # The fork that the page ended on is gone, and a node cannot go on from there.
            raise ChainUnavailable("the history changed while it was read")
        new = [line for line in page if line.slot >= floor]
        oldest.extend(new)
        listed += len(new)
        if len(new) < page_limit:
            return Backlog(tuple(reversed(oldest)), complete=listed <= keep)
        before = page[-1].signature


def unite(backlogs: Sequence[Backlog], *, of: int, keep: int) -> Backlog:
    """Return the lines that any of the lists has; complete where `of` lists came, all complete.

    A line is final where all have it as final, and failed where all that have it say so. Within a
    slot the order is that of the first list; what only a later one has comes behind.
    """
    merged: dict[str, list[SignatureInfo]] = {}
    for backlog in backlogs:
        for line in backlog.lines:
            merged.setdefault(line.signature, []).append(line)
    lines = sorted(
        (
            SignatureInfo(
                signature=signature,
                slot=max(line.slot for line in told),
                failed=all(line.failed for line in told),
                finalized=len(told) == of and all(line.finalized for line in told),
            )
            for signature, told in merged.items()
        ),
        key=lambda line: line.slot,
    )
    # Each list of a long history ends where its oldest part ends. So must the union, or a line that
    # only one of them has would be passed over by the cursor.
    ends = [backlog.lines[-1].slot for backlog in backlogs if not backlog.complete]
    if ends:
        lines = [line for line in lines if line.slot <= min(ends)]
    return Backlog(
        tuple(lines[:keep]),
        complete=len(backlogs) == of and not ends and len(lines) <= keep,
    )
