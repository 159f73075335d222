"""What waits: events behind a place of the ledger's stream, and dead letters.

Read from NATS, where nothing is changed; an outage is waited out, then TransportError is raised.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from nats.js.errors import NotFoundError

from ingest.contract import HEADER_COMMITTED_AT
from streams.contract import DEADLETTER_STREAM, DEADLETTER_SUBJECTS, LEDGER_STREAM
from streams.transport import Connection


@dataclass(frozen=True, slots=True)
class Backlog:
    """Events that wait, and the age of the first since its commit in PostgreSQL; 0 for none."""

    events: int
    lag_ms: int


async def look_behind(connection: Connection, following: int) -> Backlog:
    """Return what waits from sequence `following` on; NotFoundError where there is no stream."""

    async def read() -> Backlog:
        jetstream = connection.jetstream
        state = (await jetstream.stream_info(LEDGER_STREAM)).state
        # What the stream dropped waits no more.
        first = max(following, state.first_seq)
        if first > state.last_seq:
            return Backlog(0, 0)
        waiting = await jetstream.get_msg(LEDGER_STREAM, seq=first, subject=">", next=True)
        text = (waiting.headers or {}).get(HEADER_COMMITTED_AT)
        now = datetime.now(UTC)
        at = datetime.fromisoformat(text) if text else waiting.time or now
        return Backlog(state.last_seq - first + 1, max(0, round((now - at).total_seconds() * 1000)))

    return await connection.retrying(f"read {LEDGER_STREAM}", read)


async def waiting_letters(connection: Connection) -> Mapping[str, int]:
    """Return how many letters wait, by their subjects. Raises TransportError."""

    async def read() -> Mapping[str, int]:
        try:
            info = await connection.jetstream.stream_info(
                DEADLETTER_STREAM, subjects_filter=DEADLETTER_SUBJECTS
            )
        except NotFoundError:
            return {}
        return info.state.subjects or {}

    return await connection.retrying(f"read {DEADLETTER_STREAM}", read)
