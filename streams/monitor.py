"""A Faust monitor that keeps no account of single events.

Faust's own notes five times and sizes for every event, an eighth of a worker's time, for a web
page that does not run here. Offsets and commits are still tracked; progress is reported by
`streams.progress`.
"""

from faust.sensors.monitor import Monitor
from faust.types import TP, EventT, Message, StreamT


class CommitMonitor(Monitor):  # type: ignore[misc]
    """Tracks end offsets and commits, nothing a single event does."""

    def on_message_in(self, tp: TP, offset: int, message: Message) -> None:
        """Note nothing."""

    def on_message_out(self, tp: TP, offset: int, message: Message) -> None:
        """Note nothing."""

    def on_stream_event_in(self, tp: TP, offset: int, stream: StreamT, event: EventT) -> None:
        """Note nothing."""

    def on_stream_event_out(
        self,
        tp: TP,
        offset: int,
        stream: StreamT,
        event: EventT,
        state: dict[str, object] | None = None,
    ) -> None:
        """Note nothing."""
