"""Entrypoint `python -m streams.realtime`: each step of a payment is pushed to who watches it.

The stream's payment events go to Redis pub/sub, one channel a payment, and from there to the
sockets of whichever API processes serve them. An event is acknowledged after it was published, so
while Redis is away the stream waits and nothing is lost; what is published late or twice does no
harm, since sockets order by the payment's own number and read gaps from PostgreSQL. A poison event
goes to the dead letters. The worker's first start begins at the stream's next event: sockets begin
with the state in PostgreSQL, so there is no history they would want.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final

import faust
import orjson
from faust.types import TP, AppT, StreamT
from mode.supervisors import CrashingSupervisor
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from api.contract import live_channel
from infra.telemetry import configure_logging, get_logger
from ingest.contract import SUBJECT_ROOT, ChangeEvent
from streams.app import new_app, quiet_worker, serve
from streams.contract import (
    LEDGER_STREAM,
    LEDGER_TOPIC,
    REALTIME_APP,
    REALTIME_DEADLETTER_SUBJECT,
)
from streams.deadletter import DeadLetters
from streams.progress import Progress, Reporter
from streams.rows import PoisonEventError, watermark_for
from streams.settings import RealtimeSettings
from streams.transport import Connection, JetStreamMessage
from streams.warehouse import InterruptedBatchError

log = get_logger(__name__)

FIRST_WAIT_S: Final = 0.1
LONGEST_WAIT_S: Final = 2.0
CLOSE_DEADLINE_S: Final = 3.0
_SUBJECT_PREFIX: Final = f"{SUBJECT_ROOT}."
_PAYMENT_PREFIX: Final = f"{SUBJECT_ROOT}.payment."


@dataclass(frozen=True, slots=True)
class Push:
    """What is published, and where."""

    channel: str
    text: bytes


def push_for(subject: str, payload: bytes | None) -> Push | None:
    """Return what to publish of an event, None where it is no step that a payer sees.

    A row's change without a new number is none, and neither is a row from before numbers existed.
    Raises PoisonEventError where the event is not what its subject says.
    """
    try:
        event = ChangeEvent.from_bytes(payload or b"")
        if event.subject != subject:
            raise PoisonEventError(f"published on {subject}, but says {event.subject}")
        row = event.after
        if row is None or "event_seq" not in row:
            return None
        seq, before = row["event_seq"], event.before
        if not isinstance(seq, int) or isinstance(seq, bool):
            raise PoisonEventError(f"not a number of an event: {seq!r}")
        if before is not None and before.get("event_seq") == seq:
            return None
        payment_id, merchant_id = row["id"], row["merchant_id"]
        if not isinstance(payment_id, str) or not isinstance(merchant_id, str):
            raise PoisonEventError("a payment without id or merchant")
    except KeyError as error:
        raise PoisonEventError(f"missing {error}") from error
    except ValueError as error:
        raise PoisonEventError(str(error)) from error
    text = orjson.dumps(
        {
            "seq": seq,
            "payment_id": payment_id,
            "merchant_id": merchant_id,
            "event": subject.removeprefix(_SUBJECT_PREFIX),
            "row": row,
        }
    )
    return Push(live_channel(payment_id), text)


class RealtimeProcessor:
    """Publishes the payments' steps, in the stream's order; holds no state."""

    def __init__(
        self,
        *,
        redis: Redis,
        deadletters: DeadLetters,
        progress: Progress,
        pause: Callable[[float], Awaitable[object]],
        stopping: Callable[[], bool],
    ) -> None:
        self._redis = redis
        self.deadletters = deadletters
        self._progress = progress
        self._pause = pause
        self._stopping = stopping

    async def process(self, messages: Sequence[JetStreamMessage]) -> None:
        """Publish a batch; InterruptedBatchError when told to stop while Redis is away."""
        pushes: list[Push] = []
        for message in messages:
            if not message.subject.startswith(_PAYMENT_PREFIX):
                continue
            try:
                push = push_for(message.subject, message.value)
            except PoisonEventError as error:
                await self._bury(message, str(error))
            else:
                if push is not None:
                    pushes.append(push)
        if pushes:
            await self._publish(pushes)
        last = messages[-1]
        watermark = watermark_for(last.headers or {}, last.offset)
        self._progress.advanced(
            sequence=last.offset,
            committed_at=watermark.committed_through if watermark else None,
            events=len(messages),
            rows=len(pushes),
        )

    async def _publish(self, pushes: Sequence[Push]) -> None:
        """Publish all in one round trip, waiting out a Redis that is away."""
        wait_s, away_since = FIRST_WAIT_S, 0.0
        while True:
            try:
                async with self._redis.pipeline(transaction=False) as pipeline:
                    for push in pushes:
                        pipeline.publish(push.channel, push.text)
                    await pipeline.execute()
            except (RedisError, OSError) as error:
                away_since = away_since or monotonic()
                self._progress.blocked(f"Redis away, trying again: {type(error).__name__}")
                log.warning("redis away", problem=type(error).__name__, wait_s=round(wait_s, 2))
                await self._pause(wait_s * random.uniform(0.5, 1.0))
                if self._stopping():
                    raise InterruptedBatchError from error
                wait_s = min(wait_s * 2, LONGEST_WAIT_S)
            else:
                if away_since:
                    log.info("redis back", away_s=round(monotonic() - away_since, 1))
                self._progress.unblocked()
                return

    async def _bury(self, message: JetStreamMessage, reason: str) -> None:
        await self.deadletters.send(
            sequence=message.offset,
            subject=message.subject,
            headers=message.headers or {},
            payload=message.value,
            reason=reason,
            attempt=1,
        )
        self._progress.dead_letters += 1


def realtime_worker(settings: RealtimeSettings) -> faust.Worker:
    """Return the worker of the realtime processor, ready to be run."""
    app = new_app(settings, REALTIME_APP, begin="latest")
    progress = Progress()
    timeout_s = settings.redis_timeout_ms / 1000
    redis = Redis.from_url(
        settings.redis_url.get_secret_value(),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        # We wait and try again ourselves, and say so.
        retry=Retry(NoBackoff(), 0),
    )
    connection = Connection(app.transport.url, f"{REALTIME_APP} dead letters")
    processor = RealtimeProcessor(
        redis=redis,
        deadletters=DeadLetters(
            connection,
            consumer=REALTIME_APP,
            subject=REALTIME_DEADLETTER_SUBJECT,
            source_stream=LEDGER_STREAM,
        ),
        progress=progress,
        pause=app.sleep,
        stopping=lambda: bool(app.should_stop),
    )
    _declare_agent(app, settings, processor, connection, redis)
    return quiet_worker(app, Reporter(app, TP(LEDGER_TOPIC, 0), progress))


def _declare_agent(
    app: AppT,
    settings: RealtimeSettings,
    processor: RealtimeProcessor,
    connection: Connection,
    redis: Redis,
) -> None:
    topic = app.topic(
        LEDGER_TOPIC,
        key_type=bytes,
        value_type=bytes,
        key_serializer="raw",
        value_serializer="raw",
    )

    @app.agent(topic, name="realtime", supervisor_strategy=CrashingSupervisor)  # type: ignore[untyped-decorator]
    async def realtime(stream: StreamT) -> None:
        await connection.open()
        await processor.deadletters.ensure(replicas=settings.replicas)
        # A batch is whatever has arrived: nothing waits for company.
        async for events in stream.take_events(settings.batch_size, within=0):
            try:
                await processor.process([event.message for event in events])
            except InterruptedBatchError:
                return

    @app.on_before_shutdown.connect  # type: ignore[untyped-decorator]
    async def disconnect(*_: object, **__: object) -> None:
        async with asyncio.timeout(CLOSE_DEADLINE_S):
            await redis.aclose()
        await connection.close()


def main() -> None:
    """Run the realtime worker until it is told to stop."""
    configure_logging("realtime")
    serve(realtime_worker(RealtimeSettings()))


if __name__ == "__main__":
    main()
