"""The door of the room: names of topics, streams, tables and headers that others may rely on.

Pure names, no I/O. What the captured stream itself looks like belongs to `ingest.contract`.
"""

from dataclasses import dataclass
from enum import StrEnum

LEDGER_TOPIC = "ledger"
LEDGER_STREAM = "LEDGER"
LEDGER_SOURCE = "ledger"  # the row of raw.watermark

WAREHOUSE_APP = "giovang-warehouse"
REALTIME_APP = "giovang-realtime"

DEADLETTER_STREAM = "DEADLETTER"
DEADLETTER_SUBJECTS = "deadletter.>"
WAREHOUSE_DEADLETTER_SUBJECT = "deadletter.warehouse"
REALTIME_DEADLETTER_SUBJECT = "deadletter.realtime"


class DeadLetterHeader(StrEnum):
    """Headers of a dead letter, beside those the event had."""

    REASON = "Giovang-Deadletter-Reason"
    CONSUMER = "Giovang-Deadletter-Consumer"
    STREAM = "Giovang-Deadletter-Stream"
    SUBJECT = "Giovang-Deadletter-Subject"
    SEQUENCE = "Giovang-Deadletter-Sequence"
    ATTEMPT = "Giovang-Deadletter-Attempt"
    FAILED_AT = "Giovang-Deadletter-Failed-At"
    TRACEBACK = "Giovang-Deadletter-Traceback"


class Table(StrEnum):
    """Tables of the warehouse that this room writes."""

    PAYMENT_ANALYTICS = "raw.payment_analytics"
    REFUNDS = "raw.refunds"
    MERCHANTS = "raw.merchants"
    WATERMARK = "raw.watermark"


@dataclass(frozen=True, slots=True)
class DeadLetterLimits:
    """Limits of the dead-letter stream.

    A full stream refuses new letters, which stops the consumer loudly, rather than dropping old
    ones in silence.
    """

    max_bytes: int = 256 * 1024 * 1024
    max_message_bytes: int = 1024 * 1024
