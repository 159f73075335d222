"""The marts, read as one merchant: every query runs in a read-only database transaction of its own.

The merchant is set in that database transaction (`giovang.merchant_id`), and row-level security
does the rest: without it giovang_dashboards sees no tenant's row. Cached answers are keyed by the
merchant, live for seconds and are bounded in number. WarehouseAwayError where PostgreSQL is away,
or slower than a page may wait.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, LiteralString
from zoneinfo import ZoneInfo

import psycopg
import streamlit as st
from psycopg.rows import namedtuple_row
from psycopg_pool import ConnectionPool, PoolTimeout

from dashboards.settings import settings
from infra.telemetry import get_logger

LIVE_TTL_S: Final = 3.0
SLOW_TTL_S: Final = 30.0
MAX_ENTRIES: Final = 2_000
POOL_WAIT_S: Final = 5.0
log = get_logger(__name__)
_OPTIONS: Final = (
    "-c default_transaction_read_only=on -c statement_timeout=5s -c lock_timeout=5s"
    " -c idle_in_transaction_session_timeout=10s -c timezone=UTC"
)

TODAY: Final[LiteralString] = """
SELECT
    today.local_date, today.cut_at, today.volume_vnd, today.tx_count, today.refunds_vnd,
    today.refund_count, today.net_vnd, today.created_count, today.created_completed_count,
    today.conversion,
    today.day_before_net_vnd, today.day_before_tx_count, today.day_before_refunds_vnd,
    today.day_before_conversion,
    today.week_before_net_vnd, today.week_before_tx_count, today.week_before_refunds_vnd,
    today.week_before_conversion
FROM marts.merchant_today AS today
"""
FRESHNESS: Final[LiteralString] = "SELECT MIN(committed_through) AS at FROM marts.freshness"
HOURS: Final[LiteralString] = """
SELECT hour, total_volume, tx_count
FROM marts.hourly_volume
WHERE hour >= %s AND hour < %s
ORDER BY hour
"""
PROFILE: Final[LiteralString] = """
SELECT local_hour, avg_volume, avg_payments
FROM marts.hour_profile
ORDER BY local_hour
"""
PEAKS: Final[LiteralString] = """
SELECT
    peak_hours, avg_volume, share_percent, payments, days, active_days, confident,
    recommendation_vi, recommendation_en, window_start, window_end
FROM marts.peak_hours
"""


class WarehouseAwayError(Exception):
    """The marts could not be read now; trying again later may help."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """An earlier day up to the same time of day; amounts in đồng."""

    net_vnd: Decimal
    tx_count: int
    refunds_vnd: Decimal
    conversion: Decimal | None


@dataclass(frozen=True, slots=True)
class Today:
    """Today in the merchant's time zone; amounts in đồng, conversion between 0 and 1."""

    local_date: date
    volume_vnd: Decimal
    tx_count: int
    refunds_vnd: Decimal
    refund_count: int
    net_vnd: Decimal
    created_count: int
    created_completed_count: int
    conversion: Decimal | None
    day_before: Comparison | None
    week_before: Comparison | None


@dataclass(frozen=True, slots=True)
class Hour:
    """One hour of completed payments; `at` is local."""

    at: datetime
    volume_vnd: Decimal
    tx_count: int


@dataclass(frozen=True, slots=True)
class TypicalHour:
    """What an hour of the day brings on average."""

    local_hour: int
    avg_volume: Decimal
    avg_payments: Decimal


@dataclass(frozen=True, slots=True)
class Peaks:
    """The busiest hours of the day, or the evidence that there is too little to name them."""

    hours: tuple[int, ...]
    avg_volume: Decimal | None
    share_percent: int | None
    payments: int
    days: int
    active_days: int
    confident: bool
    recommendations: dict[str, str]
    window_start: date | None
    window_end: date | None


@dataclass(frozen=True, slots=True)
class Live:
    """What the live tiles show, from one snapshot: today, its hours and how fresh both are."""

    today: Today | None
    hours: tuple[Hour, ...]
    complete_through: datetime | None


