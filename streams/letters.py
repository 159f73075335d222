"""Dead letters for a person: `python -m streams.letters list | show | retry | discard | discarded`.

A retry gives the event, as it was or corrected, to the processor that failed on it, beside a worker
that goes on: effects are recognised by the event's id, so neither the order among different keys
nor a retry that was killed half-way matters. The letter is removed after the effect is durable. A
letter that fails again stays, with its attempt counted and the new reason, and later letters of its
key wait for it. A letter that is not to be processed any more is discarded: it is kept elsewhere,
with who did so, when and why, and nobody waits for it.

Status 0: done. Status 1: a letter failed again, or there is none such. Status 2: NATS, or what the
processor needs, does not answer, or an argument is wrong.
"""

import asyncio
import getpass
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Annotated, Final

import orjson
import typer
from faust.utils.urls import urllist
from rich.console import Console
from rich.table import Table

from infra.telemetry import configure_logging
from ingest.contract import HEADER_EVENT_ID
from streams import realtime, warehouse
from streams.contract import REALTIME_APP, RISK_APP, WAREHOUSE_APP, DeadLetterHeader
from streams.letterbox import MOST_LISTED, Letter, LetterBox, LetterError, corrected
from streams.processor import InterruptedBatchError, LedgerMessage, Processor, Surroundings
from streams.progress import Progress
from streams.risk import again
from streams.risk.rules import RulesError
from streams.settings import OnlookerSettings, RealtimeSettings, RiskSettings, StreamsSettings
from streams.transport import Connection, TransportError, connected

AWAY_LIMIT_S: Final = 15.0
CONNECT_LIMIT_S: Final = 5.0
WHY_LIMIT: Final = 500

# Settings are read when a letter of that consumer is retried, so each needs only its own.
PROCESSORS: Final[Mapping[str, Callable[[Surroundings], Processor]]] = {
    WAREHOUSE_APP: lambda around: warehouse.processor(StreamsSettings(), around),
    REALTIME_APP: lambda around: realtime.processor(RealtimeSettings(), around),
    RISK_APP: lambda around: again.processor(RiskSettings(), around),
}


