"""Makes alerts durable: as events on the stream RISK, and as rows of the warehouse.

Whether an alert is there already is the row's to say. So what has no row is published first, and
then gets it, in one database transaction with the watermark: an alert with a row was published. A
death between the two publishes the same again under the same message id, which JetStream drops for
an hour. AwayError where the warehouse is away; TransportError where NATS stays away.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Final, LiteralString

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from psycopg import AsyncConnection

from streams.contract import (
    RISK_APP,
    RISK_FLAGGED_SUBJECT,
    RISK_SOURCE,
    RISK_STREAM,
    RISK_SUBJECTS,
    RiskLimits,
)
from streams.risk.engine import Alert
from streams.rows import Watermark
from streams.store import Session, move_watermark
from streams.transport import Connection

CLOSE_DEADLINE_S: Final = 3.0

KNOWN: Final[LiteralString] = """
SELECT alert_id FROM raw.risk_alerts
WHERE alert_id = ANY (%s) AND occurred_at BETWEEN %s AND %s
"""
# One statement, however many alerts: in a pipeline of several the server waits for a worker that
# froze, with all its locks and no timeout that would end it.
ADD: Final[LiteralString] = """
INSERT INTO raw.risk_alerts
    (occurred_at, alert_id, merchant_id, payment_id, event_id, rule_id, rule_version, rule_set,
     severity, score, reasons)
SELECT occurred_at, id, merchant_id, payment_id, event_id, rule_id, rule_version, rule_set,
       severity, score, reasons
FROM jsonb_to_recordset(%s::jsonb) AS told
    (occurred_at timestamptz, id text, merchant_id text, payment_id text, event_id text,
     rule_id text, rule_version integer, rule_set text, severity text, score integer, reasons jsonb)
ON CONFLICT (alert_id, occurred_at) DO NOTHING
"""


class Flagging:
    """Where alerts go: one connection to NATS and one to the warehouse, made when needed."""

    def __init__(self, connection: Connection, warehouse_url: str, replicas: int) -> None:
        self._connection = connection
        self._session = Session(warehouse_url, RISK_APP)
        self._replicas = replicas
        self._ensured = False

    async def flag(self, alerts: Sequence[Alert], watermark: Watermark | None) -> None:
        """Make alerts durable, in order, and move the watermark; repeating it changes nothing."""
        if not self._ensured:
            await self._connection.open()
            await self._ensure()
            self._ensured = True
        known = await self._known(alerts)
        for alert in alerts:
            if alert.id not in known:
                await self._publish(alert)
        await self._session.run(lambda database: _write(database, alerts, watermark))

    async def close(self) -> None:
        """Close both connections."""
        async with asyncio.timeout(CLOSE_DEADLINE_S):
            await self._session.close()
            await self._connection.close()

    async def _known(self, alerts: Sequence[Alert]) -> set[str]:
        if not alerts:
            return set()
        moments = [alert.occurred_at for alert in alerts]
        asked = ([alert.id for alert in alerts], min(moments), max(moments))

        async def read(database: AsyncConnection[tuple[Any, ...]]) -> set[str]:
            found = await database.execute(KNOWN, asked)
            return {str(alert_id) for (alert_id,) in await found.fetchall()}

        return await self._session.run(read)

    async def _publish(self, alert: Alert) -> None:
        payload = alert.to_bytes()
        await self._connection.retrying(
            "risk alert",
            lambda: self._connection.jetstream.publish(
                RISK_FLAGGED_SUBJECT, payload, headers={"Nats-Msg-Id": alert.id}
            ),
        )

    async def _ensure(self) -> None:
        """Create the stream of alerts with its limits if it is not there."""
        limits = RiskLimits()
        wanted = StreamConfig(
            name=RISK_STREAM,
            description="payments that a rule flagged, with the reasons",
            subjects=[RISK_SUBJECTS],
            retention=RetentionPolicy.LIMITS,
            storage=StorageType.FILE,
            discard=DiscardPolicy.OLD,
            num_replicas=self._replicas,
            max_bytes=limits.max_bytes,
            max_msg_size=limits.max_message_bytes,
            duplicate_window=limits.deduplication_s,
        )
        await self._connection.ensure_stream("risk stream", wanted)


async def _write(
    database: AsyncConnection[tuple[Any, ...]],
    alerts: Sequence[Alert],
    watermark: Watermark | None,
) -> None:
    async with database.transaction(), database.cursor() as cursor:
        if alerts:
            told = b"[%b]" % b",".join(alert.to_bytes() for alert in alerts)
            await cursor.execute(ADD, (told.decode(),))
        if watermark is not None:
            await move_watermark(cursor, RISK_SOURCE, watermark)
