"""The risk rules against their definitions, and the processor against deaths at any moment."""

import asyncio
import contextlib
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from statistics import median
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.contract import ChangeEvent, Operation, subject_for
from streams.risk import signals
from streams.risk.signals import PANES, US_PER_MINUTE
from tests.fixtures import ledger_stream as ledger
from tests.fixtures.risk import Kept, expected, processor, read, rules, shopping

WINDOW_MINUTES = 10
WINDOW_US = WINDOW_MINUTES * US_PER_MINUTE
PANE_US = WINDOW_US // PANES
START_US = 1_772_330_400_000_000

moments = st.lists(
    st.integers(0, 40 * US_PER_MINUTE).map(lambda offset: START_US + offset), max_size=60
)


def counted(memory: Any, at_us: int, limit: int = 0) -> tuple[Any, int | None]:
    """Add a payment to a velocity window that always tells; return the count it tells."""
    told_never = memory and [None, memory[1]]
    memory, figures = signals.velocity(
        told_never, at_us, window_minutes=WINDOW_MINUTES, limit=limit
    )
    return memory, None if figures is None else figures["count"]


@given(moments)
def test_a_window_counts_no_more_than_it_says_and_nearly_all_of_it(times: list[int]) -> None:
    memory, seen = None, list[int]()
    for at_us in times:
        memory, count = counted(memory, at_us)
        seen.append(at_us)
        if count is None:
            continue
        newest = max(seen)
        within = [one for one in seen if one > newest - WINDOW_US]
        surely = [one for one in within if one > newest - WINDOW_US + PANE_US]
        assert len(surely) <= count <= len(within)


@given(moments, st.integers(0, 10**9))
def test_what_is_told_too_late_changes_nothing(times: list[int], later_us: int) -> None:
    memory = None
    for at_us in times:
        memory, _ = counted(memory, at_us)
    newest = max(times, default=START_US)
    memory, _ = counted(memory, newest)
    after, count = counted(memory, newest - WINDOW_US - later_us)
    assert count is None
    assert after is not None
    assert after[1] == memory[1]