class _Rejection:
    """Takes the place of the dead letters in a retry: what fails again is told, not sent."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    async def send(self, message: LedgerMessage, error: Exception, *, attempt: int) -> None:  # noqa: ARG002
        """Note why the event failed again."""
        self.error = error


async def retry(box: LetterBox, letters: Sequence[Letter], tell: Callable[[str], None]) -> int:
    """Give letters to their processors, in the ledger's order; returns how many failed again.

    Raises LetterError where a processor is not known, or what it needs stays away.
    """
    failed: dict[tuple[str, str], int] = {}
    waiting = 0
    for letter in sorted(letters, key=lambda one: one.offset):
        owner = letter.consumer, letter.key
        if letter.key and owner in failed:
            tell(f"letter {letter.number} waits for letter {failed[owner]}, of the same key")
            waiting += 1
            continue
        error = await _process(letter)
        if error is None:
            await box.remove(letter)
            tell(f"letter {letter.number} done: event {letter.told.get(HEADER_EVENT_ID, '?')}")
        else:
            await box.replace(letter, error)
            failed[owner] = letter.number
            tell(f"letter {letter.number} failed again: {error}")
    return len(failed) + waiting


async def _process(letter: Letter) -> Exception | None:
    """Do what the processor does with the event; returns why it failed again, or None."""
    make = PROCESSORS.get(letter.consumer)
    if make is None:
        known = ", ".join(PROCESSORS)
        raise LetterError(f"nobody knows consumer {letter.consumer!r}; there are {known}", 2)
    rejection = _Rejection()
    progress = Progress()
    give_up_at = monotonic() + AWAY_LIMIT_S
    processor = make(
        Surroundings(
            deadletters=rejection,
            progress=progress,
            pause=asyncio.sleep,
            stopping=lambda: monotonic() >= give_up_at,
            connect=_connect,
        )
    )
    try:
        await processor.process([letter])
    except InterruptedBatchError as error:
        told = f"letter {letter.number} was not tried: {progress.blocked_by}"
        raise LetterError(told, 2) from error
    finally:
        await processor.close()
    return rejection.error


cli = typer.Typer(
    help="Events that could not be processed: look at them, and give them back once mended.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
Consumer = Annotated[str | None, typer.Option("--consumer", help="Only letters of this one.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, for programs.")]


@cli.command("list")
def list_letters(
    *,
    consumer: Consumer = None,
    limit: Annotated[int, typer.Option(min=1, max=MOST_LISTED, help="At most so many.")] = 50,
    after: Annotated[int, typer.Option(min=0, help="Begin after this letter.")] = 0,
    as_json: AsJson = False,
) -> None:
    """List dead letters, oldest first."""
    found = asyncio.run(_chosen(consumer, after=after, most=limit))
    if as_json:
        sys.stdout.write(orjson.dumps([letter.as_json() for letter in found]).decode() + "\n")
        return
    if not found:
        sys.stdout.write("no dead letters\n")
        return
    table = Table("letter", "failed at", "consumer", "subject", "sequence", "try", "reason")
    for letter in found:
        table.add_row(
            str(letter.number),
            letter.told.get(DeadLetterHeader.FAILED_AT, "")[:19],
            letter.consumer,
            letter.subject,
            str(letter.offset),
            str(letter.attempt),
            letter.told.get(DeadLetterHeader.REASON, ""),
        )
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)


@cli.command()
def show(
    number: Annotated[int, typer.Argument(min=1, help="The letter's number.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show one letter whole: where it failed, and the event itself."""
    letter = asyncio.run(_one(number))
    if as_json:
        sys.stdout.write(orjson.dumps(letter.as_json()).decode() + "\n")
        return
    for name, value in letter.as_json().items():
        if name not in {"traceback", "payload"}:
            sys.stdout.write(f"{name:<10} {'' if value is None else value}\n")
    sys.stdout.write(f"\n{letter.traceback.rstrip()}\n\n{_readable(letter.value)}\n")


@cli.command("retry")
def retry_letters(
    numbers: Annotated[list[int] | None, typer.Argument(help="Letters to retry.")] = None,
    *,
    every: Annotated[bool, typer.Option("--all", help="All letters.")] = False,
    consumer: Consumer = None,
    payload: Annotated[
        Path | None,
        typer.Option(help="A corrected event for the one letter named; its id must be the same."),
    ] = None,
) -> None:
    """Give letters back to their processor, in the ledger's order; done ones are removed."""
    chosen = numbers or []
    if bool(chosen) == (every or consumer is not None):
        raise LetterError("name letters, or say --all or --consumer NAME", 2)
    if payload is not None and len(chosen) != 1:
        raise LetterError("--payload corrects exactly one letter", 2)
    text = None if payload is None else _file(payload)
    failed = asyncio.run(_retry(chosen, consumer, text))
    if failed:
        raise typer.Exit(1)


@cli.command()
def discard(
    numbers: Annotated[list[int], typer.Argument(min=1, help="Letters to discard.")],
    *,
    why: Annotated[
        str | None, typer.Option("--why", help="Why they are not to be processed any more.")
    ] = None,
    by: Annotated[str | None, typer.Option("--by", help="Who says so; else the user.")] = None,
) -> None:
    """Take letters out for good, with a record of who did so and why; none holds others up."""
    if why is None and sys.stdin.isatty():
        why = typer.prompt("Why are they not to be processed any more?")
    reason, person = (" ".join((text or "").split()) for text in (why, by or _user()))
    if not 0 < len(reason) <= WHY_LIMIT or not 0 < len(person) <= WHY_LIMIT:
        raise LetterError(f'say why in at most {WHY_LIMIT} letters: --why "..."', 2)
    asyncio.run(_discard(numbers, reason, person))


