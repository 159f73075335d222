"""Which offset may be committed: never one in front of unfinished work, however sparse."""

from collections import defaultdict, deque

import pytest
from faust.types import TP

from streams.transport import Consumer

PARTITION = TP("t", 0)


@pytest.fixture
def consumer() -> Consumer:
    """A consumer's bookkeeping, without the consumer's connection."""
    bare = Consumer.__new__(Consumer)
    bare._acked = defaultdict(list)
    bare._acked_index = defaultdict(set)
    bare._delivered = defaultdict(deque)
    return bare


def deliver(consumer: Consumer, *offsets: int) -> None:
    consumer._delivered[PARTITION].extend(offsets)


def acknowledge(consumer: Consumer, *offsets: int) -> None:
    consumer._acked[PARTITION].extend(offsets)
    consumer._acked_index[PARTITION].update(offsets)


def test_nothing_finished_commits_nothing(consumer: Consumer) -> None:
    deliver(consumer, 5, 10, 12)
    assert consumer._new_offset(PARTITION) is None


def test_sparse_offsets_commit_behind_the_first_unfinished(consumer: Consumer) -> None:
    deliver(consumer, 5, 10, 12)
    acknowledge(consumer, 5, 12)
    assert consumer._new_offset(PARTITION) == 6
    assert consumer._new_offset(PARTITION) is None
    acknowledge(consumer, 10)
    assert consumer._new_offset(PARTITION) == 13
    deliver(consumer, 99)
    acknowledge(consumer, 99)
    assert consumer._new_offset(PARTITION) == 100


def test_the_bookkeeping_does_not_grow(consumer: Consumer) -> None:
    for offset in range(3, 3000, 3):
        deliver(consumer, offset)
        acknowledge(consumer, offset)
        assert consumer._new_offset(PARTITION) == offset + 1
    assert not consumer._acked[PARTITION]
    assert not consumer._acked_index[PARTITION]
    assert not consumer._delivered[PARTITION]
