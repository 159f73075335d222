"""Changes: what agents did to tables and no commit has stored yet.

A table is exact when its changelog holds the effects of all committed events and of no other. So a
change waits here, in order, with the event it came from, and is stored in the same atomic batch
that commits that event. What was changed later may rest on what was changed before: a commit takes
the changes from the front, up to the first of an event that is not finished or the limit of a
batch, and no event is committed whose change stays behind.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from time import time

from faust.streams import current_event
from faust.types import TP, AppT, CollectionT, EventT, FutureMessage, RecordMetadata
from faust.windows import SlidingWindow

from streams.transport import names
from streams.transport.batch import MAX_BATCH_MESSAGES, Write
from streams.transport.connection import TTL_HEADER
from streams.transport.errors import StaleEventError, TooManyChangesError
from streams.transport.topics import TopicShape

CROWDED_AT = MAX_BATCH_MESSAGES // 2


@dataclass(frozen=True, slots=True)
class Change:
    """One change of a table. `source` and `offset` are the event's it came from, if any."""

    source: TP | None
    offset: int
    tp: TP
    write: Write
    future: FutureMessage


class Changes:
    """The changes of one worker that wait for a commit; `crowded` asks for an early one."""

    def __init__(self, app: AppT) -> None:
        self._app = app
        self._waiting: list[Change] = []
        self._is_open = False
        self.crowded = asyncio.Event()

    def __bool__(self) -> bool:
        """Tell whether changes wait."""
        return bool(self._waiting)

    def open(self) -> None:
        """Take changes from events of the app's generation."""
        self._is_open = True

    def add(self, shape: TopicShape, future: FutureMessage) -> None:
        """Keep a change until it is committed with the event it came from.

        Raises StaleEventError, before the table has changed, where the event was read in a
        generation that is over: its partition may be somebody else's by now.
        """
        event, message = current_event(), future.message
        if event is not None and not self._is_current(event):
            raise StaleEventError(event.message.tp, event.message.offset)
        tp = TP(shape.topic, message.partition)
        headers = names.encode_headers(
            message.key, message.value, message.timestamp, dict(message.headers or {}) or None
        )
        table = self._app.tables._changelogs[shape.topic]  # noqa: SLF001
        by_event = event is not None and not table.use_partitioner
        source = event.message.key if by_event else message.key
        headers = {**(headers or {}), names.SOURCE_HEADER: names.encode_source(source, message.key)}
        ttl_s = _lifetime_s(table)
        if ttl_s:
            headers[TTL_HEADER] = f"{ttl_s}s"
        self._waiting.append(
            Change(
                event.message.tp if event else None,
                event.message.offset if event else 0,
                tp,
                Write(
                    shape.subject(tp.partition, message.key), message.value or b"", None, headers
                ),
                future,
            )
        )
        if len(self._waiting) >= CROWDED_AT:
            self.crowded.set()

    def choose(
        self, offsets: Mapping[TP, int], owned: Mapping[TP, int | None]
    ) -> tuple[list[Change], dict[TP, int | None]]:
        """Return the changes to store now, and the offsets to commit with them.

        `offsets` are what is finished, `owned` what is committed of every partition. The returned
        offsets never exceed `offsets`, and fence every returned change. TooManyChangesError where
        what belongs together is more than a batch can hold.
        """
        cuts = {**owned, **offsets}
        limit = MAX_BATCH_MESSAGES - len(owned)
        count, is_full = len(self._waiting), False
        while True:
            count, is_now_full = self._front(count, cuts, limit)
            is_full = is_full or is_now_full
            if not self._lower(cuts, self._waiting[count:], owned):
                break
        chosen = self._waiting[:count]
        commit = {tp: cut for tp, cut in cuts.items() if tp in offsets and cut != owned.get(tp)}
        if is_full and not chosen and not commit:
            raise TooManyChangesError(limit)
        commit |= {each.source: cuts[each.source] for each in chosen if each.source in owned}
        if chosen and not commit:
            commit |= dict(list(owned.items())[:1])
        return (chosen, commit) if commit else ([], {})

    def stored(self, chosen: list[Change], first: int) -> None:
        """Settle changes that a batch stored from sequence `first` on."""
        sequences = {
            write.subject: sequence for sequence, write in enumerate(writes(chosen), start=first)
        }
        if chosen and self._waiting and self._waiting[0] is chosen[0]:
            del self._waiting[: len(chosen)]
        if len(self._waiting) >= CROWDED_AT:
            self.crowded.set()
        for each in chosen:
            metadata = RecordMetadata(
                topic=each.tp.topic,
                partition=each.tp.partition,
                topic_partition=each.tp,
                offset=sequences[each.write.subject],
                timestamp=each.future.message.timestamp or time(),
                timestamp_type=0,
            )
            if each.future.done():
                continue
            each.future.set_result(metadata)
            if each.future.message.callback:
                each.future.message.callback(each.future)

    def drop(self) -> set[str]:
        """Forget what was not committed, take no more, and name the changelogs it was meant for."""
        dropped, self._waiting, self._is_open = self._waiting, [], False
        for each in dropped:
            each.future.cancel()
        return {each.tp.topic for each in dropped}

    def _is_current(self, event: EventT) -> bool:
        return self._is_open and bool(
            event.message.generation_id == self._app.consumer_generation_id
        )

    def _front(self, count: int, cuts: Mapping[TP, int | None], limit: int) -> tuple[int, bool]:
        """Return how many of the first `count` changes may be stored, and if the limit said so."""
        subjects: set[str] = set()
        for number, each in enumerate(self._waiting[:count]):
            if each.source is not None and each.offset >= (cuts.get(each.source) or 0):
                return number, False
            subjects.add(each.write.subject)
            if len(subjects) > limit:
                return number, True
        return count, False

    @staticmethod
    def _lower(
        cuts: dict[TP, int | None], left: Iterable[Change], owned: Mapping[TP, int | None]
    ) -> bool:
        """Commit no event whose change stays behind; tell whether that lowered anything."""
        lowered = False
        for each in left:
            cut = cuts.get(each.source) if each.source is not None else None
            if each.source is None or cut is None or each.offset >= cut:
                continue
            committed = owned.get(each.source)
            if cut != committed:
                cuts[each.source] = max(each.offset, committed or 0) or committed
                lowered = True
        return lowered


def writes(chosen: Iterable[Change]) -> list[Write]:
    """Return what a batch stores of changes: of each key the last value."""
    return list({each.write.subject: each.write for each in chosen}.values())


def _lifetime_s(table: CollectionT) -> int:
    """Return how long a change of a windowed table matters, in whole seconds; 0 for ever.

    A key is written while its window is open and dropped at the latest when a window began after
    it had expired.
    """
    window = table.window
    if window is None or not window.expires:
        return 0
    size = window.before + window.after if isinstance(window, SlidingWindow) else window.size
    return ceil(float(window.expires) + 2 * float(size))
