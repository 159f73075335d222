"""The dead-letter stream as a box of letters: read, corrected, replaced, removed, discarded.

Every request waits for a server that is just away, and then raises TransportError. Removing and
replacing may be done twice: a letter that is gone is gone, and a replacement has an id of its own.
A discarded letter goes whole to a stream from which nobody can delete a message, with who discarded
it, when and why, before it leaves the box; a death between the two leaves it in both.
"""

import base64
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from ingest.contract import HEADER_EVENT_ID, HEADER_KEY, ChangeEvent
from streams.contract import (
    DEADLETTER_STREAM,
    DEADLETTER_SUBJECTS,
    DISCARDED_STREAM,
    DISCARDED_SUBJECTS,
    DeadLetterHeader,
    DeadLetterLimits,
)
from streams.deadletter import failure_headers
from streams.transport import Connection

MOST_LISTED: Final = 10_000
STREAM_IS_FULL: Final = 10077


class LetterError(Exception):
    """A command cannot be done; the sentence says what to do, `status` is the exit status."""

    def __init__(self, told: str, status: int) -> None:
        self.status = status
        super().__init__(told)


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter: the event as it was, and why it failed. `number` is its place in the stream.

    A processor takes it as a message: `subject` and `offset` are those of the ledger's stream.
    """

    number: int
    place: str
    value: bytes | None
    told: Mapping[str, str]

    @property
    def subject(self) -> str:
        """The subject the event was published on."""
        return self.told.get(DeadLetterHeader.SUBJECT, "")

    @property
    def offset(self) -> int:
        """The event's sequence in the ledger's stream."""
        return int(self.told.get(DeadLetterHeader.SEQUENCE, "0"))

    @property
    def headers(self) -> Mapping[str, bytes]:
        """The headers the event had."""
        ours = {header.value for header in DeadLetterHeader}
        return {
            name: text.encode()
            for name, text in self.told.items()
            if name not in ours and not name.startswith("Nats-")
        }

    @property
    def consumer(self) -> str:
        """The processor that failed on it."""
        return self.told.get(DeadLetterHeader.CONSUMER, "")

    @property
    def key(self) -> str:
        """The event's partition key, empty where it has none."""
        return self.told.get(HEADER_KEY, "")

    @property
    def attempt(self) -> int:
        """How many times it was tried, so far."""
        return int(self.told.get(DeadLetterHeader.ATTEMPT, "1"))

    @property
    def traceback(self) -> str:
        """Where in the code it failed, empty for letters from before that was kept."""
        text = self.told.get(DeadLetterHeader.TRACEBACK)
        return orjson.loads(text) if text else ""

    def as_json(self) -> dict[str, Any]:
        """Return what `--json` prints of a letter; bytes that are no UTF-8 are replaced."""
        return {
            "letter": self.number,
            "consumer": self.consumer,
            "subject": self.subject,
            "sequence": self.offset,
            "event_id": self.told.get(HEADER_EVENT_ID),
            "key": self.key or None,
            "attempt": self.attempt,
            "failed_at": self.told.get(DeadLetterHeader.FAILED_AT),
            "reason": self.told.get(DeadLetterHeader.REASON),
            "traceback": self.traceback,
            "payload": None if self.value is None else self.value.decode(errors="replace"),
        }

    @property
    def discarded(self) -> dict[str, Any]:
        """Who discarded it, when and why; empty for a letter that still is in the box."""
        if DeadLetterHeader.DISCARDED_AT not in self.told:
            return {}
        return {
            "letter": int(self.told[DeadLetterHeader.DISCARDED_LETTER]),
            "discarded_at": self.told[DeadLetterHeader.DISCARDED_AT],
            "discarded_by": self.told[DeadLetterHeader.DISCARDED_BY],
            "why": self.told[DeadLetterHeader.DISCARDED_WHY],
        }


