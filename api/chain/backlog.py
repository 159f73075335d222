"""List what happened on a token account since the cursor, oldest first and never with a gap.

The network answers newest first, so every page down to the cursor is read before the oldest is
known. Memory stays bounded: of a long backlog only the oldest part is kept, and the next sweep goes
on from where that ends.
"""

from collections import deque
from dataclasses import dataclass

from api.chain.model import Cursor, SignatureInfo
from api.chain.rpc import ChainReader


@dataclass(frozen=True, slots=True)
class Backlog:
    """Lines of history, oldest first; `complete` where they reach up to the newest."""

    lines: tuple[SignatureInfo, ...]
    complete: bool


async def read_backlog(
    chain: ChainReader, account: str, cursor: Cursor | None, *, page_limit: int, keep: int
) -> Backlog:
    """Return the oldest `keep` lines after the cursor; raises ChainUnavailable."""
    oldest: deque[SignatureInfo] = deque(maxlen=keep)
    listed = 0
    before: str | None = None
    until = None if cursor is None else cursor.signature
    while True:
        page = await chain.signatures(account, before=before, until=until, limit=page_limit)
        oldest.extend(page)
        listed += len(page)
        if len(page) < page_limit:
            return Backlog(tuple(reversed(oldest)), complete=listed <= keep)
        before = page[-1].signature
