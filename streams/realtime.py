"""Entrypoint `python -m streams.realtime`: each step of a payment is pushed to who watches it.

The stream's payment events go to Redis pub/sub, one channel a payment, and from there to the
sockets of whichever API processes serve them. An event is acknowledged after it was published, so
while Redis is away the stream waits and nothing is lost; what is published late or twice does no
harm, since sockets order by the payment's own number and read gaps from PostgreSQL. A poison event
goes to the dead letters. The worker's first start begins at the stream's next event: sockets begin
with the state in PostgreSQL, so there is no history they would want.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import orjson
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from api.contract import live_channel
from infra.telemetry import configure_logging
from ingest.contract import SUBJECT_ROOT, ChangeEvent, Operation
from streams.app import Reading, processor_worker, serve
from streams.contract import REALTIME_APP, REALTIME_DEADLETTER_SUBJECT
from streams.processor import AwayError, LedgerMessage, Processor, Surroundings
from streams.rows import PoisonEventError
from streams.settings import RealtimeSettings

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

    A row's change without a new number is none, neither is a row from before numbers existed, nor
    one that a backfill tells again: nothing happened to it.
    Raises PoisonEventError where the event is not what its subject says.
    """
    try:
        event = ChangeEvent.from_bytes(payload or b"")
        if event.subject != subject:
            raise PoisonEventError(f"published on {subject}, but says {event.subject}")
        row = event.after
        if row is None or "event_seq" not in row or event.operation is Operation.SNAPSHOT:
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


class RealtimeProcessor(Processor):
    """Publishes the payments' steps, in the stream's order."""

    needs = "Redis"
    # A payer watches: after a short absence the wait must not be what they notice.
    first_wait_s = 0.1
    longest_wait_s = 2.0

    def __init__(self, redis: Redis, surroundings: Surroundings) -> None:
        super().__init__(surroundings)
        self._redis = redis

    async def process(self, messages: Sequence[LedgerMessage]) -> None:
        """Publish a batch; InterruptedBatchError when told to stop while Redis is away."""
        pushes: list[Push] = []
        for message in messages:
            if not message.subject.startswith(_PAYMENT_PREFIX):
                continue
            push = await self.understood(message, partial(push_for, message.subject, message.value))
            if push is not None:
                pushes.append(push)
        if pushes:
            await self.until_back(lambda: self._publish(pushes))
        self.finished(messages, len(pushes))

    async def _publish(self, pushes: Sequence[Push]) -> None:
        """Publish all in one round trip."""
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for push in pushes:
                    pipeline.publish(push.channel, push.text)
                await pipeline.execute()
        except (RedisError, OSError) as error:
            raise AwayError(type(error).__name__) from error

    async def close(self) -> None:
        """Close the connections to Redis."""
        async with asyncio.timeout(CLOSE_DEADLINE_S):
            await self._redis.aclose()


def processor(settings: RealtimeSettings, surroundings: Surroundings) -> RealtimeProcessor:
    """Return the processor on the Redis of the settings; it connects at its first batch."""
    timeout_s = settings.redis_timeout_ms / 1000
    redis = Redis.from_url(
        settings.redis_url.get_secret_value(),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        # We wait and try again ourselves, and say so.
        retry=Retry(NoBackoff(), 0),
    )
    return RealtimeProcessor(redis, surroundings)


def main() -> None:
    """Run the realtime worker until it is told to stop."""
    configure_logging("realtime")
    settings = RealtimeSettings()
    reading = Reading(
        REALTIME_APP,
        agent="realtime",
        deadletter_subject=REALTIME_DEADLETTER_SUBJECT,
        begin="latest",
    )
    serve(processor_worker(settings, reading, partial(processor, settings)))


if __name__ == "__main__":
    main()