class LetterBox:
    """The dead-letter stream."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def letters(self, *, after: int = 0, most: int = MOST_LISTED) -> AsyncIterator[Letter]:
        """Give the letters numbered after `after`, in order, at most so many."""
        async for letter in self._following(DEADLETTER_STREAM, DEADLETTER_SUBJECTS, after, most):
            yield letter

    async def discarded(self, *, after: int = 0, most: int = MOST_LISTED) -> AsyncIterator[Letter]:
        """Give the letters that were discarded, in order; `number` is their place among those."""
        async for letter in self._following(DISCARDED_STREAM, DISCARDED_SUBJECTS, after, most):
            yield letter

    async def letter(self, number: int) -> Letter:
        """Return one letter; raises LetterError where there is none of that number."""
        found = await self._read(DEADLETTER_STREAM, number)
        if found is None:
            raise LetterError(f"there is no dead letter {number}; list shows those there are", 1)
        return found

    async def remove(self, letter: Letter) -> None:
        """Remove a letter that is dealt with; one that is gone already is no error."""
        await self._connection.delete(DEADLETTER_STREAM, letter.number)

    async def replace(self, letter: Letter, error: Exception) -> None:
        """Keep a letter that failed again, with the new reason and one attempt more."""
        attempt = letter.attempt + 1
        source = letter.told.get(DeadLetterHeader.STREAM, "")
        headers = {
            **letter.told,
            **failure_headers(error, attempt),
            "Nats-Msg-Id": f"{letter.consumer}:{source}:{letter.offset}:{attempt}",
        }
        await self._connection.retrying(
            "dead letter",
            lambda: self._connection.jetstream.publish(
                letter.place, letter.value or b"", headers=dict(headers)
            ),
        )
        await self.remove(letter)

    async def discard(self, letter: Letter, *, by: str, why: str) -> None:
        """Take a letter out of the box for good, its record kept; LetterError where that is full.

        The stream of the records is made at the first, as safe as that of the letters.
        """
        jetstream = self._connection.jetstream
        box = await self._connection.retrying(
            "look at the dead letters", lambda: jetstream.stream_info(DEADLETTER_STREAM)
        )
        wanted = StreamConfig(
            name=DISCARDED_STREAM,
            description="dead letters that were discarded, by whom, when and why",
            subjects=[DISCARDED_SUBJECTS],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.NEW,
            num_replicas=box.config.num_replicas or 1,
            max_bytes=DeadLetterLimits().max_bytes,
            deny_delete=True,
            deny_purge=True,
        )
        await self._connection.ensure_stream("stream of discarded letters", wanted)
        headers = {
            **{name: text for name, text in letter.told.items() if not name.startswith("Nats-")},
            DeadLetterHeader.DISCARDED_LETTER.value: str(letter.number),
            DeadLetterHeader.DISCARDED_BY.value: by,
            DeadLetterHeader.DISCARDED_AT.value: datetime.now(UTC).isoformat(),
            DeadLetterHeader.DISCARDED_WHY.value: why,
        }
        place = DISCARDED_SUBJECTS[:-1] + letter.place.partition(".")[2]
        try:
            await self._connection.retrying(
                "discard a dead letter",
                lambda: jetstream.publish(place, letter.value or b"", headers=dict(headers)),
            )
        except APIError as error:
            if error.err_code != STREAM_IS_FULL:
                raise
            told = f"stream {DISCARDED_STREAM} is full: raise its max_bytes; nothing was changed"
            raise LetterError(told, 2) from error
        await self.remove(letter)

    async def _following(
        self, stream: str, subjects: str, after: int, most: int
    ) -> AsyncIterator[Letter]:
        for _ in range(most):
            found = await self._read(stream, after + 1, subjects)
            if found is None:
                return
            yield found
            after = found.number

    async def _read(self, stream: str, number: int, following: str | None = None) -> Letter | None:
        """Return the message of a number, with `following` the first from it on; or None."""

        async def read() -> Letter | None:
            try:
                found = await self._connection.jetstream.get_msg(
                    stream, seq=number, subject=following, next=following is not None
                )
            except NotFoundError:
                return None
            return Letter(
                int(found.seq or 0), found.subject or "", found.data or b"", _headers(found.hdrs)
            )

        return await self._connection.retrying(f"read {stream}", read)


def corrected(letter: Letter, payload: bytes) -> Letter:
    """Return the letter with another payload; LetterError where that is not the same event."""
    try:
        event = ChangeEvent.from_bytes(payload)
    except ValueError as error:
        raise LetterError(f"the corrected payload is no change event: {error}", 2) from error
    if event.subject != letter.subject or event.id != letter.told.get(HEADER_EVENT_ID):
        raise LetterError(
            f"the corrected payload is event {event.id} on {event.subject}, the letter's is "
            f"{letter.told.get(HEADER_EVENT_ID)} on {letter.subject}",
            2,
        )
    return replace(letter, value=payload)


def _headers(stored: str | None) -> dict[str, str]:
    """Read headers as they are stored: nats-py takes them for an e-mail's, which is ASCII only."""
    lines = base64.b64decode(stored or "").split(b"\r\n")[1:]
    pairs = (line.partition(b":") for line in lines if b":" in line)
    return {name.decode(): text.strip().decode(errors="replace") for name, _, text in pairs}
