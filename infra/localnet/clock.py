"""Slots as a function of the wall clock, and the block hash as a function of the slot.

Slots keep passing while the process is down, as on a network one node of which restarts, so that a
slot's time can be computed and needs no row of its own. When the clock is set back, or the slot
length changes, a new segment begins: a slot number never returns.
"""

import bisect
import hashlib
from collections.abc import Sequence
from typing import Final, Protocol

from solders.hash import Hash

from infra.localnet.journal import Segment

# The validator's MAX_PROCESSING_AGE: how many slots a block hash can be referred to.
BLOCKHASH_SLOTS: Final = 150


class SegmentStore(Protocol):
    """Where segments are kept; the journal is one."""

    def segments(self) -> list[Segment]:
        """All stretches of time, oldest first."""

    def add_segment(self, segment: Segment) -> None:
        """Begin a new stretch of time."""


class SlotClock:
    """Maps wall-clock milliseconds to slots and back, over the journal's segments."""

    def __init__(self, store: SegmentStore, *, slot_ms: int, first_slot: int, now_ms: int) -> None:
        """Resume at `first_slot` or later; earlier segments stay for the times they describe."""
        self._store = store
        self._slot_ms = slot_ms
        self._segments = store.segments()
        self._starts = [segment.first_slot for segment in self._segments]
        floor = max([first_slot, *self._starts])
        current = self._extrapolate(now_ms)
        if current is None or current < floor or self._segments[-1].slot_ms != slot_ms:
            self._begin(max(current or 0, floor), now_ms)

    def slot_at(self, now_ms: int, *, tip: int) -> int:
        """The slot that is open now; `tip` where the wall clock was set back before it."""
        slot = self._extrapolate(now_ms)
        if slot is None or slot < tip:
            self._begin(tip, now_ms)
            return tip
        return slot

    def started_at_ms(self, slot: int) -> int:
        """When the slot began, in Unix milliseconds."""
        index = bisect.bisect_right(self._starts, slot) - 1
        segment = self._segments[max(index, 0)]
        return segment.started_at_ms + (slot - segment.first_slot) * segment.slot_ms

    def unix_time(self, slot: int) -> int:
        """The block time of a slot, in whole Unix seconds."""
        return self.started_at_ms(slot) // 1000

    def _extrapolate(self, now_ms: int) -> int | None:
        if not self._segments:
            return None
        newest = self._segments[-1]
        passed_ms = now_ms - newest.started_at_ms
        return newest.first_slot + passed_ms // newest.slot_ms if passed_ms >= 0 else None

    def _begin(self, first_slot: int, now_ms: int) -> None:
        segment = Segment(first_slot=first_slot, started_at_ms=now_ms, slot_ms=self._slot_ms)
        self._store.add_segment(segment)
        self._segments.append(segment)
        self._starts.append(first_slot)


class Blockhashes:
    """The hashes of the last slots; each follows from the network's seed and the slot's number.

    A hash that was handed out before a restart is therefore still known after it.
    """

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._slots: dict[Hash, int] = {}
        self._newest = -1

    def advance(self, slot: int) -> None:
        """Make `slot` the newest and forget what can no longer be referred to."""
        for each in range(max(self._newest + 1, slot - BLOCKHASH_SLOTS, 0), slot + 1):
            self._slots[self.of(each)] = each
        self._newest = slot
        oldest = slot - BLOCKHASH_SLOTS
        for stale in [known for known, at in self._slots.items() if at < oldest]:
            del self._slots[stale]

    def of(self, slot: int) -> Hash:
        """The block hash of a slot."""
        return Hash(hashlib.sha256(self._seed + slot.to_bytes(8, "big")).digest())

    def is_valid(self, blockhash: Hash, slot: int) -> bool:
        """Whether a Solana transaction that lands in `slot` may refer to `blockhash`."""
        made_in = self._slots.get(blockhash)
        return made_in is not None and made_in <= slot <= made_in + BLOCKHASH_SLOTS

    def recent(self, slot: int, count: int) -> Sequence[tuple[int, Hash]]:
        """The `count` slots before `slot` with their hashes, newest first (SlotHashes sysvar)."""
        return [(each, self.of(each)) for each in range(slot - 1, max(slot - 1 - count, -1), -1)]