class Warehouse:
    """A pool of read-only connections as giovang_dashboards."""

    def __init__(self, url: str) -> None:
        self._pool: ConnectionPool[psycopg.Connection[Any]] = ConnectionPool(
            url,
            kwargs={
                "options": _OPTIONS,
                "connect_timeout": 5,
                "application_name": "giovang-dashboards",
                "row_factory": namedtuple_row,
            },
            min_size=1,
            max_size=6,
            max_waiting=64,
            timeout=POOL_WAIT_S,
            max_idle=300,
            check=ConnectionPool.check_connection,
            open=True,
            name="dashboards",
        )

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    @contextmanager
    def as_merchant(self, merchant_id: str) -> Iterator[psycopg.Cursor[Any]]:
        """A cursor in one snapshot that sees the rows of one merchant and no other's."""
        try:
            with (
                self._pool.connection() as connection,
                connection.transaction(),
                connection.cursor() as cursor,
            ):
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                cursor.execute("SELECT set_config('giovang.merchant_id', %s, true)", (merchant_id,))
                yield cursor
        except (psycopg.Error, PoolTimeout) as error:
            sqlstate = getattr(error, "sqlstate", None)
            log.warning("marts not readable", kind=type(error).__name__, sqlstate=sqlstate)
            raise WarehouseAwayError(type(error).__name__) from error

    def live(self, merchant_id: str, zone: ZoneInfo, now: datetime) -> Live:
        """Read today's figures and hours; `now` is aware and decides which day is today."""
        with self.as_merchant(merchant_id) as cursor:
            today = _today(cursor.execute(TODAY).fetchone())
            freshness = cursor.execute(FRESHNESS).fetchone()
            day = today.local_date if today else now.astimezone(zone).date()
            rows = cursor.execute(HOURS, day_bounds(day, zone)).fetchall()
        return Live(
            today=today,
            hours=tuple(Hour(r.hour.astimezone(zone), r.total_volume, r.tx_count) for r in rows),
            complete_through=freshness.at if freshness else None,
        )

    def profile(self, merchant_id: str) -> tuple[TypicalHour, ...]:
        """Read the merchant's typical day: 24 hours, or none before the first complete day."""
        with self.as_merchant(merchant_id) as cursor:
            rows: Sequence[Any] = cursor.execute(PROFILE).fetchall()
        return tuple(TypicalHour(r.local_hour, r.avg_volume, r.avg_payments) for r in rows)

    def peaks(self, merchant_id: str) -> Peaks | None:
        """Read the peak hours; None for a merchant that no model has seen yet."""
        with self.as_merchant(merchant_id) as cursor:
            row: Any = cursor.execute(PEAKS).fetchone()
        if row is None:
            return None
        return Peaks(
            hours=tuple(row.peak_hours),
            avg_volume=row.avg_volume,
            share_percent=row.share_percent,
            payments=row.payments,
            days=row.days,
            active_days=row.active_days,
            confident=row.confident,
            recommendations={"vi": row.recommendation_vi, "en": row.recommendation_en},
            window_start=row.window_start,
            window_end=row.window_end,
        )


def _today(row: Any) -> Today | None:  # noqa: ANN401 - a named tuple that psycopg makes
    if row is None:
        return None
    return Today(
        local_date=row.local_date,
        volume_vnd=row.volume_vnd,
        tx_count=row.tx_count,
        refunds_vnd=row.refunds_vnd,
        refund_count=row.refund_count,
        net_vnd=row.net_vnd,
        created_count=row.created_count,
        created_completed_count=row.created_completed_count,
        conversion=row.conversion,
        day_before=_comparison(
            row.day_before_net_vnd,
            row.day_before_tx_count,
            row.day_before_refunds_vnd,
            row.day_before_conversion,
        ),
        week_before=_comparison(
            row.week_before_net_vnd,
            row.week_before_tx_count,
            row.week_before_refunds_vnd,
            row.week_before_conversion,
        ),
    )


def _comparison(
    net_vnd: Decimal | None,
    tx_count: int | None,
    refunds_vnd: Decimal | None,
    conversion: Decimal | None,
) -> Comparison | None:
    if net_vnd is None or tx_count is None or refunds_vnd is None:
        return None
    return Comparison(net_vnd, tx_count, refunds_vnd, conversion)


def day_bounds(day: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """Return the UTC instants between which the UTC hours of a local day begin.

    A zone off by half an hour has a UTC hour that lies in two days; it counts to the day that it
    begins in, so that each hour is shown once.
    """
    first = datetime.combine(day, time.min, zone).astimezone(UTC)
    after = datetime.combine(day + timedelta(days=1), time.min, zone).astimezone(UTC)
    return first, after


@st.cache_resource(show_spinner=False)
def warehouse() -> Warehouse:
    """The one pool of this process."""
    return Warehouse(settings().warehouse_url.get_secret_value())


# The merchant is a plain argument of each cached function: Streamlit leaves an argument that begins
# with an underscore out of the key, and one merchant would be shown another's answer.


@st.cache_data(ttl=LIVE_TTL_S, max_entries=MAX_ENTRIES, show_spinner=False)
def live(merchant_id: str, zone: str) -> Live:
    """Today's figures; at most LIVE_TTL_S old."""
    return warehouse().live(merchant_id, ZoneInfo(zone), datetime.now(UTC))


@st.cache_data(ttl=SLOW_TTL_S, max_entries=MAX_ENTRIES, show_spinner=False)
def profile(merchant_id: str) -> tuple[TypicalHour, ...]:
    """The typical day; at most SLOW_TTL_S old."""
    return warehouse().profile(merchant_id)


@st.cache_data(ttl=SLOW_TTL_S, max_entries=MAX_ENTRIES, show_spinner=False)
def peaks(merchant_id: str) -> Peaks | None:
    """The peak hours; at most SLOW_TTL_S old."""
    return warehouse().peaks(merchant_id)
