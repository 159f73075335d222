"""Between the stream and the engine: payments of a batch are judged, alerts kept, then records.

A batch is acknowledged after its alerts are durable, and its records are set after that, all of a
batch at once: whatever dies in between is done again, with the same alerts. A poison event goes to
the dead letters and its neighbours pass.
"""

from collections.abc import MutableMapping, Sequence
from functools import partial
from typing import Protocol

from streams.processor import LedgerMessage, Processor, Surroundings, last_watermark
from streams.risk.engine import Alert, Engine, Verdict
from streams.risk.payments import ARRIVALS, payment_of
from streams.rows import Watermark


class Outlet(Protocol):
    """Where alerts go."""

    async def flag(self, alerts: Sequence[Alert], watermark: Watermark | None) -> None:
        """Make alerts durable, in order; AwayError where that is not possible now."""

    async def close(self) -> None:
        """Give back what it holds, within a deadline."""


class RiskProcessor(Processor):
    """Judges the payments of the stream, in its order."""

    needs = "warehouse"

    def __init__(
        self,
        engine: Engine,
        records: MutableMapping[bytes, bytes],
        outlet: Outlet,
        surroundings: Surroundings,
    ) -> None:
        super().__init__(surroundings)
        self._engine = engine
        self._records = records
        self._outlet = outlet

    async def process(self, messages: Sequence[LedgerMessage]) -> None:
        """Judge a batch; InterruptedBatchError when told to stop while the warehouse is away."""
        alerts: list[Alert] = []
        records: dict[bytes, bytes] = {}
        for message in messages:
            if message.subject not in ARRIVALS:
                continue
            verdict = await self.understood(message, partial(self._verdict, message, records))
            if verdict is not None:
                alerts += verdict.alerts
                records |= verdict.records
        watermark = last_watermark(messages)
        if alerts or watermark is not None:
            await self.until_back(lambda: self._outlet.flag(alerts, watermark))
        self._records.update(records)
        self.finished(messages, len(alerts))

    def _verdict(self, message: LedgerMessage, records: dict[bytes, bytes]) -> Verdict | None:
        payment = payment_of(message.subject, message.value, message.offset)
        if payment is None:
            return None
        return self._engine.judge(payment, lambda key: records.get(key) or self._records.get(key))

    async def close(self) -> None:
        """Close the outlet."""
        await self._outlet.close()
