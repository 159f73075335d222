"""What a leading capture process tells the world each second, and what it looks after meanwhile.

Its row in `capture.process`, its metrics, its words to the supervisor, a line in the log whenever a
level changes. Now and then it looks at the stream's size and at the published columns again: a
column that readers need and that is gone ends the process with `ProvisionRefused` before anything
is told without it. A slot that is gone ends it with `SlotLost`.
"""

import asyncio
import time
from collections import deque
from datetime import UTC, datetime
from typing import Final

from nats.js import JetStreamContext

from infra.telemetry import get_logger, notify_alive, notify_ready
from ingest import guardian, publisher
from ingest.checkpoint import WalStatus, lsn_text
from ingest.columns import published_columns, verify_tables
from ingest.errors import PublishFailed, SlotLost
from ingest.guardian import Database, Lag
from ingest.levels import Filling, Growth, Level, log_level, stream_filling, worst
from ingest.metrics import CaptureMetrics
from ingest.pump import Progress
from ingest.settings import IngestSettings
from ingest.standby import Figures, Seat

LOOK_S: Final = 5.0
"""How often the stream's size and the published columns are looked at."""
RATE_WINDOW_S: Final = 10.0
LOG: Final = "log"
STREAM: Final = "stream"

log = get_logger(__name__)


class Rate:
    """Events a second over the last ten seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def add(self, moment_s: float, events: int) -> float:
        """Take in a count; return the rate."""
        self._samples.append((moment_s, events))
        while len(self._samples) > 2 and moment_s - self._samples[0][0] > RATE_WINDOW_S:
            self._samples.popleft()
        (first_s, first), (last_s, last) = self._samples[0], self._samples[-1]
        return 0.0 if last_s == first_s else (last - first) / (last_s - first_s)


class Reporter:
    """Measures and tells. Belongs to one event loop and one leading process."""

    def __init__(
        self,
        settings: IngestSettings,
        database: Database,
        jetstream: JetStreamContext,
        seat: Seat,
        metrics: CaptureMetrics,
        *,
        replicas: int,
    ) -> None:
        self._settings = settings
        self._database = database
        self._jetstream = jetstream
        self._seat = seat
        self._metrics = metrics
        self._replicas = replicas
        self._rate = Rate()
        self._growth = {LOG: Growth(), STREAM: Growth()}
        self._told: dict[str, Level] = {}
        self._stream = Filling(0, None)
        self._looked_at = -LOOK_S

    async def tell(self, done: Progress, *, ready: bool, first: bool) -> None:
        """Measure once and tell everybody; `first` when this is the moment it became ready."""
        now = time.monotonic()
        lag = await asyncio.to_thread(
            guardian.measure, self._database, self._settings.slot, done.position
        )
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            await self._look(now)
        levels = self._levels(now, lag)
        figures = Figures(
            position=done.position,
            committed_at=_moment(done.committed_us),
            events=done.events,
            passed_over=done.passed_over,
            rate_per_s=round(self._rate.add(now, done.events), 1),
            lag_bytes=lag.behind,
            lag_ms=lag_ms(done, lag.now_us, time.time_ns() // 1000, self._settings.heartbeat_ms),
            retained_bytes=lag.retained,
            level=worst(*(level for _, level in levels.values())),
            forecast_s=min(
                (f.forecast_s for f, _ in levels.values() if f.forecast_s is not None), default=None
            ),
        )
        await asyncio.to_thread(self._seat.beat, figures)
        self._metrics.tell(figures, levels)
        self._log_changes(levels)
        _notify(figures, lag, ready=ready, first=first)
        if lag.wal_status is WalStatus.LOST:
            raise SlotLost(
                f"replication slot {self._settings.slot} was invalidated while capture ran: run "
                "`python -m ingest.provision`, which says what to do"
            )

    async def _look(self, now: float) -> None:
        columns = await asyncio.to_thread(
            published_columns, self._database, self._settings.publication
        )
        verify_tables(self._settings.publication, columns)
        try:
            info = await publisher.stream_info(self._jetstream, self._settings.stream)
        except PublishFailed as error:
            # Publishing itself notices a server that is gone; a size may come late.
            log.warning("the stream cannot be measured", reason=str(error))
            return
        if info is None:
            raise PublishFailed(f"stream {self._settings.stream} is gone")
        if info.config.num_replicas != self._replicas:
            raise PublishFailed(
                f"stream {self._settings.stream} has {info.config.num_replicas} replicas now: "
                "capture starts anew, since it publishes otherwise then"
            )
        used = info.state.bytes
        self._growth[STREAM].add(now, used)
        self._stream = stream_filling(used, info.config.max_bytes, self._growth[STREAM].per_s)

    def _levels(self, now: float, lag: Lag) -> dict[str, tuple[Filling, Level]]:
        self._growth[LOG].add(now, lag.retained)
        held = Filling(lag.retained, lag.limit, self._growth[LOG].per_s)
        return {
            LOG: (held, log_level(lag.wal_status, held)),
            STREAM: (self._stream, self._stream.level),
        }

    def _log_changes(self, levels: dict[str, tuple[Filling, Level]]) -> None:
        for of, (filling, level) in levels.items():
            before = self._told.get(of, Level.OK)
            self._told[of] = level
            if level is before:
                continue
            tell = log.warning if level.rank > before.rank else log.info
            tell(
                "level changed",
                of=of,
                level=level,
                before=before,
                used_bytes=filling.used,
                limit_bytes=filling.limit,
                forecast_s=filling.forecast_s,
            )


def lag_ms(done: Progress, database_us: int, here_us: int, heartbeat_ms: int) -> int | None:
    """Return how long a change now takes from commit to acknowledgement, in milliseconds.

    What the last event took, or how long the next heartbeat is overdue, whichever is more; None
    before the first event. `database_us` and `here_us` are both clocks at one moment, so that the
    clocks of two machines may differ.
    """
    if not done.committed_us:
        return None
    took_us = done.acked_us + (database_us - here_us) - done.committed_us
    overdue_us = database_us - done.committed_us - 2 * heartbeat_ms * 1000
    return max(0, took_us, overdue_us) // 1000


def _moment(epoch_us: int) -> datetime | None:
    return datetime.fromtimestamp(epoch_us / 1_000_000, UTC) if epoch_us else None


def _notify(figures: Figures, lag: Lag, *, ready: bool, first: bool) -> None:
    status = (
        f"lag {figures.lag_bytes} bytes, {figures.events} events, at {lsn_text(figures.position)}, "
        f"slot retains {figures.retained_bytes} bytes ({lag.wal_status}), level {figures.level}"
    )
    if ready and first:
        log.info("capture streams", lag_bytes=figures.lag_bytes)
        notify_ready(status)
    notify_alive(status)
