"""Run chaos by name: `python -m tests.chaos capture|streams [--kills N] [--seed S] [--short]`.

Progress goes to standard error, the account to standard output. Any difference between what there
must be and what there is ends with status 1, what differs, and the command that repeats it.
"""

import os
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated, TypeVar

import typer

from tests.chaos import capture, streams
from tests.chaos.storm import Size
from tests.fixtures.services import default_tree

DEFAULT_KILLS = 100

cli = typer.Typer(add_completion=False)


@cli.callback()
def chaos() -> None:
    """Kill the product's processes on a seeded schedule and compare what is left with the truth."""


_Account = TypeVar("_Account")
Kills = Annotated[int, typer.Option("--kills", min=1, help="How many to kill.")]
Seed = Annotated[
    int | None, typer.Option("--seed", help="Fixes the schedule; any other run draws one.")
]
Short = Annotated[bool, typer.Option("--short", help="Smaller load, shorter faults.")]


@cli.command("capture")
def capture_chaos(kills: Kills = DEFAULT_KILLS, seed: Seed = None, short: Short = False) -> None:
    """Kill capture, NATS and PostgreSQL under load; compare stream and database row by row."""
    size = capture.SHORT if short else capture.LONG
    account = _run("capture", capture.run, kills, seed, size)
    lines = [
        (
            f"seed {account.seed}: {account.kills} kills, {account.changes} changes, "
            f"same set, same order, zero extra, in {account.duration_s:.0f} s"
        ),
        *_suffered(account.faults, account.recovered_s),
        (
            f"capture processes started: {account.starts}; writers lost their connection: "
            f"{account.lost_connections} times"
        ),
        *(f"  ended {count} times: {reason}" for reason, count in account.reasons.most_common()),
        "rolling checksum of each table, equal at source and stream:",
        *(
            f"  {table}: {checksum[:32]} over {account.counts[table]} changes"
            for table, checksum in account.checksums.items()
        ),
    ]
    typer.echo("\n".join(lines))


@cli.command("streams")
def streams_chaos(kills: Kills = DEFAULT_KILLS, seed: Seed = None, short: Short = False) -> None:
    """Kill workers, NATS and TimescaleDB under load; compare stream and tables row by row."""
    size = streams.SHORT if short else streams.LONG
    account = _run("streams", streams.run, kills, seed, size)
    lines = [
        (
            f"seed {account.seed}: {account.kills} kills, {account.events} events, every one in "
            f"its table once, in order, zero extra, in {account.duration_s:.0f} s"
        ),
        *_suffered(account.faults, account.recovered_s),
        f"workers started: {account.starts}",
        *(f"  {table}: {rows} rows" for table, rows in account.rows.items()),
    ]
    typer.echo("\n".join(lines))


def _run(
    name: str,
    run: Callable[[int, int, Size, Path, Callable[[str], None]], _Account],
    kills: int,
    seed: int | None,
    size: Size,
) -> _Account:
    """Run a suite; a difference ends this program."""
    signal.signal(signal.SIGTERM, _end)
    seed = int.from_bytes(os.urandom(4)) if seed is None else seed
    given = os.environ.get("GIOVANG_TEST_POSTGRES_TREE")
    begun = time.monotonic()

    def progress(step: str) -> None:
        typer.echo(f"[{time.monotonic() - begun:6.1f} s] {step}", err=True)

    repeat = f"python -m tests.chaos {name} --kills {kills} --seed {seed}"
    repeat += "" if size.long_stalls else " --short"
    progress(f"seed {seed}")
    try:
        return run(kills, seed, size, Path(given) if given else default_tree(), progress)
    except AssertionError as difference:
        typer.echo(f"FAILED: {difference}\nrepeat with: {repeat}", err=True)
        raise typer.Exit(1) from difference
    except BaseException:
        typer.echo(f"not finished; repeat with: {repeat}", err=True)
        raise


def _suffered(faults: Counter[str], recovered_s: list[float]) -> list[str]:
    """Return what was done to the system, and how long it took to recover."""
    return [
        *(f"  {fault}: {count}" for fault, count in sorted(faults.items())),
        (
            f"seconds to recover: p50 {statistics.median(recovered_s):.1f}, "
            f"max {max(recovered_s):.1f}, {len(recovered_s)} times"
        ),
    ]


def _end(_signal: int, _frame: FrameType | None) -> None:
    """Turn SIGTERM into an orderly unwinding, so that nothing started here stays behind."""
    sys.exit(143)


if __name__ == "__main__":
    cli()
