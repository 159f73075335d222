"""`./giovang streams …` and `./giovang deadletter …`: the processors of the running stack.

Each becomes the room's own command with the room's variables, so its exit status is its own.
"""

import sys
from collections.abc import Sequence
from typing import NoReturn

import typer

from infra.stack import commands, environment
from infra.stack.services import room_account

words = typer.Typer(
    help="The processors that read the stream: how they stand.", no_args_is_help=True
)


@words.command("status", context_settings=commands.PASS_ON, add_help_option=False)
def status(context: typer.Context) -> None:
    """Say who runs each processor, how far it is and how far behind [--json] [--watch S]."""
    _enter("streams.status", context.args)


def deadletter(context: typer.Context) -> None:
    """Look at events that could not be processed: list, show, retry, discard, discarded."""
    _enter("streams.letters", context.args or ["--help"])


def _enter(module: str, arguments: Sequence[str]) -> NoReturn:
    command = (sys.executable, "-m", module, *arguments)
    if "--help" in arguments:
        commands.enter_help(command, ())
    stack, account = commands.running_stack(commands.running_or_unknown()), room_account()
    home = stack.folder.own_folder("streams", account)
    variables = {**environment.streams(stack, home), **environment.realtime(stack, home)}
    commands.become(command, variables, home, account)
