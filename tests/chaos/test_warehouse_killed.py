"""The short run of the warehouse's chaos: the same as `python -m tests.chaos streams`, smaller."""

from pathlib import Path

import pytest

from tests.chaos import streams

SEED = 20260215
KILLS = 6


@pytest.mark.timeout(600)
def test_what_is_on_the_stream_is_in_the_tables_whatever_was_killed(postgres_tree: Path) -> None:
    told: list[str] = []
    account = streams.run(KILLS, SEED, streams.SHORT, postgres_tree, told.append)
    assert account.kills == KILLS
    assert account.events == sum(account.rows.values()) > 1000
    assert account.starts > 2, "no worker was ever killed"
