"""Which changes of tables a commit takes: of finished events, in order, of each all or none."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from faust.types import TP, FutureMessage

from streams.transport.batch import MAX_BATCH_MESSAGES, Write
from streams.transport.changes import Change, Changes, writes
from streams.transport.errors import TooManyChangesError

ONE, TWO, TABLE = TP("a", 0), TP("b", 0), TP("table", 0)


def changes(*entries: tuple[TP | None, int, str]) -> Changes:
    """Return the changes of keys by events, in order."""
    made = Changes(cast("Any", SimpleNamespace()))
    made._waiting = [
        Change(source, offset, TABLE, Write(key, b"%d" % number), cast("FutureMessage", None))
        for number, (source, offset, key) in enumerate(entries)
    ]
    return made


def keys(chosen: list[Change]) -> list[str]:
    return [each.write.subject for each in chosen]


def test_finished_events_are_committed_with_their_changes() -> None:
    chosen, cuts = changes((ONE, 5, "x"), (ONE, 9, "y")).choose({ONE: 10}, {ONE: 5})
    assert (keys(chosen), cuts) == (["x", "y"], {ONE: 10})


def test_of_each_key_the_last_value_is_stored() -> None:
    chosen, _ = changes((ONE, 5, "x"), (ONE, 6, "y"), (ONE, 7, "x")).choose({ONE: 8}, {ONE: 5})
    assert [(each.subject, each.payload) for each in writes(chosen)] == [("x", b"2"), ("y", b"1")]


def test_an_unfinished_event_stores_nothing() -> None:
    chosen, cuts = changes((ONE, 5, "x"), (ONE, 6, "y")).choose({ONE: 6}, {ONE: 5})
    assert (keys(chosen), cuts) == (["x"], {ONE: 6})
    assert changes((ONE, 5, "x")).choose({}, {ONE: 5}) == ([], {})
    assert changes((ONE, 5, "x")).choose({}, {ONE: None}) == ([], {})


def test_a_change_behind_an_unfinished_one_waits_and_so_does_its_event() -> None:
    # The event of TWO may have read what the unfinished one of ONE wrote.
    waiting = changes((TWO, 3, "v"), (ONE, 5, "x"), (TWO, 4, "x"))
    chosen, cuts = waiting.choose({TWO: 5}, {ONE: 5, TWO: 3})
    assert (keys(chosen), cuts) == (["v"], {TWO: 4})
    overtaken = changes((ONE, 6, "x"), (ONE, 5, "x"))  # by a second agent, which is not done
    assert overtaken.choose({ONE: 6}, {ONE: 5}) == ([], {})
    chosen, cuts = changes((ONE, 5, "x"), (TWO, 3, "x")).choose({TWO: 4}, {ONE: 5, TWO: 3})
    assert (chosen, cuts) == ([], {})


def test_no_event_is_divided() -> None:
    # Events that took turns: what ONE did first may not be stored without what it did last.
    waiting = changes((ONE, 5, "x"), (TWO, 3, "y"), (ONE, 5, "z"))
    chosen, cuts = waiting.choose({ONE: 6}, {ONE: 5, TWO: 3})
    assert (chosen, cuts) == ([], {})


def test_events_without_changes_wait_for_nobody() -> None:
    chosen, cuts = changes((ONE, 5, "x")).choose({TWO: 9}, {ONE: 5, TWO: 3})
    assert (chosen, cuts) == ([], {TWO: 9})


def test_more_than_a_batch_holds_is_committed_in_parts() -> None:
    number = MAX_BATCH_MESSAGES + 500
    waiting = changes(*((ONE, n // 2, f"k{n}") for n in range(number)))
    chosen, cuts = waiting.choose({ONE: number // 2}, {ONE: 0})
    assert len(chosen) == MAX_BATCH_MESSAGES - 2, "an event of two changes is not divided"
    assert cuts == {ONE: len(chosen) // 2}


def test_an_event_larger_than_a_batch_is_refused() -> None:
    waiting = changes(*((ONE, 5, f"k{n}") for n in range(MAX_BATCH_MESSAGES)))
    with pytest.raises(TooManyChangesError, match="divide the event"):
        waiting.choose({ONE: 6}, {ONE: 5})


def test_changes_of_no_event_are_fenced_by_a_partition() -> None:
    chosen, cuts = changes((None, 0, "x")).choose({}, {ONE: 5})
    assert (keys(chosen), cuts) == (["x"], {ONE: 5})
    assert changes((None, 0, "x")).choose({}, {}) == ([], {})
