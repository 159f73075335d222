"""Progress of a processor, and its report to the supervisor and to `streams.metrics`.

The report comes from the worker's own loop. It is withheld when events wait and none has been
finished for a while, although nothing the worker depends on is away: then the supervisor sees a
silent process and restarts it.
"""

from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from time import monotonic

from faust.exceptions import ConsumerNotStarted
from faust.types import TP, AppT
from mode import Service

from infra.telemetry import get_logger, notify_alive, notify_ready
from streams.backlog import Backlog, look_behind, waiting_letters
from streams.transport import TransportError

log = get_logger(__name__)

REPORT_EVERY_S = 1.0
STALL_LIMIT_S = 60.0
RATE_OVER_REPORTS = 10
LETTERS_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Standing:
    """How a partition stands: the last event committed for good, and what waits behind it.

    `letters` are the dead letters of the processor that wait for a person.
    """

    tp: TP
    committed: int
    backlog: Backlog
    letters: int


@dataclass(slots=True)
class Progress:
    """How far a processor has come; counters since the start of the process."""

    sequence: int = 0
    events: int = 0
    rows: int = 0
    dead_letters: int = 0
    blocked_by: str = ""
    moved_at: float = field(default_factory=monotonic)
    is_active: bool = False
    standing: Standing | None = None
    last_commit_at: datetime | None = None
    _counts: deque[tuple[float, int]] = field(
        default_factory=lambda: deque(maxlen=RATE_OVER_REPORTS + 1)
    )

    @property
    def events_per_s(self) -> float:
        """Return the rate of finished events over the last reports."""
        if len(self._counts) < 2:
            return 0.0
        (first_s, first), (last_s, last) = self._counts[0], self._counts[-1]
        return (last - first) / (last_s - first_s)

    def stands(self, standing: Standing | None, *, is_active: bool) -> None:
        """Note how the partition stands, None where that is not known; told each second."""
        before, self.standing, self.is_active = self.standing, standing, is_active
        if before is not None and standing is not None and standing.committed > before.committed:
            self.last_commit_at = datetime.now(UTC)
        self._counts.append((monotonic(), self.events))

    def advanced(self, *, sequence: int, events: int, rows: int) -> None:
        """Note a finished batch that ends at `sequence`."""
        self.sequence = sequence
        self.events += events
        self.rows += rows
        self.moved_at = monotonic()

    def blocked(self, reason: str) -> None:
        """Note that something the processor needs is away."""
        self.blocked_by = reason

    def unblocked(self) -> None:
        """Note that it is back."""
        self.blocked_by = ""


class Reporter(Service):  # type: ignore[misc]
    """Tells the supervisor once that the worker consumes, and then how far behind it is."""

    mundane_level = "debug"

    def __init__(
        self, app: AppT, tp: TP, progress: Progress, letters_subject: str, **kwargs: object
    ) -> None:
        super().__init__(**kwargs)
        self._letters_subject = letters_subject
        self._letters = 0
        self._letters_at = -LETTERS_EVERY_S
        self._app = app
        self._tp = tp
        self._progress = progress
        self._ready = False

    @Service.task  # type: ignore[untyped-decorator]
    async def _report(self) -> None:
        while not self.should_stop:
            await self._tell()
            await self.sleep(REPORT_EVERY_S)

    async def _tell(self) -> None:
        # Not app.consumer: that would build it before the app has started.
        consumer = self._app._consumer  # noqa: SLF001 - Faust has no public look without building
        if consumer is None or not consumer.started:
            self._idle("starting")
            return
        try:
            assignment = consumer.assignment()
        except ConsumerNotStarted:
            self._idle("connecting to NATS")
            return
        if self._tp not in assignment:
            owner = consumer.group.owner
            self._idle(f"standby behind {owner}" if owner else "waiting for its partitions")
            return
        if self._app.rebalancing:
            self._idle("taking its partitions over")
            return
        if not self._ready:
            self._ready = True
            notify_ready("consuming")
            log.info("consuming", topic=self._tp.topic)
        if not consumer.connection.is_connected:
            self._idle("NATS away, waiting for it", is_active=True)
            return
        committed = (consumer.group.committed(self._tp) or 1) - 1
        finished = max(self._progress.sequence, committed)
        try:
            backlog = await look_behind(consumer.connection, finished + 1)
            if monotonic() - self._letters_at >= LETTERS_EVERY_S:
                waiting = await waiting_letters(consumer.connection)
                self._letters = waiting.get(self._letters_subject, 0)
                self._letters_at = monotonic()
        except TransportError as error:
            self._idle(f"NATS away: {error}", is_active=True)
            return
        self._tell_lag(Standing(self._tp, committed, backlog, self._letters))

    def _idle(self, status: str, *, is_active: bool = False) -> None:
        """Say that the loop turns, and why no lag is known."""
        notify_alive(status)
        self._progress.stands(None, is_active=is_active)

    def _tell_lag(self, standing: Standing) -> None:
        progress, behind = self._progress, standing.backlog.events
        progress.stands(standing, is_active=True)
        if progress.blocked_by:
            notify_alive(f"{progress.blocked_by}; {behind} events behind")
            return
        if behind == 0:
            progress.moved_at = monotonic()
        elif monotonic() - progress.moved_at > STALL_LIMIT_S:
            log.error("no event finished", behind=behind, for_s=STALL_LIMIT_S)
            return
        letters = f", {standing.letters} dead letters" if standing.letters else ""
        lag_ms = standing.backlog.lag_ms
        notify_alive(f"{behind} events, {lag_ms} ms behind, {progress.rows} rows{letters}")
