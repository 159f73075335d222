"""Alerts of the risk processor, read as one merchant: through the warehouse's pool and its views.

`risk.alerts` shows the merchant's own rows only; PostgreSQL sees to that. WarehouseAwayError where
it cannot be read now.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final, LiteralString

import streamlit as st

from dashboards.warehouse import LIVE_TTL_S, MAX_ENTRIES, Warehouse, warehouse

MOST_SHOWN: Final = 50

LATEST: Final[LiteralString] = """
SELECT payment_id, severity, reasons ->> 'vi' AS vi, reasons ->> 'en' AS en, occurred_at
FROM risk.alerts
ORDER BY occurred_at DESC, alert_id DESC
LIMIT %s
"""
FRESHNESS: Final[LiteralString] = "SELECT committed_through AS at FROM risk.freshness"


@dataclass(frozen=True, slots=True)
class Alert:
    """A payment that a rule flagged; the explanation is in each language."""

    payment_id: str
    severity: str
    explanations: dict[str, str]
    occurred_at: datetime


@dataclass(frozen=True, slots=True)
class Alerts:
    """The latest alerts, newest first, and up to when payments were judged, from one snapshot."""

    latest: tuple[Alert, ...]
    complete_through: datetime | None


def read(source: Warehouse, merchant_id: str) -> Alerts:
    """Read the latest alerts of a merchant."""
    with source.as_merchant(merchant_id) as cursor:
        rows = cursor.execute(LATEST, (MOST_SHOWN,)).fetchall()
        freshness = cursor.execute(FRESHNESS).fetchone()
    return Alerts(
        tuple(
            Alert(row.payment_id, row.severity, {"vi": row.vi, "en": row.en}, row.occurred_at)
            for row in rows
        ),
        freshness.at if freshness else None,
    )


# The merchant is a plain argument, as in dashboards.warehouse: it must be in the cache's key.


@st.cache_data(ttl=LIVE_TTL_S, max_entries=MAX_ENTRIES, show_spinner=False)
def latest(merchant_id: str) -> Alerts:
    """The latest alerts; at most LIVE_TTL_S old."""
    return read(warehouse(), merchant_id)
