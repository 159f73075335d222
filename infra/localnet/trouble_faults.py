"""What goes wrong between a node and its callers, and when: a schedule drawn from a seed.

Pure. Time is counted in slots and cut into spells of some slots each; every spell has its kinds of
trouble, or none. A decision is drawn from the seed and from what it is about (slot, method, how
often that was asked in this slot, the ordinal of a chain transaction), so callers that come in
another order change little, and a run replays from its seed.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from random import Random
from typing import Final, TypeVar

T = TypeVar("T")

SPELL_SLOTS: Final = 12
_CALM_SPELLS: Final = 0.2
_FORKS_A_SLOT: Final = 0.25
_FAULTS_A_CALL: Final = 0.25
_HIDDEN: Final = 0.2
_HIDDEN_SLOTS: Final = 6
_UNREAD_SLOTS: Final = 4
_MOST_LAG_SLOTS: Final = 12
_MOST_DELAY_MS: Final = 60
_MOST_LATE_MS: Final = 800


class Kind(StrEnum):
    """A kind of trouble."""

    FORKS = "forks"  # slots are rolled back
    LISTS = "lists"  # lists of signatures miss some, or are in another order
    READS = "reads"  # getTransaction and statuses know nothing for a while
    CALLS = "calls"  # calls fail, are slow, or are never answered
    LAG = "lag"  # the node's finalized position stays behind
    NEWS = "news"  # notifications are missing, doubled or late


class Fault(StrEnum):
    """What happens to one call."""

    NONE = "none"
    SLOW = "slow"
    BUSY = "busy"  # HTTP 429
    DOWN = "down"  # HTTP 503
    BEHIND = "behind"  # the JSON-RPC error of a node that is not healthy
    ODD = "odd"  # an error object of another form than a validator's
    GARBLED = "garbled"  # an answer that is no JSON
    SILENT = "silent"  # no answer at all


@dataclass(frozen=True, slots=True)
class News:
    """What happens to one notification: told so often (0 is never), so late."""

    copies: int
    delay_ms: int


class Faults:
    """One node's troubles; `kinds` are those that may occur, `calm_after` slots they end."""

    def __init__(
        self, seed: int, kinds: Sequence[Kind] = tuple(Kind), *, calm_after: int | None = None
    ) -> None:
        self._seed = seed
        self._kinds = tuple(kinds)
        self._calm_after = calm_after
        self._slot = 0
        self._asked: Counter[str] = Counter()
        self._told = 0
        self.is_calm = False

    def enter(self, slot: int) -> None:
        """Go on to a slot, counted from the start."""
        self._slot = slot
        self._asked.clear()
        if self._calm_after is not None and slot >= self._calm_after:
            self.is_calm = True

    def kinds(self) -> frozenset[Kind]:
        """Return the kinds of trouble of the present spell."""
        if self.is_calm:
            return frozenset()
        draw = self._draw("spell", self._slot // SPELL_SLOTS)
        if draw.random() < _CALM_SPELLS:
            return frozenset()
        return frozenset(kind for kind in self._kinds if draw.random() < 0.5)

    def fork_chance(self) -> float:
        """Return how probable a fork is in this slot."""
        return _FORKS_A_SLOT if Kind.FORKS in self.kinds() else 0.0

    def lag_slots(self) -> int:
        """Return how far the finalized position stays behind."""
        if Kind.LAG not in self.kinds():
            return 0
        return self._draw("lag", self._slot // SPELL_SLOTS).randint(1, _MOST_LAG_SLOTS)

    def of_call(self, method: str) -> tuple[Fault, int]:
        """Return what happens to a call, and the delay in ms where it is slow."""
        if Kind.CALLS not in self.kinds():
            return Fault.NONE, 0
        self._asked[method] += 1
        draw = self._draw("call", self._slot, method, self._asked[method])
        if draw.random() >= _FAULTS_A_CALL:
            return Fault.NONE, 0
        fault = draw.choice([fault for fault in Fault if fault is not Fault.NONE])
        return fault, draw.randint(1, _MOST_DELAY_MS)

    def hides(self, ordinal: int) -> bool:
        """Say whether lists leave out a chain transaction at present."""
        return Kind.LISTS in self.kinds() and self._chance("hidden", _HIDDEN_SLOTS, ordinal)

    def cannot_read(self, ordinal: int) -> bool:
        """Say whether a chain transaction cannot be read at present."""
        return Kind.READS in self.kinds() and self._chance("unread", _UNREAD_SLOTS, ordinal)

    def reorder(self, page: list[T]) -> list[T]:
        """Return a page of a list, its lines in another order where lists are in trouble."""
        if Kind.LISTS not in self.kinds():
            return page
        draw = self._draw("order", self._slot)
        return draw.sample(page, len(page)) if draw.random() < 0.5 else page

    def of_news(self) -> News:
        """Return what happens to the next notification."""
        if Kind.NEWS not in self.kinds():
            return News(1, 0)
        self._told += 1
        draw = self._draw("news", self._told)
        delay_ms = draw.randint(1, _MOST_LATE_MS) if draw.random() < 0.3 else 0
        return News(draw.choice([0, 0, 1, 1, 1, 2, 3]), delay_ms)

    def _chance(self, what: str, slots: int, ordinal: int) -> bool:
        return self._draw(what, self._slot // slots, ordinal).random() < _HIDDEN

    def _draw(self, *about: object) -> Random:
        return Random(":".join(str(part) for part in (self._seed, *about)))
