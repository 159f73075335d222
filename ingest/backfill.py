"""Tell rows again while capture streams: `python -m ingest.backfill start|status|resume|…`.

`start` tells a table, a range of its keys or one merchant's rows, or with `--all` every published
table; with `--deletes` also which rows are gone that the stream believes alive. `--gap` tells what
closes a gap. One process of a slot works at a time; killed anywhere, `resume` goes on exactly where
it was. Status 0 when everything asked for is done, 1 with the reason in the log when not.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import psycopg
from nats.errors import Error as NatsError

from infra.telemetry import configure_logging, get_logger
from ingest import gaps, guardian, publisher, runs, telling
from ingest.errors import BackfillRefused, IngestError
from ingest.runs import Run, RunState, Scope
from ingest.settings import IngestSettings
from ingest.telling import Limits, Teller

LAG_MIB: Final = 256
PATIENCE_S: Final = 120.0

log = get_logger(__name__)


def scopes(arguments: argparse.Namespace, open_gaps: Sequence[int]) -> list[Scope]:
    """Return what `start` was asked to tell; raises `BackfillRefused` where that makes no sense."""
    part = (arguments.range_from, arguments.range_to)
    whole = arguments.all or arguments.gap is not None
    if arguments.gap is not None and arguments.gap not in open_gaps:
        raise BackfillRefused(f"gap {arguments.gap} is not open; open are {list(open_gaps)}")
    if arguments.gap is not None and arguments.merchant is not None:
        raise BackfillRefused("a gap is closed by whole tables, not by one merchant's rows")
    if whole == (arguments.table is not None):
        raise BackfillRefused("name one table, or say --all or --gap ID")
    if whole and any(part):
        raise BackfillRefused("a range of keys is of one table: name it")
    told = [table.value for table in gaps.TOLD_TABLES] if whole else [arguments.table]
    return [
        Scope(
            table=table,
            range_from=arguments.range_from,
            range_to=arguments.range_to,
            merchant_id=arguments.merchant,
            deletes=arguments.deletes or arguments.gap is not None,
        )
        for table in told
    ]


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def _work(settings: IngestSettings, arguments: argparse.Namespace) -> None:
    """Start or resume runs, and work until none is open."""
    limits = Limits(arguments.max_lag_mib * telling.MIB, arguments.patience_s)
    with guardian.open_database(settings) as database:
        if not runs.take_seat(database, settings.slot):
            raise BackfillRefused(
                "another process works on the backfills of this slot (PostgreSQL process "
                f"{runs.worker(database, settings.slot)}): wait for it, or pause its run"
            )
        if arguments.command == "start":
            known = [gap.id for gap in gaps.open_gaps(database, settings.slot)]
            wanted = scopes(arguments, known)
            with database.transaction():
                for scope in wanted:
                    run = runs.start_run(database, settings.slot, scope)
                    _tell(f"backfill {run.id} of {run.table_name}: about {run.estimate} rows")
        else:
            _moved(database, settings, arguments.run, RunState.OPEN)
        client = await publisher.connect(settings.nats_url, "giovang backfill")
        try:
            with telling.open_passage(settings) as passage:
                teller = Teller(settings, limits, (database, passage), client.jetstream(), _tell)
                loop = asyncio.get_running_loop()
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, teller.stop)
                await teller.work()
        finally:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client.close(), publisher.CLOSE_TIMEOUT_S)


def _moved(
    database: guardian.Database, settings: IngestSettings, run: int | None, to: RunState
) -> None:
    moved = runs.move(database, settings.slot, run, to)
    if not moved:
        which = "no backfill is" if run is None else f"backfill {run} is not"
        raise BackfillRefused(f"{which} open or paused")
    for number in moved:
        _tell(f"backfill {number} is {to}")


def _status(settings: IngestSettings, *, as_json: bool) -> None:
    with guardian.open_database(settings) as database:
        found = runs.list_runs(database, settings.slot)
        open_gaps = gaps.open_gaps(database, settings.slot)
        worker = runs.worker(database, settings.slot)
    if as_json:
        document = {
            "worker": worker,
            "gaps": [asdict(gap) for gap in open_gaps],
            "runs": [asdict(run) for run in found],
        }
        _tell(json.dumps(document, default=str))
        return
    for gap in open_gaps:
        _tell(f"gap {gap.id} is open since {gap.found_at:%Y-%m-%d %H:%M:%S %Z}: {gap.reason}")
    for run in found:
        _tell(_line(run, worker))
    if not found:
        _tell("no backfill was ever started")


def _line(run: Run, worker: int | None) -> str:
    parts = [f"backfill {run.id} of {run.table_name}"]
    ends = (run.range_from, run.range_to)
    if any(ends):
        parts.append(f"from {ends[0] or 'the beginning'} to {ends[1] or 'the end'}")
    if run.merchant_id is not None:
        parts.append(f"of merchant {run.merchant_id}")
    state = run.state
    if state == RunState.OPEN and worker is None:
        state = "open, and nobody works on it: resume it"
    told = f"{run.rows} of about {max(run.estimate, run.rows)} rows"
    if run.deletes:
        told += f", {run.gone} gone"
    because = f" ({run.reason})" if run.reason else ""
    return f"{' '.join(parts)}: {state}{because}; {told}, at {run.updated_at:%H:%M:%S}"


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ingest.backfill", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start", help="tell rows again")
    start.add_argument("table", nargs="?", choices=[table.value for table in gaps.TOLD_TABLES])
    start.add_argument("--all", action="store_true", help="every published table")
    start.add_argument("--from", dest="range_from", metavar="KEY", help="first key, included")
    start.add_argument("--to", dest="range_to", metavar="KEY", help="last key, included")
    start.add_argument("--merchant", metavar="ID", help="only this merchant's rows")
    start.add_argument("--deletes", action="store_true", help="also tell which rows are gone")
    start.add_argument("--gap", type=int, metavar="ID", help="tell all that closes this gap")
    resume = commands.add_parser("resume", help="go on with paused and left runs")
    for working in (start, resume):
        working.add_argument(
            "--max-lag-mib", type=int, default=LAG_MIB, help="wait while capture is further behind"
        )
        working.add_argument(
            "--patience-s", type=float, default=PATIENCE_S, help="pause after waiting so long"
        )
    status = commands.add_parser("status", help="list runs and open gaps")
    status.add_argument("--json", action="store_true")
    pause = commands.add_parser("pause", help="stop after the chunk at hand, to be resumed")
    cancel = commands.add_parser("cancel", help="stop for good; what was told stays told")
    for one in (resume, pause, cancel):
        one.add_argument("run", type=int, nargs="?", help="number of the run; all when left out")
    return parser


def main() -> int:
    """Do what the command line says by the environment's settings."""
    arguments = _arguments().parse_args()
    configure_logging("backfill")
    try:
        settings = IngestSettings()
        if arguments.command == "status":
            _status(settings, as_json=arguments.json)
        elif arguments.command in {"pause", "cancel"}:
            to = RunState.PAUSED if arguments.command == "pause" else RunState.CANCELLED
            with guardian.open_database(settings) as database:
                _moved(database, settings, arguments.run, to)
        else:
            asyncio.run(_work(settings, arguments))
    except (IngestError, psycopg.Error, NatsError, ValueError) as error:
        log.error("backfill not done", reason=" ".join(str(error).split()))  # noqa: TRY400
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
