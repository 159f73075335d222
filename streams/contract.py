"""The door of the room: names of topics, streams, tables and headers that others may rely on.

Pure names, no I/O. What the captured stream itself looks like belongs to `ingest.contract`.
"""

from dataclasses import dataclass
from enum import StrEnum

LEDGER_TOPIC = "ledger"
LEDGER_STREAM = "LEDGER"
LEDGER_SOURCE = "ledger"  # rows of raw.watermark
RISK_SOURCE = "risk"

WAREHOUSE_APP = "giovang-warehouse"
REALTIME_APP = "giovang-realtime"
RISK_APP = "giovang-risk"

DEADLETTER_STREAM = "DEADLETTER"
DEADLETTER_SUBJECTS = "deadletter.>"
WAREHOUSE_DEADLETTER_SUBJECT = "deadletter.warehouse"
REALTIME_DEADLETTER_SUBJECT = "deadletter.realtime"
RISK_DEADLETTER_SUBJECT = "deadletter.risk"

DISCARDED_STREAM = "DISCARDED"
DISCARDED_SUBJECTS = "discarded.>"

RISK_STREAM = "RISK"
RISK_SUBJECTS = "ledger.risk.>"
RISK_FLAGGED_SUBJECT = "ledger.risk.flagged"


class DeadLetterHeader(StrEnum):
    """Headers of a dead letter, beside those the event had; the last four of a discarded one."""

    REASON = "Giovang-Deadletter-Reason"
    CONSUMER = "Giovang-Deadletter-Consumer"
    STREAM = "Giovang-Deadletter-Stream"
    SUBJECT = "Giovang-Deadletter-Subject"
    SEQUENCE = "Giovang-Deadletter-Sequence"
    ATTEMPT = "Giovang-Deadletter-Attempt"
    FAILED_AT = "Giovang-Deadletter-Failed-At"
    TRACEBACK = "Giovang-Deadletter-Traceback"
    DISCARDED_LETTER = "Giovang-Discarded-Letter"
    DISCARDED_BY = "Giovang-Discarded-By"
    DISCARDED_AT = "Giovang-Discarded-At"
    DISCARDED_WHY = "Giovang-Discarded-Why"


class Table(StrEnum):
    """Tables of the warehouse that this room writes."""

    PAYMENT_ANALYTICS = "raw.payment_analytics"
    REFUNDS = "raw.refunds"
    LEDGER_ENTRIES = "raw.ledger_entries"
    LEDGER_POSTINGS = "raw.ledger_postings"
    PAYOUTS = "raw.payouts"
    DELETIONS = "raw.deletions"
    MERCHANTS = "raw.merchants"
    RISK_ALERTS = "raw.risk_alerts"
    WATERMARK = "raw.watermark"


@dataclass(frozen=True, slots=True)
class DeadLetterLimits:
    """Limits of the dead-letter stream, and of the stream of letters that were discarded.

    A full stream refuses new letters, which stops the consumer loudly, rather than dropping old
    ones in silence.
    """

    max_bytes: int = 256 * 1024 * 1024
    max_message_bytes: int = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RiskLimits:
    """Limits of the stream of alerts.

    The warehouse keeps every alert, so the stream drops its oldest when it is full. An alert that
    is published again within `deduplication_s` is kept once.
    """

    max_bytes: int = 256 * 1024 * 1024
    max_message_bytes: int = 64 * 1024
    deduplication_s: float = 3600.0
