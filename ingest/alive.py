"""What the stream believes alive: the rows of a table that were told and never told to be gone.

Read from the stream itself, since that is what every consumer knows. Keys are kept, images are not:
an image is read again where it is needed. Where a table was told so often that its keys would not
fit, they are taken in several passes. A stream that does not answer raises `PublishFailed`.
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import Final, LiteralString

import orjson
from nats.errors import Error as NatsError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from psycopg import sql

from ingest.contract import Operation, subject_for
from ingest.errors import PublishFailed
from ingest.guardian import Database
from ingest.runs import Run

Key = tuple[str, ...]

MAX_KEYS: Final = 1_000_000
"""Messages of a table for each pass, and so the most keys in memory: about 250 MB."""
FETCH: Final = 1000
FETCH_TIMEOUT_S: Final = 10.0
ABANDONED_S: Final = 60.0
"""How long the server keeps the reader of a process that died."""
ASKED: Final = 5000

_GONE: Final[LiteralString] = """
    SELECT told.place FROM unnest({values}) WITH ORDINALITY AS told ({names}, place)
    WHERE (told.{first} >= %(from)s OR %(from)s::text IS NULL)
      AND (told.{first} <= %(to)s OR %(to)s::text IS NULL)
      AND NOT EXISTS (SELECT FROM {table} AS kept WHERE {same})
    ORDER BY told.place
"""


class Alive:
    """The keys of one table that the stream believes alive, each with its last event's sequence.

    `part` of `parts` is the share of all keys that this one keeps.
    """

    def __init__(
        self, jetstream: JetStreamContext, stream: str, run: Run, key: Sequence[str]
    ) -> None:
        self._jetstream = jetstream
        self._stream = stream
        self._run = run
        self._key = tuple(key)
        self._read = 0
        self.sequences: dict[Key, int] = {}

    @property
    def _subjects(self) -> str:
        told = subject_for(self._run.table_name, Operation.SNAPSHOT)
        return f"{told.rpartition('.')[0]}.>"

    async def parts(self) -> int:
        """Return in how many passes the table has to be read."""
        try:
            info = await self._jetstream.stream_info(self._stream, subjects_filter=self._subjects)
        except (NatsError, TimeoutError) as error:
            raise _silent(self._stream, error) from error
        told = sum((info.state.subjects or {}).values())
        return 1 + int(told) // MAX_KEYS

    async def read_on(self, through: int, part: int, parts: int) -> None:
        """Take in what the stream says after what was read before, up to sequence `through`."""
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self._read + 1,
            ack_policy=AckPolicy.NONE,
            filter_subject=self._subjects,
            inactive_threshold=ABANDONED_S,
        )
        try:
            reader = await self._jetstream.pull_subscribe(
                self._subjects, stream=self._stream, config=config
            )
            left = (await reader.consumer_info()).num_pending or 0
            while left > 0:
                messages = await reader.fetch(min(FETCH, left), timeout=FETCH_TIMEOUT_S)
                left -= len(messages)
                for message in messages:
                    if message.metadata.sequence.stream > through:
                        left = 0
                        break
                    self._take(message.data, message.metadata.sequence.stream, part, parts)
            await reader.unsubscribe()
        except (NatsError, TimeoutError) as error:
            raise _silent(self._stream, error) from error
        self._read = through

    def _take(self, payload: bytes, sequence: int, part: int, parts: int) -> None:
        event = orjson.loads(payload)
        gone = event["op"] == Operation.DELETE
        row = event["before"] if gone else event["after"]
        key = tuple(str(row[name]) for name in self._key)
        if parts > 1 and zlib.crc32("/".join(key).encode()) % parts != part:
            return
        if gone:
            self.sequences.pop(key, None)
        elif self._run.merchant_id is None or event["key"] == self._run.merchant_id:
            self.sequences[key] = sequence

    def not_in(self, database: Database) -> list[Key]:
        """Return the keys, of those that the run is about, that the table does not have."""
        names = [sql.Identifier(name) for name in self._key]
        query = sql.SQL(_GONE).format(
            values=sql.SQL(", ").join(
                sql.SQL("{}::text[]").format(sql.Placeholder(f"k{place}"))
                for place in range(len(names))
            ),
            names=sql.SQL(", ").join(names),
            first=names[0],
            table=sql.Identifier("public", self._run.table_name),
            same=sql.SQL(" AND ").join(
                sql.SQL("kept.{name}::text = told.{name}").format(name=name) for name in names
            ),
        )
        ends = {"from": self._run.range_from, "to": self._run.range_to}
        gone: list[Key] = []
        for keys in _batches(list(self.sequences), ASKED):
            columns = {
                f"k{place}": list(column) for place, column in enumerate(zip(*keys, strict=True))
            }
            found = database.execute(query, {**ends, **columns})
            gone += [keys[place - 1] for (place,) in found]
        return gone

    async def image(self, key: Key) -> str:
        """Return the row as the stream told it last."""
        try:
            message = await self._jetstream.get_msg(self._stream, self.sequences[key])
        except (NatsError, TimeoutError) as error:
            raise _silent(self._stream, error) from error
        return orjson.dumps(orjson.loads(message.data or b"")["after"]).decode()


def _batches(keys: list[Key], size: int) -> Iterator[list[Key]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def _silent(stream: str, error: BaseException) -> PublishFailed:
    return PublishFailed(f"stream {stream} cannot be read: {error or type(error).__name__}")
