"""The pump: what is told of a database transaction's end, and when."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from ingest.checkpoint import Done, Resume
from ingest.contract import ChangeEvent
from ingest.envelope import EnvelopeWriter, Message
from ingest.errors import CaptureDisordered, EnvelopeInvalid, PublishFailed, ResumeRefused
from ingest.pump import Pump
from tests.fixtures.records import (
    NOW_US,
    UNCHANGED,
    database_transaction,
    handed_over,
    posting,
    running_loop,
)


class Stream:
    """Takes batches as the publisher does; `dies_after` batches it takes no more."""

    def __init__(self) -> None:
        self.batches: list[list[Message]] = []
        self.dies_after: int | None = None

    @property
    def sequence(self) -> int:
        return sum(map(len, self.batches))

    async def publish(self, messages: Sequence[Message]) -> None:
        if self.dies_after == len(self.batches):
            raise PublishFailed("no acknowledgement")
        self.batches.append(list(messages))

    def events(self) -> list[ChangeEvent]:
        return [ChangeEvent.from_bytes(m.payload) for batch in self.batches for m in batch]


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with running_loop() as running:
        yield running


def well() -> None:
    """Say that the engine began where it should."""


def pump_to(
    stream: Stream,
    loop: asyncio.AbstractEventLoop,
    resume: Resume,
    begins: Callable[[], None] = well,
) -> Pump:
    sender: Any = stream
    return Pump(resume, EnvelopeWriter(UNCHANGED, lambda: NOW_US), sender, loop, begins)


def changes(count: int) -> list[dict[str, Any]]:
    return [{"table": "ledger_postings", "after": posting(seq)} for seq in range(1, count + 1)]


def test_the_last_change_of_each_database_transaction_ends_it(
    loop: asyncio.AbstractEventLoop,
) -> None:
    stream = Stream()
    values = [
        *database_transaction(200, changes(2)),
        *database_transaction(300, []),
        *database_transaction(400, changes(1)),
    ]
    assert pump_to(stream, loop, Resume(100, 0, None)).handle(handed_over(values)) == Done(400, 3)
    told = [(event.position, event.ordinal, event.ends) for event in stream.events()]
    assert told == [(100, 1, False), (100, 2, True), (300, 1, True)]


def test_nothing_is_told_before_it_is_known_whether_it_ends(
    loop: asyncio.AbstractEventLoop,
) -> None:
    stream = Stream()
    pump = pump_to(stream, loop, Resume(100, 0, None))
    first, *rest, end = database_transaction(200, changes(3))
    assert pump.handle(handed_over([first, *rest])) is None
    assert [event.ordinal for event in stream.events()] == [1, 2]
    # The end alone makes the batch whole: what was held is stored before its place is given.
    assert pump.handle(handed_over([None, end])) == Done(200, 3)
    assert [(event.ordinal, event.ends) for event in stream.events()] == [
        (1, False),
        (2, False),
        (3, True),
    ]
    assert pump.progress.events == 3
    assert pump.progress.position == 200


def test_what_was_held_back_comes_again_after_a_restart(loop: asyncio.AbstractEventLoop) -> None:
    stream = Stream()
    values = list(database_transaction(200, changes(3)))
    pump_to(stream, loop, Resume(100, 0, None)).handle(handed_over(values[:-1]))
    published = stream.events()[-1].event_id
    again = pump_to(stream, loop, Resume(100, 2, published))
    assert again.handle(handed_over(values)) == Done(200, 3)
    assert [(event.ordinal, event.ends) for event in stream.events()] == [
        (1, False),
        (2, False),
        (3, True),
    ]
    assert again.progress.passed_over == 2


def test_no_place_is_given_for_what_was_not_stored(loop: asyncio.AbstractEventLoop) -> None:
    stream = Stream()
    stream.dies_after = 0
    with pytest.raises(PublishFailed):
        pump_to(stream, loop, Resume(100, 0, None)).handle(
            handed_over(database_transaction(200, changes(1)))
        )


def test_what_cannot_be_told_stops_before_its_place(loop: asyncio.AbstractEventLoop) -> None:
    """A reader's column is gone: what came before is stored, the offset stays."""
    stream = Stream()
    broken = posting(2)
    del broken["merchant_id"]
    values = [
        *database_transaction(200, changes(1)),
        *database_transaction(300, [*changes(1), {"table": "ledger_postings", "after": broken}]),
    ]
    pump = pump_to(stream, loop, Resume(100, 0, None))
    with pytest.raises(EnvelopeInvalid, match=r"ledger_postings\.merchant_id is missing"):
        pump.handle(handed_over(values))
    assert pump.progress.position == 100
    assert stream.events() == []


def test_an_end_without_its_changes_is_disorder(loop: asyncio.AbstractEventLoop) -> None:
    values = list(database_transaction(200, changes(2)))
    with pytest.raises(CaptureDisordered, match="with 2 changes"):
        pump_to(Stream(), loop, Resume(100, 0, None)).handle(
            handed_over([values[0], values[1], values[3]])
        )


def test_nothing_is_published_from_a_slot_that_moved(loop: asyncio.AbstractEventLoop) -> None:
    looks: list[str] = []

    def moved() -> None:
        looks.append("look")
        raise ResumeRefused("the slot is ahead")

    stream = Stream()
    pump = pump_to(stream, loop, Resume(100, 0, None), moved)
    for _ in range(2):
        with pytest.raises(ResumeRefused, match="ahead"):
            pump.handle(handed_over(database_transaction(200, changes(1))))
    assert looks == ["look", "look"], "a refusal is not forgotten"
    assert stream.events() == []


def test_the_slot_is_looked_at_once(loop: asyncio.AbstractEventLoop) -> None:
    looks: list[str] = []
    pump = pump_to(Stream(), loop, Resume(100, 0, None), lambda: looks.append("look"))
    for end in (200, 300):
        pump.handle(handed_over(database_transaction(end, changes(1))))
    assert looks == ["look"]
