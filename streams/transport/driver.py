"""The transport class that Faust finds under the scheme `nats://`.

It holds the broker URLs and makes consumers and producers; no I/O happens before they start.
"""

import asyncio
from importlib.metadata import version
from typing import Any, ClassVar

from faust.transport import base
from faust.types import AppT, Message, TopicT
from yarl import URL

from streams.transport.connection import Connection
from streams.transport.consumer import Consumer
from streams.transport.errors import RecoveryFailedError
from streams.transport.producer import Producer
from streams.transport.topics import Changelogs, external_topics

RESUBSCRIBE_AFTER_S = 1.0


class Conductor(base.Conductor):  # type: ignore[misc]
    """Faust's conductor, less patient in two places.

    A topic that joins at run time is subscribed to after a second, not 45; the pause is there so
    that many that join together cost one new assignment. And a table that cannot be read back ends
    the worker: Faust logs the error and waits for ever for the recovery to finish.
    """

    _resubscribe_sleep_lock_seconds = RESUBSCRIBE_AFTER_S

    def add(self, topic: TopicT) -> None:
        """Subscribe to a topic at the next occasion."""
        super().add(topic)
        tables = self.app.tables
        changelog = tables.changelog_topics.issuperset(topic.topics)
        if changelog and topic.queue is tables.changelog_queue:
            topic.on_decode_error = self._cannot_read_back

    async def _cannot_read_back(self, error: Exception, message: Message) -> None:
        await self.app.crash(RecoveryFailedError(message.topic, error))


class Transport(base.Transport):  # type: ignore[misc]
    """Faust transport on NATS JetStream."""

    Consumer: ClassVar[type[Any]] = Consumer
    Producer: ClassVar[type[Any]] = Producer
    Conductor: ClassVar[type[Any]] = Conductor

    driver_version = f"nats-py={version('nats-py')}"

    def __init__(
        self, url: list[URL], app: AppT, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        super().__init__(url, app, loop)
        self.external = external_topics(url)

    def changelogs(self) -> Changelogs:
        """Tell which topics are changelogs of the app's tables."""
        tables = self.app.tables
        return Changelogs(self.app.conf.id, lambda topic: topic in tables._changelogs)  # noqa: SLF001

    def connect(self, name: str) -> Connection:
        """Return a new, unopened connection to the broker."""
        return Connection(self.url, name, self.app.conf.broker_credentials)
