"""The pump over any log: however it is cut into batches and wherever it dies, one stream of bytes.

The engine may hand over a log in any batches and the process may die in any of them, after any
message. What the stream holds in the end is byte for byte what one undisturbed run would have
written, and exactly the last change of each database transaction says that it is the last.
"""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.checkpoint import Resume
from ingest.contract import ChangeEvent
from ingest.envelope import EnvelopeWriter, Message
from ingest.errors import PublishFailed
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
    """Stores messages until its life is over; a batch is stored whole or not at all."""

    def __init__(self) -> None:
        self.stored: list[Message] = []
        self.lives = 0

    @property
    def sequence(self) -> int:
        return len(self.stored)

    async def publish(self, messages: Sequence[Message]) -> None:
        if self.lives == 0:
            raise PublishFailed("killed")
        self.lives -= 1
        self.stored += messages


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with running_loop() as running:
        yield running


# For each database transaction how many changes it has, and how much log it takes.
logs = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 1000)), min_size=1, max_size=8)


def values_of(log: list[tuple[int, int]], first: int = 0) -> list[bytes]:
    """Return the engine's record values from database transaction `first` on."""
    values: list[bytes] = []
    end = 0
    for index, (count, size) in enumerate(log):
        end += size
        if index >= first:
            rows = [{"table": "ledger_postings", "after": posting(n + 1)} for n in range(count)]
            values += database_transaction(end, rows, txid=700 + index)
    return values


def run(
    stream: Stream, loop: asyncio.AbstractEventLoop, resume: Resume, batches: list[list[bytes]]
) -> int:
    """Pump batches until the stream takes no more; return the position that is then done."""
    sender: Any = stream
    pump = Pump(resume, EnvelopeWriter(UNCHANGED, lambda: NOW_US), sender, loop, lambda: None)
    done = resume.position
    try:
        for batch in batches:
            whole = pump.handle(handed_over(batch))
            done = done if whole is None else whole.position
    except PublishFailed:
        pass
    return done


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(log=logs, data=st.data())
def test_any_cuts_and_any_deaths_give_the_same_bytes(
    log: list[tuple[int, int]], data: st.DataObject, loop: asyncio.AbstractEventLoop
) -> None:
    ends = [sum(size for _, size in log[: index + 1]) for index in range(len(log))]
    undisturbed = Stream()
    undisturbed.lives = len(ends) + 1
    run(undisturbed, loop, Resume(0, 0, None), [values_of(log)])

    stream = Stream()
    offset = 0
    while offset < ends[-1]:
        last = ChangeEvent.from_bytes(stream.stored[-1].payload).event_id if stream.stored else None
        values = values_of(log, first=sum(end <= offset for end in ends))
        cuts = data.draw(st.sets(st.integers(1, len(values)), max_size=6), label="cuts")
        places = [0, *sorted(cuts), len(values)]
        batches = [values[a:b] for a, b in pairwise(places)]
        stream.lives = data.draw(st.integers(1, 8), label="batches stored before it dies")
        done = run(stream, loop, Resume(offset, len(stream.stored), last), batches)
        # The engine stores the offset some time later, or dies before it does.
        known = [end for end in ends if offset < end <= done]
        offset = data.draw(st.sampled_from([offset, *known]), label="offset") if known else offset
        if done == ends[-1]:
            offset = done
    assert stream.stored == undisturbed.stored

    told = [ChangeEvent.from_bytes(message.payload) for message in stream.stored]
    counts = [count for count, _ in log if count]
    assert [event.ordinal for event in told if event.ends] == counts
    assert len(told) == sum(counts)
    for message, event in zip(stream.stored, told, strict=True):
        assert (b"Giovang-Ends: 1\r\n" in message.headers) is event.ends
