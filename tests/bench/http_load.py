"""A lean HTTP client that creates payments as fast as it is answered, in a process of its own.

`python -m tests.bench.http_load` reads one JSON object from standard input (see `Load`) and prints
one. Each connection sends its next request when the last is answered; requests are bytes made
beforehand, each with an Idempotency-Key of its own. An answer other than 201 ends everything with
status 1 and the answer's words, and so does an answer that does not come.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import cast

import uvloop

LAST_ANSWER_TIMEOUT_S = 10.0
_END_OF_HEAD = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Load:
    """What to send: connections take ports and keys in turn; only answers after warm-up count."""

    host: str
    ports: list[int]
    keys: list[str]
    connections: int
    warm_up_s: float
    duration_s: float
    most_requests: int
    order_id: str


@dataclass(slots=True)
class Outcome:
    """What came back: all that were created, and those of the measured time with their times."""

    created: int = 0
    measured_s: float = 0.0
    cpu_s: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)


class LoadError(Exception):
    """An answer was not the one expected."""


class _Connection(asyncio.Protocol):
    """One connection that is never idle until the end."""

    def __init__(self, client: "_Client", number: int, head: bytes, tail: bytes) -> None:
        self._client = client
        self._number = number
        self._head = head
        self._tail = tail
        self._sent = 0
        self._sent_at = 0.0
        self._received = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A stream's transport, though uvloop's does not descend from asyncio's.
        self.transport = cast("asyncio.Transport", transport)

    def send(self) -> None:
        """Send the next request, or finish where time is up."""
        assert self.transport is not None, "the connection is made"
        if not self._client.may_send():
            self._client.finish(self)
            return
        self._sent += 1
        key = b"http-%d-%d" % (self._number, self._sent)
        self._sent_at = time.perf_counter()
        self.transport.write(self._head + key + self._tail)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end_of_head = self._received.find(_END_OF_HEAD)
        if end_of_head < 0:
            return
        head = self._received[:end_of_head].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._received) < end_of_head + 4 + length:
            return
        if not head.startswith(b"http/1.1 201") or b"idempotent-replayed" in head:
            self._client.fail(self._received.decode(errors="replace"))
            return
        self._received = b""
        self._client.answered(self._sent_at)
        self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._client.lost(self, exc)


class _Client:
    """All connections together: the clock, the counts, the first failure."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._begin = 0.0
        self._sent = 0
        self._open: set[_Connection] = set()
        self._outcome = Outcome()
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> Outcome:
        load, loop = self._load, asyncio.get_running_loop()
        body = json.dumps(
            {"amount": "250000", "currency": "VND", "asset": "USDC", "order_id": load.order_id}
        ).encode()
        for number in range(load.connections):
            port = load.ports[number % len(load.ports)]
            head = (
                f"POST /api/v1/payments HTTP/1.1\r\nHost: {load.host}:{port}\r\n"
                f"Authorization: Bearer {load.keys[number // len(load.ports) % len(load.keys)]}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                "Idempotency-Key: "
            ).encode()
            connection = _Connection(self, number, head, _END_OF_HEAD + body)
            await loop.create_connection(lambda made=connection: made, load.host, port)  # type: ignore[misc]
            self._open.add(connection)
        self._begin = time.perf_counter()
        for connection in list(self._open):
            connection.send()
        async with asyncio.timeout(load.warm_up_s + load.duration_s + LAST_ANSWER_TIMEOUT_S):
            await self._done
        self._outcome.measured_s = load.duration_s
        self._outcome.cpu_s = time.process_time()
        return self._outcome

    def may_send(self) -> bool:
        elapsed = time.perf_counter() - self._begin
        if elapsed > self._load.warm_up_s + self._load.duration_s:
            return False
        if self._sent == self._load.most_requests:
            self.fail(f"more than {self._sent} requests in the time given")
            return False
        self._sent += 1
        return True

    def answered(self, sent_at: float) -> None:
        now = time.perf_counter()
        self._outcome.created += 1
        into = now - self._begin - self._load.warm_up_s
        if 0 <= into <= self._load.duration_s:
            self._outcome.latencies_ms.append((now - sent_at) * 1000)

    def finish(self, connection: _Connection) -> None:
        self._open.discard(connection)
        if connection.transport is not None:
            connection.transport.close()
        if not self._open and not self._done.done():
            self._done.set_result(None)

    def lost(self, connection: _Connection, problem: Exception | None) -> None:
        if connection in self._open:
            self.fail(f"the server closed a connection: {problem}")

    def fail(self, reason: str) -> None:
        if not self._done.done():
            self._done.set_exception(LoadError(reason))


async def _run(load: Load) -> Outcome:
    return await _Client(load).run()


def main() -> int:
    """Send the load of standard input."""
    load = Load(**json.load(sys.stdin))
    try:
        outcome = uvloop.run(_run(load))
    except (LoadError, TimeoutError, OSError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(json.dumps(asdict(outcome)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
