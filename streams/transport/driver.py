"""The transport class that Faust finds under the scheme `nats://`.

It holds the broker URLs and makes consumers and producers; no I/O happens before they start.
"""

import asyncio
from importlib.metadata import version
from typing import Any, ClassVar

from faust.transport import base
from faust.types import AppT
from yarl import URL

from streams.transport.connection import Connection
from streams.transport.consumer import Consumer
from streams.transport.producer import Producer
from streams.transport.topics import external_topics


class Transport(base.Transport):  # type: ignore[misc]
    """Faust transport on NATS JetStream."""

    Consumer: ClassVar[type[Any]] = Consumer
    Producer: ClassVar[type[Any]] = Producer

    driver_version = f"nats-py={version('nats-py')}"

    def __init__(
        self, url: list[URL], app: AppT, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        super().__init__(url, app, loop)
        self.external = external_topics(url)

    def connect(self, name: str) -> Connection:
        """Return a new, unopened connection to the broker."""
        return Connection(self.url, name)
