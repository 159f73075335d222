"""Gives a dead letter another try: finds in its payment what an undisturbed run had found.

The worker has moved on, and what its rules remember is of now. So the merchant's payments before
the letter's are judged again, from the first that the stream still has, and the alerts of the
letter's payment alone are kept. What is there already is not told again, and nothing of the worker
is read or changed: later payments stay judged without this one until the stream is replayed.
TransportError where NATS stays away, InterruptedBatchError where the warehouse does.
"""

from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Final

from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from ingest.contract import HEADER_KEY
from streams.contract import LEDGER_STREAM, RISK_APP
from streams.processor import LedgerMessage, Processor, Surroundings
from streams.risk.engine import Engine
from streams.risk.flagging import Flagging
from streams.risk.payments import ARRIVALS, Payment, payment_of
from streams.risk.rules import RULES_FILE, load
from streams.settings import RiskSettings
from streams.transport import Connection, ServerUnavailableError

SILENCE_LIMIT_S: Final = 5.0
FETCHED_AT_ONCE: Final = 500


class Again(Processor):
    """Judges single payments of the past."""

    needs = "warehouse"

    def __init__(
        self, engine: Engine, connection: Connection, outlet: Flagging, surroundings: Surroundings
    ) -> None:
        super().__init__(surroundings)
        self._engine = engine
        self._connection = connection
        self._outlet = outlet

    async def process(self, messages: Sequence[LedgerMessage]) -> None:
        """Keep the alerts of each message's payment."""
        await self._connection.open()
        for message in messages:
            payment = await self.understood(
                message, partial(payment_of, message.subject, message.value, message.offset)
            )
            if payment is None:
                continue
            records = await self._records(payment)
            verdict = await self.understood(
                message, partial(self._engine.judge, payment, records.get)
            )
            if verdict is not None and verdict.alerts:
                await self.until_back(partial(self._outlet.flag, verdict.alerts, None))

    async def close(self) -> None:
        """Close the outlet, and with it the connection."""
        await self._outlet.close()

    async def _records(self, payment: Payment) -> dict[bytes, bytes]:
        """Return what the rules remembered when the payment came."""
        records: dict[bytes, bytes] = {}
        async for message in self._arrivals(payment.sequence):
            if (message.headers or {}).get(HEADER_KEY, payment.merchant_id) != payment.merchant_id:
                continue
            try:
                earlier = payment_of(message.subject, message.data, _place(message))
                if earlier is not None:
                    records |= self._engine.judge(earlier, records.get).records
            except Exception:  # noqa: BLE001, S112 - then it is a letter of its own
                continue
        return records

    async def _arrivals(self, before: int) -> AsyncIterator[Msg]:
        """Give what the stream has on `ARRIVALS` before a place, in order."""
        config = ConsumerConfig(
            filter_subjects=sorted(ARRIVALS),
            deliver_policy=DeliverPolicy.ALL,
            ack_policy=AckPolicy.NONE,
            mem_storage=True,
            inactive_threshold=6 * SILENCE_LIMIT_S,
        )
        try:
            reader = await self._connection.jetstream.pull_subscribe(
                "", stream=LEDGER_STREAM, config=config
            )
            is_more = bool((await reader.consumer_info()).num_pending)
            while is_more:
                for message in await reader.fetch(FETCHED_AT_ONCE, timeout=SILENCE_LIMIT_S):
                    is_more = message.metadata.num_pending > 0 and _place(message) < before - 1
                    if _place(message) < before:
                        yield message
            await reader.unsubscribe()
        except NatsError as error:
            raise ServerUnavailableError(f"read {LEDGER_STREAM}", SILENCE_LIMIT_S) from error


def processor(settings: RiskSettings, surroundings: Surroundings) -> Again:
    """Return the processor on the services of the settings; raises RulesError."""
    connection = surroundings.connect(f"{RISK_APP} again")
    outlet = Flagging(connection, settings.warehouse_url.get_secret_value(), settings.replicas)
    engine = Engine(load(settings.rules_file or RULES_FILE))
    return Again(engine, connection, outlet, surroundings)


def _place(message: Msg) -> int:
    return int(message.metadata.sequence.stream)
