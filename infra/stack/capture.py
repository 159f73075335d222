"""`./giovang capture …`: how the running stack's capture stands, backfills, checks, provisioning.

Each word becomes the room's own command with the room's variables, so its exit status is its own.
The check of the checkout's migrations runs on an empty database of its own on the ledger's cluster,
which is dropped again whatever happens. Where nothing can be told `CannotTellError` is, status 2.
"""

import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Final, NoReturn

import psycopg
import typer
from psycopg import sql

from infra.stack import commands, environment
from infra.stack.accounts import Account
from infra.stack.environment import Stack
from infra.stack.postgres import Cluster
from infra.stack.process import base_environment
from infra.stack.services import room_account
from infra.stack.settings import CHECKOUT

MIGRATIONS_TIMEOUT_S: Final = 180.0
CHECK_TIMEOUT_S: Final = 60.0
CONNECT_TIMEOUT_S: Final = 10


words = typer.Typer(
    help="Capture, from the ledger's log to the stream: how it stands, what to mend.",
    no_args_is_help=True,
)


@words.command("status", context_settings=commands.PASS_ON, add_help_option=False)
def status(context: typer.Context) -> None:
    """Say how capture stands [--json]. Status 0 well, 1 not, 2 unknown."""
    _enter("status", context.args)


@words.command("backfill", context_settings=commands.PASS_ON, add_help_option=False)
def backfill(context: typer.Context) -> None:
    """Tell rows again: start, status, resume, pause, cancel."""
    _enter("backfill", context.args or ["--help"])


@words.command("provision", context_settings=commands.PASS_ON, add_help_option=False)
def provision(context: typer.Context) -> None:
    """Make slot, offset and stream, or bring them forward."""
    _enter("provision", context.args)


@words.command("check")
def check(
    *,
    live: Annotated[
        bool, typer.Option("--live", help="Check the running ledger, not the checkout.")
    ] = False,
) -> None:
    """Say what would break if the checkout's migrations were applied."""
    if live:
        _enter("check", [])
    stack = commands.running_stack(commands.running_or_unknown())
    raise typer.Exit(check_checkout(stack, room_account()))


def _enter(word: str, arguments: Sequence[str]) -> NoReturn:
    command = (sys.executable, "-m", f"ingest.{word}", *arguments)
    if "--help" in arguments:
        commands.enter_help(command, ())
    stack, account = commands.running_stack(commands.running_or_unknown()), room_account()
    home = stack.folder.own_folder("capture", account)
    commands.become(command, environment.ingest(stack), home, account)


def check_checkout(stack: Stack, account: Account | None) -> int:
    """Apply the checkout's migrations to an empty database and check that; return its status."""
    home = stack.folder.own_folder("capture", account)
    with _scratch(stack.ledger) as scratch:
        migration = environment.ledger_migrations(replace(stack, ledger=scratch))
        done = _run(
            (sys.executable, "-m", "api.migrations"),
            {**base_environment(home), **migration},
            account,
            MIGRATIONS_TIMEOUT_S,
        )
        if done.returncode != 0:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise commands.CannotTellError(
                f"the migrations fail on an empty database: {' '.join(last)}"
            )
        done = _run(
            (sys.executable, "-m", "ingest.check"),
            {**base_environment(home), **environment.ingest(replace(stack, ledger=scratch))},
            account,
            CHECK_TIMEOUT_S,
        )
    sys.stdout.write(done.stdout.replace(f"database {scratch.database}", "the checkout's schema"))
    sys.stderr.write(done.stderr)
    return done.returncode


@contextmanager
def _scratch(ledger: Cluster) -> Iterator[Cluster]:
    """Make an empty database as the ledger's is made, and drop it at the end."""
    scratch = replace(ledger, database=f"giovang_check_{secrets.token_hex(4)}")
    try:
        scratch.provision()
        yield scratch
    except psycopg.Error as error:
        raise commands.CannotTellError(
            f"the ledger's cluster: {' '.join(str(error).split())}"
        ) from error
    finally:
        with psycopg.connect(
            ledger.superuser_url(), autocommit=True, connect_timeout=CONNECT_TIMEOUT_S
        ) as server:
            server.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(
                    sql.Identifier(scratch.database)
                )
            )


def _run(
    command: Sequence[str], env: Mapping[str, str], account: Account | None, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    identity = (
        {}
        if account is None
        else {"user": account.uid, "group": account.gid, "extra_groups": [account.gid]}
    )
    try:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            list(command),
            cwd=CHECKOUT,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            **identity,  # type: ignore[call-overload]
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise commands.CannotTellError(f"{command[2]}: {error}") from error
    return done
