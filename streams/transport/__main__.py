"""The transport's commands for people: `python -m streams.transport partitions --help`.

Exit status 0 when it is done, 1 with one sentence on standard error when it is not, 2 for wrong
arguments.
"""

import argparse
import asyncio
import os
import sys

from nats.errors import Error as NatsError

from streams.transport.connection import CONNECT_DEADLINE_S, TRANSIENT, connected
from streams.transport.errors import TransportError
from streams.transport.growth import add_partitions

BROKER_VARIABLE = "FAUST_BROKER_URL"

PARTITIONS_HELP = """\
Give a declared topic more partitions, and take the offsets and tables of the apps that read it
along. Stop their workers first, and start them again when it is done, declaring the new number;
producers may run on. Killed half-way, tell it again: nobody sees a half-done change."""


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m streams.transport", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "partitions",
        help="give a topic more partitions",
        description=PARTITIONS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--broker",
        default=os.environ.get(BROKER_VARIABLE),
        help=f"as the apps name it, nats://...; a password is better kept in {BROKER_VARIABLE}",
    )
    command.add_argument(
        "--topic",
        action="append",
        required=True,
        help="the topic; again for each that an app's tables keep together with it",
    )
    command.add_argument("--partitions", type=int, required=True, help="how many it shall have")
    command.add_argument(
        "--app",
        action="append",
        default=[],
        help="take only this app along; the others do not start until they are, too",
    )
    command.add_argument("--dry-run", action="store_true", help="check everything, change nothing")
    arguments = parser.parse_args()
    if not arguments.broker:
        command.error(f"name the broker, with --broker or {BROKER_VARIABLE}")
    try:
        asyncio.run(_partitions(arguments))
    except TransportError as error:
        sys.exit(f"not done: {error}")
    except TRANSIENT as error:
        sys.exit(f"not done: NATS did not answer ({type(error).__name__}); tell the command again")
    except NatsError as error:
        sys.exit(f"not done: NATS refuses: {error}")


async def _partitions(arguments: argparse.Namespace) -> None:
    async with connected(arguments.broker, "partitions", CONNECT_DEADLINE_S) as connection:
        await add_partitions(
            connection,
            arguments.topic,
            arguments.partitions,
            apps=arguments.app,
            dry_run=arguments.dry_run,
            say=_say,
        )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
