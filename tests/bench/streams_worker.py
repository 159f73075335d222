"""A Faust worker on our transport that reads a share of a backlog and tells how long it took.

Run as `python -m tests.bench.streams_worker KIND URL APP TOPIC PARTITIONS EVENTS`; KIND is
`trivial` (does nothing with an event), `take` (in batches), or `table` (one update of a table for
each event), EVENTS how many there are in a partition. Standard output has a line of JSON whenever
partitions are given to it, and one when all their events are done. It begins with them when it
reads a line from standard input. What then waits in its memory already is not counted.
"""

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import faust
from faust.types import TP, AppT, StreamT

from infra.telemetry import configure_logging
from streams.app import quiet_worker
from streams.monitor import CommitMonitor

TAKE = 1000
TAKE_WITHIN_S = 0.1
BUFFER = 4000
KEYS = 1000

Read = Callable[[StreamT], Awaitable[None]]


class Share:
    """This worker's part of the backlog, its beginning and its end."""

    def __init__(self, topic: str, events: int) -> None:
        self._topic = topic
        self._events = events
        self._partitions = 0
        self._done = 0
        self._began: tuple[int, float, float] | None = None
        self.begin = asyncio.Event()

    def assigned(self, partitions: set[TP]) -> None:
        """Note which partitions are ours, and say how many."""
        self._partitions = sum(tp.topic == self._topic for tp in partitions)
        _say({"partitions": self._partitions})

    def passed(self, events: int) -> None:
        """Note events that are done; with the last, say what it took."""
        self._done += events
        if self._began is None and self._done > BUFFER:
            self._began = self._done, time.monotonic(), time.process_time()
        if self._done == self._partitions * self._events and self._began is not None:
            counted_from, began_s, processor_s = self._began
            _say(
                {
                    "events": self._done - counted_from,
                    "began_s": began_s,
                    "ended_s": time.monotonic(),
                    "processor_s": time.process_time() - processor_s,
                }
            )


def main() -> None:
    """Read until the bench has its answers and ends this process."""
    kind, url, app_id, topic_name, partitions, events = sys.argv[1:]
    configure_logging("bench", level=40)
    app = faust.App(
        app_id,
        broker=url,
        Stream="streams.transport:Stream",
        datadir=os.environ["HOME"],
        web_enabled=False,
        topic_disable_leader=True,
        topic_partitions=int(partitions),
        topic_replication_factor=1,
        broker_commit_interval=1.0,
        broker_heartbeat_interval=0.5,
        stream_buffer_maxsize=BUFFER,
        stream_recovery_delay=0.0,
        stream_wait_empty=True,
        table_standby_replicas=0,
        worker_redirect_stdouts=False,
    )
    app.monitor = CommitMonitor()
    topic = app.topic(
        topic_name,
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
    )
    share = Share(topic_name, int(events))
    app.agent(topic, name=kind)(AGENTS[kind](app, share))

    @app.on_partitions_assigned.connect  # type: ignore[untyped-decorator]
    async def tell(_: AppT, assigned: set[TP], **__: object) -> None:
        share.assigned(assigned)

    @app.task  # type: ignore[untyped-decorator]
    async def wait() -> None:
        loop = asyncio.get_running_loop()
        # A thread that nothing waits for at the end, should the line never come.
        threading.Thread(target=_await_line, args=(loop, share.begin), daemon=True).start()

    quiet_worker(app).execute_from_commandline()


def _await_line(loop: asyncio.AbstractEventLoop, begin: asyncio.Event) -> None:
    if sys.stdin.readline():
        loop.call_soon_threadsafe(begin.set)


def _trivial(_: AppT, share: Share) -> Read:
    async def agent(stream: StreamT) -> None:
        async for _ in stream:
            if not share.begin.is_set():
                await share.begin.wait()
            share.passed(1)

    return agent


def _take(_: AppT, share: Share) -> Read:
    async def agent(stream: StreamT) -> None:
        async for batch in stream.take(TAKE, within=TAKE_WITHIN_S):
            if not share.begin.is_set():
                await share.begin.wait()
            share.passed(len(batch))

    return agent


def _table(app: AppT, share: Share) -> Read:
    counts = app.Table("counts", default=int, key_type=str, value_type=int)

    async def agent(stream: StreamT) -> None:
        number = 0
        async for _ in stream:
            if not share.begin.is_set():
                await share.begin.wait()
            number += 1
            counts[str(number % KEYS)] += 1
            share.passed(1)

    return agent


def _say(words: Mapping[str, float]) -> None:
    print(json.dumps(words), flush=True)  # noqa: T201 - what the bench reads


AGENTS: Final[Mapping[str, Callable[[AppT, Share], Read]]] = {
    "trivial": _trivial,
    "take": _take,
    "table": _table,
}


if __name__ == "__main__":
    main()
