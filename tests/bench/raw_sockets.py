"""The baseline of live status: the `websockets` library alone, telling its sockets the time.

`python -m tests.bench.raw_sockets PORT` serves on loopback. A socket gets a state when
it opens. Twenty times a second one of the sockets on `/many`, in turn, and every half second all
on `/one` get an event as large as ours with the moment of its sending. No database, no Redis, no
tokens: what is left is what sockets cost in this language.
"""

import asyncio
import itertools
import json
import sys
from datetime import UTC, datetime

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

MANY_EVERY_S = 0.05
ONE_EVERY_S = 0.5
_PADDING = "x" * 380


def _message(kind: str) -> str:
    moment = datetime.now(UTC).isoformat(timespec="microseconds")
    return json.dumps(
        {"type": kind, "payment": {"updated_at": moment, "padding": _PADDING}},
        separators=(",", ":"),
    )


async def _tell(groups: dict[str, list[ServerConnection]]) -> None:
    for turn in itertools.count():
        await asyncio.sleep(MANY_EVERY_S)
        many = groups["/many"]
        if many:
            broadcast([many[turn % len(many)]], _message("event"))
        if turn % round(ONE_EVERY_S / MANY_EVERY_S) == 0:
            broadcast(groups["/one"], _message("event"))


async def _serve(port: int) -> None:
    groups: dict[str, list[ServerConnection]] = {"/many": [], "/one": []}

    async def handler(connection: ServerConnection) -> None:
        path = "" if connection.request is None else connection.request.path
        await connection.send(_message("state"))
        groups[path].append(connection)
        await connection.wait_closed()

    async with serve(handler, "127.0.0.1", port, compression=None, backlog=4096):
        sys.stdout.write("serving\n")
        sys.stdout.flush()
        await _tell(groups)


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1])))