@given(st.lists(st.integers(0, WINDOW_US - PANE_US), max_size=40), st.randoms())
def test_within_a_window_order_does_not_matter(offsets: list[int], random: Any) -> None:
    def remembered(some: Sequence[int]) -> Any:
        memory = None
        for offset in some:
            memory, _ = counted(memory, START_US + offset)
        return memory and memory[1]

    mixed = list(offsets)
    random.shuffle(mixed)
    assert remembered(mixed) == remembered(offsets)


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=60), st.integers(1, 30))
def test_structuring_is_told_once_a_window_and_only_of_what_reaches(
    amounts: list[int], minutes: int
) -> None:
    memory, near = None, list[tuple[int, int]]()
    told_at: int | None = None
    for number, amount in enumerate(amounts):
        at_us = START_US + number * minutes * US_PER_MINUTE // 10
        memory, figures = signals.structuring(
            memory,
            at_us,
            amount,
            window_minutes=WINDOW_MINUTES,
            threshold=1000,
            near_percent=80,
            minimum=2,
        )
        if 800 <= amount < 1000:
            near.append((at_us, amount))
        within = [one for at, one in near if at // PANE_US > at_us // PANE_US - PANES]
        is_new = told_at is None or told_at <= at_us // PANE_US - PANES
        if 800 <= amount < 1000 and len(within) >= 2 and sum(within) >= 1000 and is_new:
            assert figures is not None
            assert (figures["count"], figures["sum_vnd"]) == (len(within), sum(within))
            told_at = at_us // PANE_US
        else:
            assert figures is None


@given(st.lists(st.integers(1, 10**12), min_size=1, max_size=40), st.integers(1, 10**13))
def test_an_outlier_is_what_the_definition_says(known: list[int], amount: int) -> None:
    after, figures = signals.outlier(
        known,
        amount,
        history=30,
        minimum=10,
        deviations=5,
        least_spread_percent=20,
        at_least=1000,
    )
    assert after == [*known, amount][-30:]
    usual = math.floor(median(map(Fraction, known)))
    deviation = math.floor(median(Fraction(abs(one - usual)) for one in known))
    is_far = amount - usual > 5 * max(Fraction(deviation), Fraction(usual, 5))
    assert (figures is not None) == (len(known) >= 10 and amount >= 1000 and is_far)
    if figures is not None:
        assert figures["usual_vnd"] == usual


def bystander(kind: int, near: ChangeEvent) -> ChangeEvent:
    """An event beside an arrival that must change nothing."""
    assert near.after is not None
    place = near.position + 1 + kind
    if kind == 0:
        return ledger.told_again(near, position=place)
    if kind == 1:
        return replace(
            near,
            operation=Operation.DELETE,
            subject=subject_for("payments", Operation.DELETE),
            position=place,
            before=near.after,
            after=None,
        )
    if kind == 2:
        changed = {**near.after, "fee_minor": "7"}
        return ledger.change(
            "payments", changed, before=near.after, position=place, ordinal=1, at=near.committed_at
        )
    row = {**near.after, "status": "created", "id": "pay_other"}
    return ledger.change("payments", row, position=place, ordinal=1, at=near.committed_at)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_snapshots_deletions_and_other_changes_change_nothing(seed: int, kinds: list[int]) -> None:
    plain = list(shopping(seed, 60))
    mixed = list[ChangeEvent]()
    for number, event in enumerate(plain):
        mixed += [event, bystander(kinds[number % len(kinds)], event)]
    kept = Kept()
    asyncio.run(processor(kept, {}).process(read(mixed)))
    assert kept.told() == [alert.to_bytes() for alert in expected(rules(), read(plain))]


class Recorder(dict[bytes, bytes]):
    """Records with every change in order, as a changelog has them."""

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[tuple[bytes, bytes]] = []

    def update(self, records: Any) -> None:
        super().update(records)
        self.changes += records.items()


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_deaths_change_no_alert(data: st.DataObject) -> None:
    """After each, the changelog ends anywhere behind what was kept, the offset before that."""
    messages = read(shopping(data.draw(st.integers(0, 10**6)), 120))
    kept = Kept()
    recorder, begin, survived = Recorder(), 0, dict[bytes, bytes]()

    async def live(size: int, first: int, dies_at: int | None) -> list[tuple[int, int]]:
        """Process until death; return where each batch began, and the changelog's length then."""
        places = []
        judge = processor(kept, recorder)
        for at in range(first, len(messages), size):
            places.append((at, len(recorder.changes)))
            dying = dies_at is not None and at >= dies_at
            kept.is_dying = dying and data.draw(st.booleans(), label="before anything is kept")
            with contextlib.suppress(ConnectionAbortedError):
                await judge.process(messages[at : at + size])
            if dying:
                return places
        return places

    for _ in range(data.draw(st.integers(0, 3), label="deaths")):
        size = data.draw(st.integers(1, 50), label="batch size")
        dies_at = data.draw(st.integers(begin, len(messages)), label="dies at")
        places = asyncio.run(live(size, begin, dies_at))
        if not places:
            break
        begin, least = data.draw(st.sampled_from(places), label="reads again from")
        length = data.draw(st.integers(least, len(recorder.changes)), label="changelog ends at")
        survived = survived | dict(recorder.changes[:length])
        recorder = Recorder()
        dict.update(recorder, survived)
    asyncio.run(live(data.draw(st.integers(1, 50)), begin, None))
    assert kept.told() == [alert.to_bytes() for alert in expected(rules(), messages)]


def test_the_window_is_never_longer_than_it_says() -> None:
    """At the seams of panes: a payment counts until its pane leaves the window."""
    memory, count = counted(None, START_US)
    assert count == 1
    _, count = counted(memory, START_US + WINDOW_US - PANE_US)
    assert count == 2
    _, count = counted(memory, START_US + WINDOW_US)
    assert count == 1
    assert START_US % PANE_US == 0
    assert timedelta(microseconds=WINDOW_US) == timedelta(minutes=WINDOW_MINUTES)
