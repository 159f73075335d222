"""The auditor: `python -m api.auditor verify` proves the audit trail, or names what was done to it.

It reads as giovang_operator and writes nothing. Status 0 means every sealed row is as it was when
it was sealed; 1 that something was changed, removed or inserted; 2 that this could not be verified,
because the database does not answer or an argument is wrong.
"""

import asyncio
import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated, Final

import psycopg
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from api.audit import verification
from api.audit.model import Verification
from api.database import Database
from api.errors import DatabaseUnavailable
from api.settings import AuditorSettings

BROKEN: Final = 1
NOT_VERIFIED: Final = 2

cli = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
_console = Console(highlight=False, soft_wrap=True)
_errors = Console(stderr=True, highlight=False, soft_wrap=True)


@cli.callback()
def audit() -> None:
    """Prove the audit trail: who wrote what, before and after."""


@cli.command()
def verify(
    since: Annotated[
        str | None,
        typer.Option("--since", help="Only rows of this UTC date or moment and later (ISO 8601)."),
    ] = None,
    expect_head: Annotated[
        str | None,
        typer.Option("--expect-head", help="A head digest noted earlier, kept somewhere else."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,  # noqa: FBT002
) -> None:
    """Recompute the chain of digests and name the first row that does not fit.

    Keep the head it prints outside this database: given back by --expect-head, it also proves that
    nobody with all rights wrote the whole chain anew.
    """
    begin, head = _moment(since), _digest(expect_head)
    # The pool's trouble is told in one sentence at the end.
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
    try:
        settings = AuditorSettings()
        with _progress() as progress:
            found = asyncio.run(_verify(settings, begin, head, progress))
    except (DatabaseUnavailable, psycopg.Error) as error:
        _errors.print(f"audit: not verified: {_reason(error)}", markup=False)
        raise typer.Exit(NOT_VERIFIED) from error
    except ValidationError as error:
        names = ", ".join(f"GIOVANG_API_{item['loc'][0]!s}".upper() for item in error.errors())
        _errors.print(f"audit: not verified: {names} is missing or malformed", markup=False)
        raise typer.Exit(NOT_VERIFIED) from error
    if as_json:
        typer.echo(json.dumps(_as_json(found), indent=2))
    else:
        _print(found)
    if not found.intact:
        raise typer.Exit(BROKEN)


async def _verify(
    settings: AuditorSettings,
    since: datetime | None,
    expected_head: bytes | None,
    progress: verification.Progress | None,
) -> Verification:
    url = settings.operator_url.get_secret_value()
    async with Database(url, application_name="giovang-auditor", pool_size=1) as database:
        return await verification.verify(
            database, since=since, expected_head=expected_head, progress=progress
        )


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter("an ISO 8601 date or moment", param_hint="--since") from error
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def _digest(text: str | None) -> bytes | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9a-fA-F]{64}", text):
        raise typer.BadParameter("64 hexadecimal digits", param_hint="--expect-head")
    return bytes.fromhex(text)


@contextmanager
def _progress() -> Iterator[verification.Progress | None]:
    """Show how far it is where a person looks on; elsewhere say nothing."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("verifying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_errors, transient=True) as bar:
        task = bar.add_task("verifying", total=None)
        yield lambda done, of: bar.update(task, completed=done, total=of)


def _as_json(found: Verification) -> dict[str, object]:
    first = found.first
    return {
        "intact": found.intact,
        "verified_rows": found.verified,
        "archived_rows": found.archived,
        "waiting_rows": found.waiting,
        "head": {"seq": found.head_seq, "digest": found.head_digest},
        "sealed_through": _iso(found.sealed_through),
        "expected_head_seq": found.expected_head_seq,
        "flaws": found.flaws,
        "flaws_by_kind": found.by_flaw,
        "first": None
        if first is None
        else {
            "flaw": first.flaw,
            "log_id": first.log_id,
            "event_time": _iso(first.event_time),
            "seq": first.seq,
            "sentence": first.sentence(),
        },
    }


def _print(found: Verification) -> None:
    lines = [
        ("verified", f"{found.verified:,} rows"),
        ("archived", f"{found.archived:,} rows, by their links") if found.archived else None,
        ("waiting", f"{found.waiting:,} rows for their seal"),
        ("sealed through", _iso(found.sealed_through) or "nothing yet"),
        ("head", f"{found.head_digest} (link {found.head_seq:,})"),
    ]
    for name, text in filter(None, lines):
        _console.print(f"{name:<15}{text}", markup=False)
    if found.expected_head_seq is not None:
        behind = found.head_seq - found.expected_head_seq
        _console.print(f"{'expected head':<15}link {found.expected_head_seq:,}, {behind:,} before")
    if found.first is None:
        _console.print("[green]intact[/]         nothing was changed, removed or inserted")
        return
    _console.print("[red]broken[/]         ", end="")
    _console.print(found.first.sentence(), markup=False)
    if found.flaws > 1:
        kinds = ", ".join(f"{count:,} {flaw}" for flaw, count in found.by_flaw.items())
        _console.print(f"{'':<15}and {found.flaws - 1:,} more: {kinds} in all", markup=False)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _reason(error: DatabaseUnavailable | psycopg.Error) -> str:
    if isinstance(error, psycopg.errors.UndefinedTable):
        return "the database has no audit chain yet; apply its migrations"
    if isinstance(error, DatabaseUnavailable):
        return "the database does not answer"
    return type(error).__name__


if __name__ == "__main__":
    cli()
