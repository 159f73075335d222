"""What can go wrong in the capture room, one class for each answer a person has to give.

Every error ends the process with a sentence in the log: capture never goes on past a doubt, since
a change that is lost or doubled here is wrong in every number downstream.
"""


class IngestError(Exception):
    """Root of the room's errors; its text is one sentence for a person."""


class CaptureDisordered(IngestError):  # noqa: N818 - names a state, as the log shows it
    """The engine handed over changes in a way that ids cannot be made from."""


class EnvelopeInvalid(IngestError):  # noqa: N818 - names a state, as the log shows it
    """A change cannot be told in the envelope's words."""


class MaskRefused(IngestError):  # noqa: N818 - names a state, as the log shows it
    """A column cannot be masked in the way that was asked for."""


class ProvisionRefused(IngestError):  # noqa: N818 - names a state, as the log shows it
    """Stream, slot or offset differ from what is stated, and mending would hide a loss."""


class ResumeRefused(IngestError):  # noqa: N818 - names a state, as the log shows it
    """Slot, stored offset and stream contradict each other; going on would lose or double."""


class SlotLost(ResumeRefused):
    """The replication slot is gone or was given up: changes are missing from the stream."""


class SeatLost(IngestError):  # noqa: N818 - names a state, as the log shows it
    """Another capture process took this one's place, or its row was removed."""


class BackfillRefused(IngestError):  # noqa: N818 - names a state, as the log shows it
    """A backfill was asked for that cannot be, or not now."""


class BackfillStopped(IngestError):  # noqa: N818 - names a state, as the log shows it
    """A backfill cannot go on; with `pauses` the run is paused, to be resumed by a person."""

    def __init__(self, reason: str, *, pauses: bool = True) -> None:
        self.pauses = pauses
        super().__init__(reason)


class PublishFailed(IngestError):  # noqa: N818 - names a state, as the log shows it
    """The stream did not take a batch, or did not say so in time."""


class Fenced(PublishFailed):
    """Another publisher wrote to the stream; `expected` is the sequence this one knew."""

    def __init__(self, expected: int, answer: str) -> None:
        self.expected = expected
        super().__init__(
            f"another publisher wrote to the stream after sequence {expected} ({answer}); "
            "this one stops and resumes from what the stream holds"
        )


class MetricsRefused(IngestError):  # noqa: N818 - names a state, as the log shows it
    """Metrics were asked for and cannot be served."""


class EngineStopped(IngestError):  # noqa: N818 - names a state, as the log shows it
    """The Debezium engine ended or stalled without being asked to."""
