"""The hand-over: batches go to the sink one at a time, in order, and errors reach both sides."""

import threading
from collections.abc import Iterator

import pytest

from ingest.checkpoint import Done
from ingest.errors import PublishFailed
from ingest.handover import Handover

DEADLINE_S = 10.0


class Sink:
    """Takes batches that are numbers; holds each until let go, and fails at `fails_at`."""

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.at_once = 0
        self.most_at_once = 0
        self.fails_at: int | None = None
        self.go = threading.Event()
        self.go.set()

    def handle(self, batch: bytes) -> Done | None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.go.wait(DEADLINE_S)
        number = int(batch)
        self.at_once -= 1
        if number == self.fails_at:
            raise PublishFailed("no acknowledgement")
        self.taken.append(number)
        return Done(number, 0) if number else None


def _unexpected(error: BaseException) -> None:
    raise AssertionError("nothing was to fail") from error


@pytest.fixture
def sink() -> Iterator[Sink]:
    made = Sink()
    yield made
    made.go.set()


def test_a_batch_that_nothing_follows_is_waited_for(sink: Sink) -> None:
    handover = Handover(sink, _unexpected)
    assert handover.give(b"1", more=False) == Done(1, 0)
    assert handover.give(b"0", more=False) is None
    assert sink.taken == [1, 0]


def test_a_full_batch_is_told_of_with_the_next(sink: Sink) -> None:
    handover = Handover(sink, _unexpected)
    sink.go.clear()
    assert handover.give(b"1", more=True) is None
    assert sink.taken == []
    sink.go.set()
    assert handover.give(b"2", more=True) == Done(1, 0)
    # Where the last batch ends no database transaction, the one before it still did.
    assert handover.give(b"0", more=False) == Done(2, 0)
    assert sink.taken == [1, 2, 0]
    assert sink.most_at_once == 1


def test_an_error_is_heard_at_once_and_raised_by_every_later_call(sink: Sink) -> None:
    heard: list[BaseException] = []
    known = threading.Event()

    def on_error(error: BaseException) -> None:
        heard.append(error)
        known.set()

    handover = Handover(sink, on_error)
    sink.fails_at = 1
    assert handover.give(b"1", more=True) is None
    assert known.wait(DEADLINE_S)
    for _ in range(2):
        with pytest.raises(PublishFailed):
            handover.give(b"2", more=True)
    assert sink.taken == []
    assert len(heard) == 1
