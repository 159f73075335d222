"""Slots follow the wall clock, never return, and keep their times over restarts."""

from dataclasses import dataclass, field

from infra.localnet.clock import BLOCKHASH_SLOTS, Blockhashes, SlotClock
from infra.localnet.journal import Segment

START_MS = 1_700_000_000_000


@dataclass
class Segments:
    """Segments kept in a list."""

    kept: list[Segment] = field(default_factory=list)

    def segments(self) -> list[Segment]:
        return list(self.kept)

    def add_segment(self, segment: Segment) -> None:
        self.kept.append(segment)


def test_slots_pass_with_the_clock() -> None:
    clock = SlotClock(Segments(), slot_ms=400, first_slot=9, now_ms=START_MS)
    assert clock.slot_at(START_MS, tip=9) == 9
    assert clock.slot_at(START_MS + 399, tip=9) == 9
    assert clock.slot_at(START_MS + 400, tip=9) == 10
    assert clock.slot_at(START_MS + 400 * 1000, tip=10) == 1009
    assert clock.started_at_ms(1009) == START_MS + 400 * 1000
    assert clock.unix_time(9) == START_MS // 1000


def test_slots_pass_while_the_process_is_down() -> None:
    store = Segments()
    SlotClock(store, slot_ms=400, first_slot=9, now_ms=START_MS)
    again = SlotClock(store, slot_ms=400, first_slot=20, now_ms=START_MS + 400 * 50)
    assert again.slot_at(START_MS + 400 * 50, tip=20) == 59
    assert len(store.kept) == 1


def test_restart_begins_no_earlier_than_asked() -> None:
    store = Segments()
    SlotClock(store, slot_ms=400, first_slot=9, now_ms=START_MS)
    soon = START_MS + 400
    again = SlotClock(store, slot_ms=400, first_slot=30, now_ms=soon)
    assert again.slot_at(soon, tip=30) == 30
    assert again.unix_time(9) == START_MS // 1000
    assert again.started_at_ms(31) == soon + 400


def test_clock_set_back_holds_the_slot() -> None:
    store = Segments()
    clock = SlotClock(store, slot_ms=400, first_slot=9, now_ms=START_MS)
    tip = clock.slot_at(START_MS + 4000, tip=9)
    back = START_MS - 3_600_000
    assert clock.slot_at(back, tip=tip) == tip
    assert clock.slot_at(back + 400, tip=tip) == tip + 1
    assert clock.unix_time(tip) == back // 1000
    restarted = SlotClock(store, slot_ms=400, first_slot=1, now_ms=back - 10_000)
    assert restarted.slot_at(back - 10_000, tip=0) == tip


def test_other_slot_length_begins_a_segment() -> None:
    store = Segments()
    SlotClock(store, slot_ms=400, first_slot=9, now_ms=START_MS)
    later = START_MS + 4000
    clock = SlotClock(store, slot_ms=100, first_slot=9, now_ms=later)
    assert clock.slot_at(later, tip=9) == 19
    assert clock.slot_at(later + 100, tip=19) == 20
    assert clock.started_at_ms(14) == START_MS + 2000


def test_blockhashes_expire_after_their_slots() -> None:
    hashes = Blockhashes(b"seed" * 8)
    hashes.advance(1000)
    made = hashes.of(1000)
    assert hashes.is_valid(made, 1000)
    assert not hashes.is_valid(made, 999)
    hashes.advance(1000 + BLOCKHASH_SLOTS)
    assert hashes.is_valid(made, 1000 + BLOCKHASH_SLOTS)
    hashes.advance(1001 + BLOCKHASH_SLOTS)
    assert not hashes.is_valid(made, 1001 + BLOCKHASH_SLOTS)
    assert len({hashes.of(slot) for slot in range(500)}) == 500


def test_blockhashes_are_the_same_after_a_restart() -> None:
    before, after, other = Blockhashes(b"a" * 32), Blockhashes(b"a" * 32), Blockhashes(b"b" * 32)
    for hashes in (before, after, other):
        hashes.advance(500)
    assert after.is_valid(before.of(400), 500)
    assert not other.is_valid(before.of(400), 500)
    assert [slot for slot, _ in after.recent(3, 512)] == [2, 1, 0]
