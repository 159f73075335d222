"""The short run of capture's chaos: the same as `python -m tests.chaos capture`, smaller."""

from pathlib import Path

import pytest

from tests.chaos import capture

SEED = 20260214
KILLS = 8


@pytest.mark.timeout(900)
def test_what_was_committed_is_on_the_stream_whatever_was_killed(postgres_tree: Path) -> None:
    told: list[str] = []
    account = capture.run(KILLS, SEED, capture.SHORT, postgres_tree, told.append)
    assert account.kills == KILLS
    assert account.changes == sum(account.counts.values()) > 1000
    assert account.lost_connections > 0 or not account.faults["PostgreSQL killed"]
    assert {"payments", "ledger_entries", "ledger_postings"} <= account.checksums.keys()
