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


class ProvisionRefused(IngestError):  # noqa: N818 - names a state, as the log shows it
    """Stream, slot or offset differ from what is stated, and mending would hide a loss."""


class ResumeRefused(IngestError):  # noqa: N818 - names a state, as the log shows it
    """Slot, stored offset and stream contradict each other; going on would lose or double."""


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


class EngineStopped(IngestError):  # noqa: N818 - names a state, as the log shows it
    """The Debezium engine ended or stalled without being asked to."""
