"""Layouts: what a topic held before it was given more partitions, as one app sees it.

Nothing that was stored is moved: it stays under the subjects of its layout. A reader of a present
partition reads the former layouts too, in the order of the stream, and takes what belongs to its
partition now and was not processed by its app then. So a key's order holds across the change, for
apps that were behind and for new ones that begin with the first event.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic

from streams.transport import names
from streams.transport.connection import Connection
from streams.transport.errors import ServerUnavailableError, StateNotMovedError
from streams.transport.reader import PartitionReader, Record
from streams.transport.topics import TopicShape

COMPARE_AND_SET_ATTEMPTS = 20
SCAN_RECORDS = 500
SCAN_SILENCE_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class AppLayout:
    """In which layout of a topic an app's offsets and tables lie.

    `done` holds, for each former layout the app read, of each partition what it was to read next.
    `sequence` is that of the record, 0 where there is none yet.
    """

    sequence: int
    layout: int
    done: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def payload(self) -> bytes:
        """Return the record."""
        done = {str(layout): list(offsets) for layout, offsets in self.done.items()}
        return json.dumps({"layout": self.layout, "done": done}).encode()


async def app_layout(connection: Connection, app_id: str, topic: str) -> AppLayout:
    """Return what an app's record says; a topic that never changed has none."""
    stored = await connection.last_message(
        names.group_stream(app_id), names.layout_subject(app_id, topic)
    )
    if stored is None:
        return AppLayout(0, 0)
    record = json.loads(stored.data)
    done = {int(layout): offsets for layout, offsets in record["done"].items()}
    return AppLayout(stored.sequence, record["layout"], done)


class History:
    """The former layouts of a topic and how far an app had come in them."""

    def __init__(self, shape: TopicShape, done: Mapping[int, Sequence[int]]) -> None:
        self._shape = shape
        self._done = done
        self._root = f"{shape.root}."

    def filters(self, partition: int) -> list[str]:
        """Return the subjects that may hold messages of a present partition."""
        shape = self._shape
        return [*map(shape.former, range(shape.layout)), str(shape.filter(partition))]

    def wants(self, partition: int) -> Callable[[Record], bool]:
        """Return what tells the messages to process in a present partition from all others."""

        def is_wanted(record: Record) -> bool:
            if record.subject.startswith(self._root):
                return True
            return self.partition_now(record) == partition and not self.is_done(record)

        return is_wanted

    def partition_now(self, record: Record) -> int:
        """Return the present partition of a message of a former layout."""
        return self._partition_in(self._shape.layout, record)

    def is_done(self, record: Record) -> bool:
        """Tell whether the app had processed a message in a former layout."""
        first, _ = self._shape.origin(record.subject)
        return any(
            layout >= first and record.sequence < offsets[self._partition_in(layout, record)]
            for layout, offsets in self._done.items()
        )

    def _partition_in(self, layout: int, record: Record) -> int:
        first, partition = self._shape.origin(record.subject)
        counts = self._shape.counts
        return placed_anew(
            names.decode_key(record.headers), partition, counts[first], counts[layout]
        )


def placed_anew(key: bytes | None, partition: int, former: int, present: int) -> int:
    """Return where a message goes: its partition stays its own where no key had decided on it."""
    if key is None or names.partition_for(key, former) != partition:
        return partition
    return names.partition_for(key, present)


async def history_of(connection: Connection, app_id: str, shape: TopicShape) -> History | None:
    """Return an app's history of a topic, None where the topic has always had its partitions.

    An app that read nothing yet begins in the present layout, and its record says so. Raises
    StateNotMovedError where what the app stored belongs to another layout.
    """
    if shape.layout == 0:
        return None
    offsets = names.offset_subject(app_id, shape.topic, "*")
    for _ in range(COMPARE_AND_SET_ATTEMPTS):
        found = await app_layout(connection, app_id, shape.topic)
        if found.sequence and found.layout == shape.layout:
            return History(shape, found.done)
        if await connection.last_message(names.group_stream(app_id), offsets) is not None:
            raise StateNotMovedError(app_id, shape.topic, shape.partitions)
        fresh = AppLayout(found.sequence, shape.layout)
        await connection.put_if(
            names.layout_subject(app_id, shape.topic), fresh.payload(), expected=found.sequence
        )
    raise StateNotMovedError(app_id, shape.topic, shape.partitions)


async def scan(
    connection: Connection, stream: str, subjects: str, start: int = 1
) -> AsyncIterator[list[Record]]:
    """Yield all messages there are on `subjects` from a sequence on, in order, some at a time."""
    arrived = asyncio.Event()
    reader = PartitionReader(
        connection, stream=stream, subject_filter=subjects, on_arrival=arrived.set
    )
    last = await connection.last_message(stream, subjects)
    if last is None or last.sequence < start:
        return
    heard_at = monotonic()
    await reader.start(start)
    try:
        while last is not None and reader.position <= last.sequence:
            arrived.clear()
            records = reader.take(SCAN_RECORDS)
            if records:
                heard_at = monotonic()
                yield [record for record in records if record.sequence <= last.sequence]
                await reader.replenish()
                continue
            try:
                async with asyncio.timeout(1.0):
                    await arrived.wait()
            except TimeoutError:
                if monotonic() - heard_at > SCAN_SILENCE_LIMIT_S:
                    raise ServerUnavailableError(f"read {stream}", SCAN_SILENCE_LIMIT_S) from None
                await reader.check()
                last = await connection.last_message(stream, subjects)  # it may have expired
    finally:
        await reader.stop()
