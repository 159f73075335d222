"""The one thing the suite must be given: a broker that can be stopped, and how apps reach it."""

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from tests.fixtures.brokers import start_broker

CHOICE = "FAUST_CONFORMANCE_BROKER"


class Broker(Protocol):
    """A running broker with one Faust transport in front of it."""

    @property
    def url(self) -> str:
        """The broker URL of an app."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What the transport wants to be set on every app, beyond the suite's own settings."""

    def start(self) -> None:
        """Start the broker again, on the same address and with all it held."""

    def kill(self) -> None:
        """End the broker as a crash would."""

    def close(self) -> None:
        """Stop the broker for good."""


class NatsBroker:
    """The real NATS server behind the transport of this repository."""

    options: Mapping[str, Any] = {"Stream": "streams.transport:Stream"}

    def __init__(self, folder: Path) -> None:
        self._server = start_broker(folder)
        self.url = self._server.url

    def start(self) -> None:
        self._server.start()

    def kill(self) -> None:
        self._server.kill()

    def close(self) -> None:
        self._server.stop()


def chosen_broker(folder: Path) -> Broker:
    """Start the broker that `FAUST_CONFORMANCE_BROKER` names as `module:factory`, or ours."""
    choice = os.environ.get(CHOICE)
    if not choice:
        return NatsBroker(folder)
    module, _, name = choice.partition(":")
    factory: Callable[[Path], Broker] = getattr(importlib.import_module(module), name)
    return factory(folder)
