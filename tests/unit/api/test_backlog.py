"""Paging back to the cursor: nothing skipped, memory bounded."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from api.chain.backlog import read_backlog
from api.chain.model import Cursor, SignatureInfo


@dataclass
class History:
    """An account's history as a node answers it: newest first, in pages."""

    length: int
    asked: list[str | None] = field(default_factory=list)

    async def signatures(
        self, account: str, *, before: str | None, until: str | None, limit: int
    ) -> list[SignatureInfo]:
        assert account == "account"
        self.asked.append(before)
        top = self.length if before is None else int(before)
        bottom = -1 if until is None else int(until)
        return [SignatureInfo(str(n), n, False, True) for n in range(top - 1, bottom, -1)][:limit]

    async def still_known(self, signatures: Sequence[str]) -> set[str]:
        return {signature for signature in signatures if int(signature) < self.length}


@pytest.mark.parametrize("length", [0, 1, 9, 10, 11, 20, 35])
@pytest.mark.parametrize("cursor", [None, 0, 4])
async def test_every_line_after_the_cursor_comes_oldest_first(
    length: int, cursor: int | None
) -> None:
    history = History(length)
    backlog = await read_backlog(
        history,
        "account",
        None if cursor is None else Cursor(str(cursor), cursor),
        page_limit=10,
        keep=1000,
    )
    first = 0 if cursor is None else cursor + 1
    assert [line.slot for line in backlog.lines] == list(range(first, length))
    assert backlog.complete


async def test_of_a_long_backlog_the_oldest_part_is_kept() -> None:
    history = History(100)
    walked: list[int] = []
    cursor: Cursor | None = None
    while True:
        backlog = await read_backlog(history, "account", cursor, page_limit=10, keep=30)
        assert len(backlog.lines) <= 30
        walked += [line.slot for line in backlog.lines]
        if backlog.complete:
            break
        last = backlog.lines[-1]
        cursor = Cursor(last.signature, last.slot)
    assert walked == list(range(100))
