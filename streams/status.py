"""How the processors stand: `python -m streams.status [--json]`.

Everything is read from NATS: who owns each processor's partitions, how far each was committed, how
many events wait behind that and how long the first of them has, how many dead letters there are.
Rates are what moved while the command watched. Nothing is changed.

Status 0: all is well. Status 1: a processor that nobody runs, is too far behind, or has dead
letters. Status 2: NATS does not answer, or an argument is wrong.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import Annotated, Final

import orjson
import typer
from nats.js.errors import NotFoundError
from rich.console import Console
from rich.table import Table

from infra.telemetry import configure_logging
from streams.backlog import look_behind, waiting_letters
from streams.contract import (
    LEDGER_STREAM,
    REALTIME_APP,
    REALTIME_DEADLETTER_SUBJECT,
    RISK_APP,
    RISK_DEADLETTER_SUBJECT,
    WAREHOUSE_APP,
    WAREHOUSE_DEADLETTER_SUBJECT,
)
from streams.settings import OnlookerSettings
from streams.transport import Connection, TransportError, connected, look

CONNECT_LIMIT_S: Final = 5.0
LONGEST_LAG_MS: Final = 60_000
PROCESSORS: Final[Mapping[str, str]] = {
    WAREHOUSE_APP: WAREHOUSE_DEADLETTER_SUBJECT,
    REALTIME_APP: REALTIME_DEADLETTER_SUBJECT,
    RISK_APP: RISK_DEADLETTER_SUBJECT,
}


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of a processor. `lag_ms` is the age of the first event that waits, 0 for none.

    `events_per_s` is what was committed while the command watched.
    """

    topic: str
    partition: int
    committed: int
    committed_at: datetime | None
    behind_events: int
    lag_ms: int
    events_per_s: float


@dataclass(frozen=True, slots=True)
class ProcessorStatus:
    """One processor: who runs it (empty for nobody), its partitions, its dead letters."""

    consumer: str
    owner: str
    generation: int
    partitions: tuple[Partition, ...]
    dead_letters: int

    @property
    def complaints(self) -> list[str]:
        """What a person should look at, one sentence each."""
        found = []
        if not self.owner:
            found.append(f"{self.consumer} is run by nobody")
        found += [
            f"{self.consumer} is {one.lag_ms / 1000:.0f} s behind on {one.topic}"
            for one in self.partitions
            if one.lag_ms > LONGEST_LAG_MS
        ]
        if self.dead_letters:
            letters = "letter" if self.dead_letters == 1 else "letters"
            found.append(
                f"{self.consumer} has {self.dead_letters} dead {letters}: ./giovang deadletter list"
            )
        return found


async def measure(connection: Connection, watch_s: float) -> list[ProcessorStatus]:
    """Look at every processor twice, `watch_s` seconds apart. Raises TransportError."""
    begun = monotonic()
    before = {consumer: await _committed(connection, consumer) for consumer in PROCESSORS}
    await asyncio.sleep(watch_s)
    letters = await waiting_letters(connection)
    return [
        await _processor(
            connection, consumer, before[consumer], begun, letters.get(PROCESSORS[consumer], 0)
        )
        for consumer in PROCESSORS
    ]


async def _processor(
    connection: Connection,
    consumer: str,
    before: Mapping[tuple[str, int], int],
    begun: float,
    dead_letters: int,
) -> ProcessorStatus:
    group = await look(connection, consumer)
    if group is None:
        return ProcessorStatus(consumer, "", 0, (), dead_letters)
    partitions = []
    for position in group.positions:
        offset = position.offset or 1
        backlog = await look_behind(connection, offset)
        moved = offset - before.get((position.topic, position.partition), offset)
        partitions.append(
            Partition(
                position.topic,
                position.partition,
                offset - 1,
                position.committed_at if position.offset else None,
                backlog.events,
                backlog.lag_ms,
                round(moved / (monotonic() - begun), 1),
            )
        )
    return ProcessorStatus(consumer, group.owner, group.generation, tuple(partitions), dead_letters)


async def _committed(connection: Connection, consumer: str) -> dict[tuple[str, int], int]:
    group = await look(connection, consumer)
    positions = () if group is None else group.positions
    return {(one.topic, one.partition): one.offset or 1 for one in positions}


def as_table(found: Sequence[ProcessorStatus]) -> Table:
    """Return what a person sees."""
    table = Table(
        "processor", "run by", "committed", "last commit", "behind", "lag", "rate", "dead"
    )
    for one in found:
        if not one.partitions:
            table.add_row(one.consumer, one.owner or "nobody", "", "never", "", "", "", "")
        for part in one.partitions:
            at = part.committed_at
            table.add_row(
                one.consumer,
                one.owner or "nobody",
                f"{part.topic}[{part.partition}] {part.committed}",
                "never" if at is None else at.astimezone(UTC).strftime("%H:%M:%S"),
                f"{part.behind_events} events",
                f"{part.lag_ms} ms",
                f"{part.events_per_s:g}/s",
                str(one.dead_letters),
            )
    return table


cli = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@cli.command()
def status(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, for programs.")] = False,
    watch_s: Annotated[
        float, typer.Option("--watch", min=0.1, max=60, help="Seconds over which rates are taken.")
    ] = 1.0,
) -> None:
    """Show who runs each processor, how far it is, how far behind, how fast."""
    found = asyncio.run(_look(watch_s))
    complaints = [sentence for one in found for sentence in one.complaints]
    if as_json:
        document = {"processors": [asdict(one) for one in found], "complaints": complaints}
        sys.stdout.write(orjson.dumps(document).decode() + "\n")
    else:
        Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(as_table(found))
        sys.stdout.writelines(f"{sentence}\n" for sentence in complaints)
    if complaints:
        raise typer.Exit(1)


async def _look(watch_s: float) -> list[ProcessorStatus]:
    url = OnlookerSettings().nats_url.get_secret_value()
    async with connected(url, "giovang streams status", CONNECT_LIMIT_S) as connection:
        return await measure(connection, watch_s)


def main() -> int:
    """Run the command; what a person can mend is one sentence."""
    configure_logging("streams-status", level=40)
    try:
        cli(prog_name="./giovang streams status")
    except NotFoundError:
        sys.stderr.write(f"giovang: stream {LEDGER_STREAM} is missing: ./giovang capture status\n")
        return 2
    except TransportError as error:
        sys.stderr.write(f"giovang: NATS does not answer: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
