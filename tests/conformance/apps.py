"""Faust apps in the test's own loop: made, started, looked at, stopped and made anew.

Several apps of one id are several workers of it. An app that dies in between fails whatever waits
for it, with its own error.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import faust
from faust.tables.manager import TableManager
from faust.types import RecordMetadata
from mode.utils.times import Seconds, want_seconds

from tests.conformance.broker import Broker

POLL_S = 0.02
START_DEADLINE_S = 60.0
STOP_DEADLINE_S = 60.0
ARRIVAL_DEADLINE_S = 60.0
# Nobody is killed here, and messages are counted: a machine that stands still costs no ownership.
SESSION_TIMEOUT_S = 20.0
HEARTBEAT_S = 0.5


class PromptTables(TableManager):  # type: ignore[misc]
    """Faust's tables, without the second it waits for tables that are declared late."""

    async def sleep(self, n: Seconds) -> None:
        await super().sleep(min(want_seconds(n), POLL_S))


@dataclass(frozen=True, slots=True)
class Seen:
    """A message as an agent saw it."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, Any]
    timestamp: float
    generation: int


class Apps:
    """Makes workers of one app id on the broker under test."""

    def __init__(self, broker: Broker, app_id: str, folder: Path) -> None:
        self.broker = broker
        self._app_id = app_id
        self._folder = folder
        self._made: list[Any] = []

    def new(self, **settings: Any) -> Any:
        """Return a worker that was not started; its local state is its own."""
        number = len(self._made)
        app = faust.App(
            settings.pop("id", self._app_id),
            **{
                "broker": self.broker.url,
                "datadir": str(self._folder / f"worker-{number}"),
                "web_enabled": False,
                "topic_disable_leader": True,
                "topic_partitions": 3,
                "TableManager": PromptTables,
                "broker_session_timeout": SESSION_TIMEOUT_S,
                "broker_heartbeat_interval": HEARTBEAT_S,
                "broker_commit_interval": 0.2,
                "stream_recovery_delay": 0.0,
                **self.broker.options,
                **settings,
            },
        )
        self._made.append(app)
        return app

    @asynccontextmanager
    async def producing(self, **settings: Any) -> AsyncIterator[Any]:
        """Yield the started producer of an app that consumes nothing."""
        producer = self.new(id=f"{self._app_id}-producer", **settings).producer
        await producer.start()
        try:
            yield producer
        finally:
            async with asyncio.timeout(STOP_DEADLINE_S):
                await producer.stop()

    @asynccontextmanager
    async def reading(self, topic: str, **settings: Any) -> AsyncIterator["Reading"]:
        """Yield a running worker whose one agent collects what it sees of a raw topic."""
        app = self.new(**settings)
        collected: list[Seen] = []

        async def collect(stream: Any) -> None:
            async for event in stream.events():
                collected.append(seen(event))  # noqa: PERF401 - seen while it still grows

        app.agent(raw_topic(app, topic, internal=False))(collect)
        async with running(app):
            yield Reading(app, collected)

    async def stop_all(self) -> None:
        """Stop what still runs."""
        for app in self._made:
            if app.started and not app.should_stop:
                async with asyncio.timeout(STOP_DEADLINE_S):
                    await app.stop()


@dataclass(frozen=True, slots=True)
class Reading:
    """A worker that collects, and what it collected so far."""

    app: Any
    seen: list[Seen]

    async def until(self, number: int, within_s: float = ARRIVAL_DEADLINE_S) -> list[Seen]:
        """Wait for `number` messages and return all that came, perhaps more."""
        await until(
            lambda: len(self.seen) >= number,
            app=self.app,
            within_s=within_s,
            what=lambda: f"{number} messages, {len(self.seen)} came",
        )
        return list(self.seen)


@asynccontextmanager
async def running(app: Any) -> AsyncIterator[Any]:
    """Run a worker for the length of a block, from its first assignment on."""
    async with asyncio.timeout(START_DEADLINE_S):
        await app.start()
    try:
        await until(
            lambda: bool(app.consumer.assignment()) and not app.rebalancing,
            app=app,
            within_s=START_DEADLINE_S,
            what=lambda: "an assignment",
        )
        yield app
    finally:
        async with asyncio.timeout(STOP_DEADLINE_S):
            await app.stop()


async def until(
    look: Callable[[], bool],
    *,
    what: Callable[[], str],
    app: Any = None,
    within_s: float = ARRIVAL_DEADLINE_S,
) -> None:
    """Poll `look` until it is true; the test fails after `within_s`, or when `app` crashed."""
    give_up_at = monotonic() + within_s
    while not look():
        if app is not None and app.crashed:
            raise AssertionError(f"the worker crashed, waiting for {what()}") from app.crash_reason
        assert monotonic() < give_up_at, f"not within {within_s:g} s: {what()}"
        await asyncio.sleep(POLL_S)


def raw_topic(app: Any, topic: str, **settings: Any) -> Any:
    """Declare a topic of plain bytes."""
    return app.topic(
        topic,
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
        **{"internal": True, "partitions": 3, **settings},
    )


def seen(event: Any) -> Seen:
    """Note what an event told."""
    message = event.message
    return Seen(
        message.partition,
        message.offset,
        message.key,
        message.value,
        dict(message.headers or {}),
        message.timestamp,
        message.generation_id,
    )


async def send_numbers(
    producer: Any, topic: str, numbers: Iterable[int], *, partition: int | None = None
) -> list[RecordMetadata]:
    """Send numbers as values under ten keys; return where each lies once all are stored."""
    futures = [
        await producer.send(topic, f"k{n % 10}".encode(), str(n).encode(), partition, None, None)
        for n in numbers
    ]
    await producer.flush()
    return [future.result() for future in futures]


def values(messages: Iterable[Seen]) -> list[int]:
    """Return the numbers that messages carry."""
    return [int(message.value or b"") for message in messages]
