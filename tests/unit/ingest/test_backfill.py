"""What `start` is asked for, and how large chunks are."""

import argparse
from typing import Any

import pytest

from ingest.backfill import scopes
from ingest.contract import Table
from ingest.errors import BackfillRefused
from ingest.gaps import TOLD_TABLES
from ingest.runs import Scope
from ingest.telling import FIRST_CHUNK, LARGEST_CHUNK, TARGET_S, Pace


def asked(**options: Any) -> list[Scope]:
    """Read what `start` was asked for while gaps 3 and 4 are open."""
    unsaid: dict[str, Any] = dict.fromkeys(("table", "range_from", "range_to", "merchant", "gap"))
    arguments = argparse.Namespace(**{**unsaid, "all": False, "deletes": False, **options})
    return scopes(arguments, [3, 4])


def test_every_table_of_the_business_is_told() -> None:
    assert set(TOLD_TABLES) == set(Table) - {Table.CAPTURE_HEARTBEAT, Table.CAPTURE_BACKFILL}


def test_a_table_a_range_or_a_merchant() -> None:
    assert asked(table="payments") == [Scope("payments")]
    assert asked(table="payments", range_from="a", range_to="b", deletes=True) == [
        Scope("payments", "a", "b", None, deletes=True)
    ]
    assert [scope.table for scope in asked(all=True, merchant="mer_1")] == list(TOLD_TABLES)


def test_a_gap_is_closed_by_everything_with_what_is_gone() -> None:
    assert asked(gap=4) == [Scope(table, deletes=True) for table in TOLD_TABLES]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "name one table"),
        ({"table": "payments", "all": True}, "name one table"),
        ({"table": "payments", "gap": 3}, "name one table"),
        ({"all": True, "range_from": "a"}, "of one table"),
        ({"gap": 3, "range_to": "a"}, "of one table"),
        ({"gap": 3, "merchant": "mer_1"}, "whole tables"),
        ({"gap": 5}, r"gap 5 is not open; open are \[3, 4\]"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(BackfillRefused, match=reason):
        asked(**options)


def test_chunks_grow_while_they_are_quick_and_shrink_at_once() -> None:
    pace = Pace()
    assert pace.rows == FIRST_CHUNK
    for _ in range(20):
        pace.took(TARGET_S / 10)
    assert pace.rows == LARGEST_CHUNK
    pace.took(TARGET_S * 0.9)
    assert pace.rows == LARGEST_CHUNK, "what fits stays"
    pace.took(TARGET_S * 2)
    assert pace.rows == LARGEST_CHUNK // 2
    pace.took(TARGET_S * 100)
    assert pace.rows == LARGEST_CHUNK // 8
    for _ in range(20):
        pace.refused()
    assert pace.rows == 1, "a held row is met alone"
