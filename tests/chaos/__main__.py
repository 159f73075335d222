"""Run chaos by name: `python -m tests.chaos capture [--kills N] [--seed S] [--short]`.

Progress goes to standard error, the account to standard output. Any difference between what was
committed and what was streamed ends with status 1, what differs, and the command that repeats it.
"""

import os
import signal
import statistics
import sys
import time
from pathlib import Path
from types import FrameType

import typer

from tests.chaos import capture
from tests.fixtures.services import default_tree

DEFAULT_KILLS = 100

cli = typer.Typer(add_completion=False)


@cli.callback()
def chaos() -> None:
    """Kill the product's processes on a seeded schedule and compare what is left with the truth."""


@cli.command("capture")
def capture_chaos(
    kills: int = typer.Option(DEFAULT_KILLS, "--kills", min=1, help="How many to kill."),
    seed: int = typer.Option(None, "--seed", help="Fixes the schedule; any other run draws one."),
    short: bool = typer.Option(False, "--short", help="Smaller load, shorter faults."),
) -> None:
    """Kill capture, NATS and PostgreSQL under load; compare stream and database row by row."""
    signal.signal(signal.SIGTERM, _end)
    seed = int.from_bytes(os.urandom(4)) if seed is None else seed
    given = os.environ.get("GIOVANG_TEST_POSTGRES_TREE")
    begun = time.monotonic()

    def progress(step: str) -> None:
        typer.echo(f"[{time.monotonic() - begun:6.1f} s] {step}", err=True)

    repeat = f"python -m tests.chaos capture --kills {kills} --seed {seed}"
    repeat += " --short" if short else ""
    progress(f"seed {seed}")
    size = capture.SHORT if short else capture.LONG
    try:
        account = capture.run(kills, seed, size, Path(given) if given else default_tree(), progress)
    except AssertionError as difference:
        typer.echo(f"FAILED: {difference}\nrepeat with: {repeat}", err=True)
        raise typer.Exit(1) from difference
    except BaseException:
        typer.echo(f"not finished; repeat with: {repeat}", err=True)
        raise
    typer.echo(_told(account))


def _told(account: capture.Account) -> str:
    """Return the final account."""
    lines = [
        (
            f"seed {account.seed}: {account.kills} kills, {account.changes} changes, "
            f"same set, same order, zero extra, in {account.duration_s:.0f} s"
        ),
        *(f"  {fault}: {count}" for fault, count in sorted(account.faults.items())),
        (
            f"seconds to recover: p50 {statistics.median(account.recovered_s):.1f}, "
            f"max {max(account.recovered_s):.1f}, {len(account.recovered_s)} times"
        ),
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
    return "\n".join(lines)


def _end(_signal: int, _frame: FrameType | None) -> None:
    """Turn SIGTERM into an orderly unwinding, so that nothing started here stays behind."""
    sys.exit(143)


if __name__ == "__main__":
    cli()
