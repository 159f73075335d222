"""Errors of the transport: one root class, typed subclasses with fields.

They are raised where an operator has to decide something; what the transport can mend by itself
(a lost connection, a restarted server) it retries until a deadline.
"""


class TransportError(Exception):
    """Root of all errors of the NATS transport."""


class TopicMissingError(TransportError):
    """The stream behind a topic does not exist, and the transport never creates one unasked."""

    def __init__(self, topic: str, stream: str) -> None:
        self.topic = topic
        self.stream = stream
        super().__init__(
            f"topic {topic!r}: JetStream stream {stream!r} does not exist; "
            "create it (or declare the topic) before the worker starts"
        )


class TopicMismatchError(TransportError):
    """The stream behind a topic exists with another shape than the app declares."""

    def __init__(self, topic: str, declared: str, found: str) -> None:
        self.topic = topic
        self.declared = declared
        self.found = found
        super().__init__(f"topic {topic!r}: declared with {declared}, but the stream has {found}")


class WorkerFencedError(TransportError):
    """Another worker of the same app took the partitions over; this one must stop."""

    def __init__(self, app_id: str, owner: str) -> None:
        self.app_id = app_id
        self.owner = owner
        super().__init__(f"app {app_id!r}: ownership passed to worker {owner}; this worker stops")


class ServerUnavailableError(TransportError):
    """NATS did not answer within the deadline."""

    def __init__(self, what: str, seconds: float) -> None:
        self.what = what
        self.seconds = seconds
        super().__init__(f"{what}: no answer from NATS within {seconds:g} s")