@cli.command()
def discarded(
    *,
    limit: Annotated[int, typer.Option(min=1, max=MOST_LISTED, help="At most so many.")] = 50,
    after: Annotated[int, typer.Option(min=0, help="Begin after this record.")] = 0,
    as_json: AsJson = False,
) -> None:
    """List the letters that were discarded, with who did so, when and why."""
    found = asyncio.run(_discarded(after=after, most=limit))
    if as_json:
        records = [{"record": one.number, **one.as_json(), **one.discarded} for one in found]
        sys.stdout.write(orjson.dumps(records).decode() + "\n")
        return
    if not found:
        sys.stdout.write("no discarded letters\n")
        return
    table = Table("record", "letter", "discarded at", "by", "why", "consumer", "event", "reason")
    for letter in found:
        told = letter.discarded
        table.add_row(
            str(letter.number),
            str(told["letter"]),
            told["discarded_at"][:19],
            told["discarded_by"],
            told["why"],
            letter.consumer,
            letter.told.get(HEADER_EVENT_ID, ""),
            letter.told.get(DeadLetterHeader.REASON, ""),
        )
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)


async def _discard(numbers: Sequence[int], why: str, by: str) -> None:
    """Discard all letters or, where there is none of a number, none."""
    async with _box() as box:
        letters = [await box.letter(number) for number in dict.fromkeys(numbers)]
        for letter in letters:
            await box.discard(letter, by=by, why=why)
            _tell(f"letter {letter.number} discarded by {by}; ./giovang deadletter discarded")


async def _discarded(*, after: int, most: int) -> list[Letter]:
    async with _box() as box:
        return [letter async for letter in box.discarded(after=after, most=most)]


async def _retry(numbers: Sequence[int], consumer: str | None, payload: bytes | None) -> int:
    async with _box() as box:
        if numbers:
            letters = [await box.letter(number) for number in dict.fromkeys(numbers)]
        else:
            letters = [one async for one in box.letters() if consumer in {None, one.consumer}]
        if payload is not None:
            letters = [corrected(letters[0], payload)]
        if not letters:
            sys.stdout.write("no dead letters\n")
        return await retry(box, letters, _tell)


async def _chosen(consumer: str | None, *, after: int, most: int) -> list[Letter]:
    found: list[Letter] = []
    async with _box() as box:
        async for letter in box.letters(after=after):
            if consumer in {None, letter.consumer}:
                found.append(letter)
            if len(found) >= most:
                break
    return found


async def _one(number: int) -> Letter:
    async with _box() as box:
        return await box.letter(number)


@asynccontextmanager
async def _box() -> AsyncIterator[LetterBox]:
    url = OnlookerSettings().nats_url.get_secret_value()
    async with connected(url, "giovang dead letters", CONNECT_LIMIT_S) as connection:
        yield LetterBox(connection)


def _connect(name: str) -> Connection:
    """Return an unopened connection for a processor."""
    return Connection(urllist(OnlookerSettings().nats_url.get_secret_value()), name)


def _user() -> str:
    """Return who runs the command: behind sudo and `./giovang`, who called them."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number only
        return f"user {os.getuid()}"


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _readable(payload: bytes | None) -> str:
    try:
        return orjson.dumps(orjson.loads(payload or b""), option=orjson.OPT_INDENT_2).decode()
    except orjson.JSONDecodeError:
        return (payload or b"").decode(errors="replace")


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise LetterError(f"{path} cannot be read: {error.strerror}", 2) from error


def main() -> int:
    """Run the command line; what a person can mend is one sentence."""
    configure_logging("letters", level=40)
    try:
        cli(prog_name="./giovang deadletter")
    except LetterError as error:
        sys.stderr.write(f"giovang: {error}\n")
        return error.status
    except RulesError as error:
        sys.stderr.writelines(f"giovang: {mistake}\n" for mistake in error.mistakes)
        return 2
    except TransportError as error:
        sys.stderr.write(f"giovang: NATS does not answer: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
