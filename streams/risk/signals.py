"""What a rule makes of one payment and of what it remembers. Pure, in integers, by event time.

A memory is what JSON can hold; None before the first payment. Each function returns the memory
after the payment, the same object where nothing of it changed, and the figures of the finding, None
where there is none. Time is the payment's own, so a replay finds the same.

Windows are thirty panes, of which the newest is the pane of the latest payment: a window is at most
as long as it says, and shorter by less than a thirtieth. A payment that is told too late for its
window counts nothing and finds nothing. A finding is made once a window.
"""

from typing import Any, Final

PANES: Final = 30
US_PER_MINUTE: Final = 60_000_000

Memory = Any
Figures = dict[str, int]
Weighed = tuple[Memory, Figures | None]


def velocity(memory: Memory, at_us: int, *, window_minutes: int, limit: int) -> Weighed:
    """Find more than `limit` payments within the window."""
    window = _Window(memory, window_minutes)
    if not window.add(at_us, 0):
        return memory, None
    count, _ = window.totals()
    found = count > limit and window.may_tell()
    figures = {"count": count, "limit": limit, "window_minutes": window_minutes}
    return window.memory(), figures if found else None


def structuring(
    memory: Memory,
    at_us: int,
    amount: int,
    *,
    window_minutes: int,
    threshold: int,
    near_percent: int,
    minimum: int,
) -> Weighed:
    """Find payments just below the threshold whose sum reaches it; others are not remembered."""
    if not threshold * near_percent <= amount * 100 < threshold * 100:
        return memory, None
    window = _Window(memory, window_minutes)
    if not window.add(at_us, amount):
        return memory, None
    count, total = window.totals()
    found = count >= minimum and total >= threshold and window.may_tell()
    figures = {
        "count": count,
        "sum_vnd": total,
        "threshold_vnd": threshold,
        "window_minutes": window_minutes,
    }
    return window.memory(), figures if found else None


def outlier(
    memory: Memory,
    amount: int,
    *,
    history: int,
    minimum: int,
    deviations: int,
    least_spread_percent: int,
    at_least: int,
) -> Weighed:
    """Find an amount far above the median of the last `history`, measured in median deviations.

    Where nearly all payments are alike the deviation is next to nothing, hence the least spread, as
    a percentage of the median.
    """
    known: list[int] = memory or []
    after = [*known, amount][-history:]
    if len(known) < minimum or amount < at_least:
        return after, None
    usual = _median(known)
    deviation = _median([abs(one - usual) for one in known])
    spread = max(deviation * 100, usual * least_spread_percent)
    if (amount - usual) * 100 <= deviations * spread:
        return after, None
    times = amount // max(usual, 1)
    return after, {
        "amount_vnd": amount,
        "usual_vnd": usual,
        "times": times,
        "payments": len(known),
    }


def first_seen(memory: Memory, amount: int, *, at_least: int) -> Weighed:
    """Find a large first payment; all that is remembered is that there was one."""
    if memory is not None:
        return memory, None
    return True, {"amount_vnd": amount, "limit_vnd": at_least} if amount >= at_least else None


class _Window:
    """Counts and sums by pane, as [pane of the last finding, [[pane, count, sum], ...]]."""

    def __init__(self, memory: Memory, minutes: int) -> None:
        self._pane_us = minutes * US_PER_MINUTE // PANES
        self._told: int | None = memory[0] if memory else None
        self._panes: dict[int, tuple[int, int]] = (
            {pane: (count, total) for pane, count, total in memory[1]} if memory else {}
        )

    def add(self, at_us: int, amount: int) -> bool:
        """Count a payment; False where it is too late for the window."""
        pane = at_us // self._pane_us
        newest = max(pane, max(self._panes, default=pane))
        if pane <= newest - PANES:
            return False
        count, total = self._panes.get(pane, (0, 0))
        self._panes[pane] = (count + 1, total + amount)
        self._panes = {one: sums for one, sums in self._panes.items() if one > newest - PANES}
        return True

    def totals(self) -> tuple[int, int]:
        """Return how many payments there are in the window, and their sum."""
        sums = self._panes.values()
        return sum(count for count, _ in sums), sum(total for _, total in sums)

    def may_tell(self) -> bool:
        """Say whether a finding is news, and note that it was told."""
        newest = max(self._panes)
        if self._told is not None and self._told > newest - PANES:
            return False
        self._told = newest
        return True

    def memory(self) -> Memory:
        """Return what JSON can hold."""
        return [self._told, sorted([pane, *sums] for pane, sums in self._panes.items())]


def _median(numbers: list[int]) -> int:
    """Return the middle; of two middles the mean, rounded down."""
    ranked = sorted(numbers)
    middle = len(ranked) // 2
    return ranked[middle] if len(ranked) % 2 else (ranked[middle - 1] + ranked[middle]) // 2
