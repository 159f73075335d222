"""What every processor does around its own work: wait out what is away, bury poison, tell progress.

A batch is acknowledged when `process` returns, so it returns only after the batch's effect is
durable. While something that the work needs is away, the batch waits and with it the stream:
nothing is dropped and nothing overtakes. A batch that cannot be finished because the worker is told
to stop raises InterruptedBatchError, and is read again.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import ClassVar, Protocol, TypeVar

from infra.telemetry import get_logger
from streams.progress import Progress
from streams.rows import Watermark, watermark_for
from streams.transport import Connection

log = get_logger(__name__)

T = TypeVar("T")


class LedgerMessage(Protocol):
    """What a processor sees of a message: `offset` is its sequence in the ledger's stream."""

    @property
    def subject(self) -> str: ...  # noqa: D102
    @property
    def headers(self) -> Mapping[str, bytes] | None: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102
    @property
    def offset(self) -> int: ...  # noqa: D102


class Burial(Protocol):
    """Where poison events go."""

    async def send(self, message: LedgerMessage, error: Exception, *, attempt: int) -> None:
        """Keep the event with the error as its reason; it is durable when this returns."""


class AwayError(Exception):
    """Something the work needs is away, busy or slow; nothing was done, so try again later."""


class InterruptedBatchError(Exception):
    """The worker is stopping while something is away: the batch stays unacknowledged."""


def no_table(name: str) -> MutableMapping[bytes, bytes]:
    """Refuse a table to a processor that runs without a worker."""
    raise LookupError(f"table {name!r} is kept by a worker, and there is none here")


def no_connection(name: str) -> Connection:
    """Refuse a connection to a processor that needs none."""
    raise LookupError(f"connection {name!r} is made by a worker, and there is none here")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a worker gives its processor.

    `pause` sleeps for seconds, or until told to stop. `table` returns a table by name, which
    outlives the process; it is asked for before the worker starts. `connect` returns a new,
    unopened connection to NATS by name, with the worker's own TLS and credentials.
    """

    deadletters: Burial
    progress: Progress
    pause: Callable[[float], Awaitable[object]]
    stopping: Callable[[], bool]
    table: Callable[[str], MutableMapping[bytes, bytes]] = no_table
    connect: Callable[[str], Connection] = no_connection


class Processor(ABC):
    """One question asked of every event; holds no state that a restart could miss."""

    needs: ClassVar[str]
    """The name of what the work needs, as status and log say it is away."""
    first_wait_s: ClassVar[float] = 0.25
    longest_wait_s: ClassVar[float] = 5.0

    def __init__(self, surroundings: Surroundings) -> None:
        self._deadletters = surroundings.deadletters
        self._progress = surroundings.progress
        self._pause = surroundings.pause
        self._stopping = surroundings.stopping

    @abstractmethod
    async def process(self, messages: Sequence[LedgerMessage]) -> None:
        """Make a batch's effect durable, in order; raises InterruptedBatchError."""

    @abstractmethod
    async def close(self) -> None:
        """Give back what the work needed, within a deadline."""

    async def until_back(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do the work; while it raises AwayError wait, longer each time, and do it again."""
        wait_s, away_since = self.first_wait_s, 0.0
        while True:
            try:
                await work()
            except AwayError as error:
                away_since = away_since or monotonic()
                self._progress.blocked(f"{self.needs} away, trying again: {error}")
                log.warning("away", what=self.needs, error=str(error), wait_s=round(wait_s, 2))
                await self._pause(wait_s * random.uniform(0.5, 1.0))
                if self._stopping():
                    raise InterruptedBatchError from error
                wait_s = min(wait_s * 2, self.longest_wait_s)
            else:
                if away_since:
                    log.info("back", what=self.needs, away_s=round(monotonic() - away_since, 1))
                self._progress.unblocked()
                return

    async def understood(self, message: LedgerMessage, reading: Callable[[], T]) -> T | None:
        """Return what `reading` makes of an event; one it fails on is buried, and gives None."""
        try:
            return reading()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this event's alone
            await self.bury(message, error)
            return None

    async def bury(self, message: LedgerMessage, error: Exception, attempt: int = 1) -> None:
        """Keep a poison event as a dead letter; it is durable when this returns."""
        await self._deadletters.send(message, error, attempt=attempt)
        self._progress.dead_letters += 1

    def finished(self, messages: Sequence[LedgerMessage], rows: int) -> None:
        """Note that a batch is done, which moved `rows` rows."""
        self._progress.advanced(sequence=messages[-1].offset, events=len(messages), rows=rows)


def last_watermark(messages: Sequence[LedgerMessage]) -> Watermark | None:
    """Return how far a batch reads the ledger; None where no event of it tells."""
    for message in reversed(messages):
        watermark = watermark_for(message.headers or {}, message.offset)
        if watermark is not None:
            return watermark
    return None
