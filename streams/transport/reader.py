"""Reader of one partition: an ephemeral pull consumer and a bounded buffer before it.

Messages come in sequence order, each once per `start`. The server keeps nothing durable for a
reader: it lives in memory, needs no acknowledgement, and is made again from the next sequence
after a reconnect, a server restart, a silence longer than its heartbeat or a gap in what it
counts. So nothing is skipped and nothing is redelivered; where to begin after a death is the
offset record's business.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from uuid import uuid4

from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

from streams.transport.connection import Connection

logger = logging.getLogger(__name__)

PULL_MESSAGES = 500
BUFFER_MESSAGES = 4000
PULL_EXPIRES_S = 30.0
HEARTBEAT_S = 2.0
SILENCE_LIMIT_S = 5.0
INACTIVE_THRESHOLD_S = 60.0

_NANOSECONDS = 1_000_000_000


@dataclass(slots=True)
class Record:
    """One message as it lies in the stream."""

    sequence: int
    timestamp_s: float
    pending: int
    subject: str
    headers: dict[str, str] | None
    data: bytes


class PartitionReader:
    """Reads one partition from a start sequence onwards."""

    def __init__(
        self,
        connection: Connection,
        *,
        stream: str,
        subject_filter: str | list[str] | None,
        on_arrival: Callable[[], None],
        wanted: Callable[[Record], bool] | None = None,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._filter = subject_filter
        self._on_arrival = on_arrival
        self._wanted = wanted
        self._buffer: deque[Record] = deque()
        self._subscription: Subscription | None = None
        self._consumer = ""
        self._reads = False
        self._asked = 0
        self._heard_at = 0.0
        self._last_received = 0
        self._count = 0
        self._lock = asyncio.Lock()
        self.position = 0
        self.high_water = 0

    async def start(self, sequence: int) -> None:
        """Begin (again) at `sequence`; what was buffered is dropped."""
        async with self._lock:
            self._buffer.clear()
            self.position = max(1, sequence)
            self._last_received = self.position - 1
            self._reads = True
            await self._close()
            await self._open()

    async def stop(self) -> None:
        """Stop reading and drop the buffer; the server forgets the reader by itself."""
        async with self._lock:
            self._reads = False
            await self._close()
            self._buffer.clear()

    async def revive(self) -> None:
        """Make the consumer again where the buffer ends; call it after a reconnect.

        What is broken off here, by the next disconnection or a deadline, the next check does again.
        """
        async with self._lock:
            if self._reads:
                await self._unsubscribe()
                await self._open()

    async def check(self) -> None:
        """Revive a consumer that has fallen silent: one heartbeat comes every 2 s."""
        silent_s = monotonic() - self._heard_at
        if self._lock.locked():
            return  # it is being made
        if self._reads and not self._consumer:
            await self.revive()
        elif self._consumer and self._asked > 0 and silent_s > SILENCE_LIMIT_S:
            logger.warning("reader of %s silent for %.1f s; made again", self._stream, silent_s)
            await self.revive()

    def take(self, limit: int) -> list[Record]:
        """Hand over up to `limit` records, oldest first; an empty list when none are here."""
        buffer = self._buffer
        if len(buffer) <= limit:
            records = list(buffer)
            buffer.clear()
        else:
            records = [buffer.popleft() for _ in range(limit)]
        if records:
            self.position = records[-1].sequence + 1
        return records

    def put_back(self, records: list[Record]) -> None:
        """Take back the last records handed over; ignored when the reader was started since."""
        if records and records[-1].sequence + 1 == self.position:
            self._buffer.extendleft(reversed(records))
            self.position = records[0].sequence

    async def replenish(self) -> None:
        """Ask for more messages when the buffer has room."""
        if not self._consumer or self._asked > PULL_MESSAGES // 2:
            return
        if len(self._buffer) + self._asked + PULL_MESSAGES > BUFFER_MESSAGES:
            return
        if self._connection.is_connected and self._subscription is not None:
            await self._pull(self._subscription.subject)

    async def _open(self) -> None:
        config = ConsumerConfig(
            name=f"faust-{uuid4().hex}",
            deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self._last_received + 1,
            ack_policy=AckPolicy.NONE,
            filter_subject=None if isinstance(self._filter, list) else self._filter,
            filter_subjects=self._filter if isinstance(self._filter, list) else None,
            inactive_threshold=INACTIVE_THRESHOLD_S,
            mem_storage=True,
            num_replicas=1,
        )
        await self._connection.retrying(
            f"read {self._stream}",
            lambda: self._connection.jetstream.add_consumer(self._stream, config),
            deadline_s=30.0,
        )
        inbox = self._connection.client.new_inbox()
        self._consumer = str(config.name)
        self._heard_at = monotonic()
        try:
            self._subscription = await self._connection.client.subscribe(
                inbox, cb=self._receive, pending_msgs_limit=BUFFER_MESSAGES * 4
            )
            await self._pull(inbox)
        except BaseException:
            self._consumer = ""  # the next check makes it again
            raise

    async def _close(self) -> None:
        consumer = await self._unsubscribe()
        if not consumer or not self._connection.is_connected:
            return
        try:
            await self._connection.jetstream.delete_consumer(self._stream, consumer)
        except NotFoundError:
            return
        except (NatsError, TimeoutError) as error:
            # The server forgets an idle in-memory consumer by itself.
            logger.debug("consumer %s left to expire: %s", consumer, error)

    async def _unsubscribe(self) -> str:
        """Hear nothing more of the consumer, and return its name."""
        subscription, self._subscription = self._subscription, None
        consumer, self._consumer = self._consumer, ""
        self._asked = self._count = 0
        if subscription is not None and self._connection.is_connected:
            try:
                await subscription.unsubscribe()
            except NatsError as error:
                logger.debug("subscription of %s was gone: %s", consumer, error)
        return consumer

    async def _pull(self, inbox: str) -> None:
        self._asked += PULL_MESSAGES
        request = {
            "batch": PULL_MESSAGES,
            "expires": int(PULL_EXPIRES_S * _NANOSECONDS),
            "idle_heartbeat": int(HEARTBEAT_S * _NANOSECONDS),
        }
        await self._connection.client.publish(
            f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}",
            json.dumps(request).encode(),
            reply=inbox,
        )

    async def _receive(self, message: Msg) -> None:
        if self._subscription is None:
            return
        if self._count >= 0:
            self._heard_at = monotonic()
        headers = message.headers
        if not message.data and headers is not None and "Status" in headers:
            if message.subject == self._subscription.subject:  # not a former consumer's
                self._on_status(headers)
                await self.replenish()
            return
        reply = message.reply.split(".")
        # $JS.ACK.<stream>.<consumer>.<deliveries>.<sequence>.<consumer sequence>.<ns>.<pending>,
        # with domain and account hash before the stream, and a token behind, in the long form.
        shift = 0 if len(reply) == 9 else 2
        if reply[3 + shift] != self._consumer:
            return  # a late message of the reader's former consumer
        if int(reply[6 + shift]) != self._count + 1:
            self._lost_track()
            return
        self._count += 1
        sequence = int(reply[5 + shift])
        pending = int(reply[8 + shift])
        self._asked = max(0, self._asked - 1)
        self._last_received = sequence
        self.high_water = sequence + 1 + pending
        record = Record(
            sequence,
            int(reply[7 + shift]) / _NANOSECONDS,
            pending,
            message.subject,
            headers,
            message.data,
        )
        if self._wanted is None or self._wanted(record):
            self._buffer.append(record)
            self._on_arrival()
        if self._asked <= PULL_MESSAGES // 2:
            await self.replenish()

    def _on_status(self, headers: dict[str, str]) -> None:
        status = headers["Status"]
        if status == "100":
            return
        # The end of a pull: expired, or refused. What it still owed is owed no more.
        owed = headers.get("Nats-Pending-Messages")
        self._asked = max(0, self._asked - int(owed)) if owed is not None else 0
        if status not in ("404", "408"):
            logger.info("reader of %s: %s %s", self._stream, status, headers.get("Description"))
            self._lost_track()

    def _lost_track(self) -> None:
        """Take nothing more from this consumer, gone or with a gap; the next check revives it."""
        self._asked = max(1, self._asked)
        self._count = -1
        self._heard_at = 0.0
