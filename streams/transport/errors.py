"""Errors of the transport: one root class, typed subclasses with fields.

They are raised where an operator has to decide something; what the transport can mend by itself
(a lost connection, a restarted server) it retries until a deadline.
"""

from faust.types import TP


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
        super().__init__(
            f"topic {topic!r}: declared with {declared}, but the stream has {found}; declare what "
            "it has, or give it more with `python -m streams.transport partitions`"
        )


class TopicMovedError(TransportError):
    """A topic was given more partitions while this worker was about to read it."""

    def __init__(self, topic: str, known: int, found: int) -> None:
        self.topic = topic
        super().__init__(
            f"topic {topic!r} has {found} partitions now, and this worker knows of {known}: "
            f"start it again, declaring {found}"
        )


class StateNotMovedError(TransportError):
    """A topic was given partitions, and an app's offsets and tables have not followed."""

    def __init__(self, app_id: str, topic: str, partitions: int) -> None:
        self.app_id = app_id
        self.topic = topic
        super().__init__(
            f"app {app_id!r}: its state is still in the former partitions of topic {topic!r}; run "
            f"`python -m streams.transport partitions --topic {topic} --partitions {partitions}`, "
            "then start the worker"
        )


class PartitionsRefusedError(TransportError):
    """Partitions cannot be added as things stand; the sentence says what to do."""


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


class RecoveryFailedError(TransportError):
    """A table could not be built again from its changelog."""

    def __init__(self, changelog: str, reason: Exception) -> None:
        self.changelog = changelog
        super().__init__(
            f"changelog {changelog!r} cannot be read back, {type(reason).__name__}; "
            "give its table the key_type and value_type that it is written with"
        )


class CredentialsError(TransportError):
    """The broker URL or `broker_credentials` say how to connect in a way that cannot be done."""


class AccessRefusedError(TransportError):
    """Server and client do not accept each other; waiting would not help."""

    def __init__(self, server: str, reason: str) -> None:
        self.server = server
        self.reason = reason
        super().__init__(f"{server}: {reason}")


class StaleEventError(TransportError):
    """An agent changes a table for an event that another worker may be processing by now."""

    def __init__(self, tp: TP, offset: int) -> None:
        self.tp = tp
        self.offset = offset
        super().__init__(
            f"{tp.topic}[{tp.partition}] {offset}: read before the partitions moved; "
            "its table is not changed, the event is read again"
        )


class TooManyChangesError(TransportError):
    """Events that can only be committed together change more keys than a batch holds."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(
            f"one event changes more than {limit} keys of tables; "
            "that many cannot be committed in one step: divide the event"
        )


class RollBackError(TransportError):
    """A table holds changes that were never committed, in a store that cannot be emptied."""

    def __init__(self, changelog: str, store: str) -> None:
        self.changelog = changelog
        super().__init__(
            f"table of {changelog!r} in {store} holds uncommitted changes: "
            "delete its files before the worker starts again"
        )
