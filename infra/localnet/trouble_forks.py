"""A chain that changes its mind: in which slot each chain transaction stands, as forks move it.

Pure and seeded: the same seed, registrations and slots give the same forks. A fork takes back all
slots after its root, never a final one; each chain transaction in them lands again in a later slot,
or never. What stands in a final slot is the truth, and stays.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Final

_LANDS_AGAIN: Final = 0.7
_LONGEST_WAIT_SLOTS: Final = 6
_FINAL_BEFORE: Final = -1


@dataclass(slots=True)
class Landing:
    """Where a chain transaction stands: `slot` is None while a fork has it, or for ever.

    `ordinal` counts registrations; decisions about it are drawn from that, since its signature is
    another in every run. `order` grows with each landing, `first_slot` is its first one's.
    """

    signature: str
    ordinal: int
    first_slot: int
    slot: int | None
    order: int


class Forks:
    """The slots of one chain, and who stands in them."""

    def __init__(
        self, seed: int, tip: int, *, confirmed_slots: int = 1, finalized_slots: int = 8
    ) -> None:
        self._seed = seed
        self._confirmed_slots = confirmed_slots
        self._finalized_slots = finalized_slots
        self._landings: dict[str, Landing] = {}
        self._waiting: dict[int, list[Landing]] = {}
        self._orders = 0
        self.tip = tip
        self.rolled_back = 0

    @property
    def confirmed(self) -> int:
        """The newest slot that is confirmed, and may still be taken back."""
        return self.tip - self._confirmed_slots

    @property
    def finalized(self) -> int:
        """The newest slot that stays."""
        return self.tip - self._finalized_slots

    def landing(self, signature: str) -> Landing | None:
        """Return what is known of a chain transaction."""
        return self._landings.get(signature)

    def register(self, signature: str, *, is_old: bool = False) -> Landing:
        """Have a chain transaction land in the open slot, once; an old one was final before."""
        known = self._landings.get(signature)
        if known is not None:
            return known
        slot = self.finalized + _FINAL_BEFORE if is_old else self.tip
        self._orders += 1
        landing = Landing(signature, len(self._landings), slot, slot, self._orders)
        self._landings[signature] = landing
        return landing

    def advance(self, *, chance: float) -> None:
        """Open the next slot, and with this chance find that a fork is there instead of the last.

        The draw is made whatever the chance is, so that a calm slot changes nothing after it.
        """
        self.tip += 1
        draw = Random(f"{self._seed}:fork:{self.tip}")
        if draw.random() < chance:
            # The tip that is open now is empty, so one less than what is needed for finality.
            self._roll_back(self.tip - draw.randint(1, self._finalized_slots - 1), draw)
        for landing in self._waiting.pop(self.tip, []):
            self._orders += 1
            landing.slot, landing.order = self.tip, self._orders

    def _roll_back(self, first_slot: int, draw: Random) -> None:
        for landing in sorted(self._standing(first_slot), key=lambda one: one.order):
            self.rolled_back += 1
            landing.slot = None
            if draw.random() < _LANDS_AGAIN:
                due = self.tip + draw.randint(0, _LONGEST_WAIT_SLOTS)
                self._waiting.setdefault(due, []).append(landing)

    def _standing(self, first_slot: int) -> Iterator[Landing]:
        for landing in self._landings.values():
            if landing.slot is not None and landing.slot >= first_slot:
                yield landing

    def is_decided(self) -> bool:
        """Say whether every chain transaction is final or lost for good."""
        return not self._waiting and not any(self._standing(self.finalized + 1))

    def truth(self) -> set[str]:
        """Return the signatures that stand in final slots: what the chain finalized."""
        return {
            landing.signature
            for landing in self._landings.values()
            if landing.slot is not None and landing.slot <= self.finalized
        }
