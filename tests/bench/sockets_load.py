"""Thousands of WebSockets in one lean process, which tell when each event reached them.

`python -m tests.bench.sockets_load` reads one JSON line (see `Load`) from standard input, opens
all sockets, and prints one line when each has had its state. After that every line it reads is
answered by one line of what came since (see `Outcome`). An event's time is from the `updated_at`
that its payment carries to its arrival here, by the clock of this machine. A socket that is refused
or closed ends everything with status 1 and the server's words.
"""

import asyncio
import base64
import gc
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import cast

import uvloop

OPENING_AT_ONCE = 100
OPEN_TIMEOUT_S = 120.0
_END_OF_HEAD = b"\r\n\r\n"
_MOMENT = b'"updated_at":"'


@dataclass(frozen=True, slots=True)
class Load:
    """What to open: an address each, with the group its times are told under."""

    host: str
    port: int
    paths: list[str]
    groups: list[str]


@dataclass(slots=True)
class Outcome:
    """Times of the events since the last report, by group, in ms."""

    latencies_ms: dict[str, list[float]] = field(default_factory=dict)


class LoadError(Exception):
    """A socket was refused, or did not stay open."""


class _Socket(asyncio.Protocol):
    """One WebSocket, just enough of one to be told things."""

    __slots__ = ("_client", "_group", "_is_open", "_path", "_received", "transport")

    def __init__(self, client: "_Client", path: str, group: str) -> None:
        self._client = client
        self._path = path
        self._group = group
        self._received = b""
        self._is_open = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A stream's transport, though uvloop's does not descend from asyncio's.
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(
            f"GET {self._path} HTTP/1.1\r\nHost: {self._client.load.host}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        now_s = time.time()
        self._received += data
        if not self._is_open:
            end = self._received.find(_END_OF_HEAD)
            if end < 0:
                return
            if not self._received.startswith(b"HTTP/1.1 101"):
                self._client.fail(self._received.decode(errors="replace")[:2000])
                return
            self._is_open = True
            self._received = self._received[end + 4 :]
        while self._received and (length := self._whole_frame()):
            frame, self._received = self._received[:length], self._received[length:]
            self._take(frame, now_s)

    def _whole_frame(self) -> int:
        """Return the length of the frame that is there whole, or 0; servers do not mask."""
        head = self._received
        if len(head) < 2:
            return 0
        length, start = head[1], 2
        if length == 126:
            length, start = int.from_bytes(head[2:4], "big"), 4
        return start + length if len(head) >= start + length else 0

    def _take(self, frame: bytes, now_s: float) -> None:
        opcode = frame[0] & 15
        if opcode == 9 and self.transport is not None:
            # A pong, masked as a client's frames are, by nothing.
            self.transport.write(b"\x8a" + bytes([0x80 | frame[1]]) + bytes(4) + frame[2:])
        elif opcode == 8:
            self._client.fail(f"the server closed a socket: {frame[4:]!r}")
        elif opcode == 1:
            self._client.told(self._group, frame, now_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.fail(f"the server cut a socket: {exc}")


class _Client:
    """All sockets together."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self._states = 0
        self._outcome = Outcome()
        self._gate = asyncio.Semaphore(OPENING_AT_ONCE)
        self._failure: LoadError | None = None
        self._stated: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Open everything, then answer lines until there are no more."""
        began = time.perf_counter()
        loop = asyncio.get_running_loop()

        async def open_one(path: str, group: str) -> None:
            # Held until the state is there: more at once would wait in the server's backlog.
            await self._gate.acquire()
            await loop.create_connection(
                lambda: _Socket(self, path, group), self.load.host, self.load.port
            )

        async with asyncio.timeout(OPEN_TIMEOUT_S):
            opening = asyncio.gather(*map(open_one, self.load.paths, self.load.groups))
            # The first failure ends both.
            await asyncio.gather(opening, self._stated)
        _print({"opened": self._states, "opening_s": time.perf_counter() - began})
        # What is here stays; a collection among all of it would be measured as a delay.
        gc.collect()
        gc.freeze()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while await reader.readline():
            if self._failure is not None:
                raise self._failure
            _print(asdict(self._outcome))
            self._outcome = Outcome()

    def told(self, group: str, frame: bytes, now_s: float) -> None:
        """Note a message."""
        if b'"type":"event"' in frame:
            at = frame.index(_MOMENT) + len(_MOMENT)
            moment = datetime.fromisoformat(frame[at : frame.index(b'"', at)].decode())
            taken_ms = (now_s - moment.timestamp()) * 1000
            self._outcome.latencies_ms.setdefault(group, []).append(taken_ms)
        elif b'"type":"state"' in frame:
            self._states += 1
            self._gate.release()
            if self._states == len(self.load.paths) and not self._stated.done():
                self._stated.set_result(None)

    def fail(self, reason: str) -> None:
        """End with the first reason."""
        self._failure = self._failure or LoadError(reason)
        if not self._stated.done():
            self._stated.set_exception(self._failure)


def _print(value: object) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


async def _run(load: Load) -> None:
    await _Client(load).run()


def main() -> int:
    """Open the sockets that standard input names."""
    load = Load(**json.loads(sys.stdin.readline()))
    try:
        uvloop.run(_run(load))
    except (LoadError, TimeoutError, OSError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
