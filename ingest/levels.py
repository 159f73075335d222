"""How full something is that must not fill up, how fast it fills, and when it will be full.

Pure: the log that the slot holds back, and the stream, are both looked at with this. What has no
limit has no level but `ok` and no forecast.
"""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ingest.checkpoint import WalStatus

WARNING_SHARE: Final = 0.5
CRITICAL_SHARE: Final = 0.8
WINDOW_S: Final = 300.0
"""How far back growth is measured: long enough that one checkpoint or one load is no trend."""
LEAST_SPAN_S: Final = 10.0


class Level(StrEnum):
    """What a person has to know first, from good to bad."""

    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"
    LOST = "lost"

    @property
    def rank(self) -> int:
        """Place from good to bad, from 0."""
        return list(Level).index(self)


@dataclass(frozen=True, slots=True)
class Filling:
    """Bytes used of a limit, or of none, and bytes it grows by in a second, where that is known."""

    used: int
    limit: int | None
    growth_per_s: float | None = None

    @property
    def share(self) -> float | None:
        """Part of the limit that is used, from 0 to 1."""
        return None if not self.limit else self.used / self.limit

    @property
    def level(self) -> Level:
        """`warning` from half of the limit on, `critical` from four fifths."""
        share = self.share
        if share is None or share < WARNING_SHARE:
            return Level.OK
        return Level.WARNING if share < CRITICAL_SHARE else Level.CRITICAL

    @property
    def forecast_s(self) -> int | None:
        """Seconds until it is full if it goes on growing as measured; None while it does not."""
        if self.limit is None or not self.growth_per_s or self.growth_per_s <= 0:
            return None
        return max(0, int((self.limit - self.used) / self.growth_per_s))


def log_level(wal_status: WalStatus, filling: Filling) -> Level:
    """Return the level of the log that the slot holds back.

    PostgreSQL's own word stands above the share: `unreserved` is given up at the next checkpoint.
    """
    if wal_status is WalStatus.LOST:
        return Level.LOST
    if wal_status is WalStatus.UNRESERVED:
        return Level.CRITICAL
    return filling.level


def stream_filling(used: int, max_bytes: int | None, growth_per_s: float | None) -> Filling:
    """Return how full a stream is; JetStream writes "no limit" as -1."""
    return Filling(used, max_bytes if max_bytes and max_bytes > 0 else None, growth_per_s)


def worst(*levels: Level) -> Level:
    """Return the worst of several levels."""
    return max(levels, key=lambda level: level.rank)


class Growth:
    """Growth of a number of bytes over the last minutes. Moments are seconds of one clock."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, moment_s: float, used: int) -> None:
        """Take in one look."""
        self._samples.append((moment_s, used))
        # One sample older than the window stays, so that the whole window is always covered.
        while len(self._samples) > 2 and moment_s - self._samples[1][0] >= self._window_s:
            self._samples.popleft()

    @property
    def per_s(self) -> float | None:
        """Bytes a second over the window; None before there are ten seconds to judge by."""
        if not self._samples:
            return None
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        if last_s - first_s < LEAST_SPAN_S:
            return None
        return (last - first) / (last_s - first_s)
