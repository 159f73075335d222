"""Faust on NATS JetStream: the transport behind broker URLs with the scheme `nats://`.

See README.md beside this file for the mapping, the guarantees and what is not there yet.
"""

from streams.transport.connection import Connection, connected
from streams.transport.consumer import Consumer
from streams.transport.delivery import JetStreamMessage
from streams.transport.driver import Transport
from streams.transport.errors import (
    AccessRefusedError,
    CredentialsError,
    PartitionsRefusedError,
    RecoveryFailedError,
    ServerUnavailableError,
    StateNotMovedError,
    TopicMismatchError,
    TopicMissingError,
    TopicMovedError,
    TransportError,
    WorkerFencedError,
)
from streams.transport.group import GroupView, Position, look
from streams.transport.growth import add_partitions
from streams.transport.stream import Stream

__all__ = [
    "AccessRefusedError",
    "Connection",
    "Consumer",
    "CredentialsError",
    "GroupView",
    "JetStreamMessage",
    "PartitionsRefusedError",
    "Position",
    "RecoveryFailedError",
    "ServerUnavailableError",
    "StateNotMovedError",
    "Stream",
    "TopicMismatchError",
    "TopicMissingError",
    "TopicMovedError",
    "Transport",
    "TransportError",
    "WorkerFencedError",
    "add_partitions",
    "connected",
    "look",
]
