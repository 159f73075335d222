"""Run one bench by name: `python -m tests.bench NAME [--short] [--json] [--seed N]`.

The report goes to standard output, progress to standard error. An unknown name ends with status 2
and the list of known ones; a bench that could not finish ends with status 1 and its reason.
"""

import signal
import sys
from collections.abc import Callable
from types import FrameType

import typer
from rich.console import Console
from rich.table import Table

from tests.bench import capture, core, pipeline, realtime, streams
from tests.bench.frame import BenchError, Options, Report, progress_to_stderr

DEFAULT_SEED = 7
BENCHES: dict[str, Callable[[Options], Report]] = {
    capture.NAME: capture.run,
    core.NAME: core.run,
    pipeline.NAME: pipeline.run,
    realtime.NAME: realtime.run,
    streams.NAME: streams.run,
}

cli = typer.Typer(add_completion=False)


@cli.command()
def bench(
    name: str = typer.Argument(help=f"Which bench: {', '.join(BENCHES)}; or `list`."),
    short: bool = typer.Option(False, "--short", help="End within a minute."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
    seed: int = typer.Option(DEFAULT_SEED, "--seed", help="Fixes the workload."),
) -> None:
    """Measure the product beside baselines, on this machine, in one run."""
    if name == "list":
        for known, run in BENCHES.items():
            typer.echo(f"{known}: {(run.__doc__ or '').splitlines()[0]}")
        return
    if name not in BENCHES:
        typer.echo(f"no bench {name!r}; there are: {', '.join(sorted(BENCHES))}", err=True)
        raise typer.Exit(2)
    signal.signal(signal.SIGTERM, _end)
    try:
        report = BENCHES[name](Options(seed=seed, short=short, progress=progress_to_stderr()))
    except BenchError as error:
        typer.echo(f"bench {name}: {error}", err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(report.as_json())
    else:
        _print_table(report)


def _end(_signal: int, _frame: FrameType | None) -> None:
    """Turn SIGTERM into an orderly unwinding, so that nothing started here stays behind."""
    sys.exit(143)


def _print_table(report: Report) -> None:
    console = Console()
    table = Table("", "name", "value", title=f"bench {report.bench}, seed {report.seed}")
    for kind, values in (
        ("figure", report.figures),
        ("baseline", report.baselines),
        ("ratio", report.ratios),
    ):
        for name, value in values.items():
            table.add_row(kind, name, f"{value:,.3f}" if value < 100 else f"{value:,.0f}")
    console.print(table)
    console.print("machine: " + ", ".join(f"{k}={v}" for k, v in report.machine.items()))
    console.print(report.method)


if __name__ == "__main__":
    cli()
