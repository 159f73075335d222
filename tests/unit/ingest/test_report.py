"""What is reported: lag by two clocks, rates, metrics, the words of the status command."""

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ingest.checkpoint import WalStatus
from ingest.health import Health, Process, Slot
from ingest.levels import Filling, Level
from ingest.metrics import CaptureMetrics
from ingest.pump import Progress
from ingest.report import Rate, lag_ms
from ingest.standby import Figures
from ingest.status import document, lines, size

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
SECOND_US = 1_000_000


def test_lag_is_what_the_last_event_took() -> None:
    done = Progress(committed_us=100 * SECOND_US, acked_us=100 * SECOND_US + 30_000)
    here = 103 * SECOND_US
    assert lag_ms(done, database_us=here, here_us=here, heartbeat_ms=5000) == 30


def test_lag_bears_clocks_that_differ() -> None:
    # This machine's clock is an hour ahead of the database's.
    hour = 3600 * SECOND_US
    done = Progress(committed_us=100 * SECOND_US, acked_us=100 * SECOND_US + hour + 30_000)
    database = 103 * SECOND_US
    assert lag_ms(done, database_us=database, here_us=database + hour, heartbeat_ms=5000) == 30


def test_an_overdue_heartbeat_is_lag() -> None:
    done = Progress(committed_us=100 * SECOND_US, acked_us=100 * SECOND_US)
    here = 160 * SECOND_US
    assert lag_ms(done, database_us=here, here_us=here, heartbeat_ms=5000) == 50_000
    assert lag_ms(Progress(), database_us=here, here_us=here, heartbeat_ms=5000) is None


def test_a_rate_is_that_of_the_last_ten_seconds() -> None:
    rate = Rate()
    assert rate.add(0, 0) == 0
    assert rate.add(1, 500) == 500
    for second in range(2, 30):
        last = rate.add(second, 500)
    assert last == 0


def figures(**changes: object) -> Figures:
    values: dict[str, object] = {
        "position": 16,
        "committed_at": NOW,
        "events": 7,
        "passed_over": 2,
        "rate_per_s": 1.5,
        "lag_bytes": 9,
        "lag_ms": 250,
        "retained_bytes": 60,
        "level": Level.WARNING,
        "forecast_s": 20,
    }
    return Figures(**{**values, **changes})  # type: ignore[arg-type]


def scrape(metrics: CaptureMetrics) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(metrics)
    told = [line.rpartition(" ") for line in generate_latest(registry).decode().splitlines()]
    return {name: float(value) for name, _, value in told if not name.startswith("#")}


def test_metrics_leave_out_what_is_not_known() -> None:
    metrics = CaptureMetrics()
    assert scrape(metrics) == {"giovang_capture_active": 0}
    filling = Filling(60, 100, 2.0)
    metrics.tell(figures(), {"log": (filling, filling.level)})
    told = scrape(metrics)
    assert told["giovang_capture_active"] == 1
    assert told["giovang_capture_events_total"] == 7
    assert told["giovang_capture_lag_seconds"] == 0.25
    assert told['giovang_capture_level{of="log"}'] == 1
    assert told['giovang_capture_forecast_seconds{of="log"}'] == 20
    metrics.tell(figures(lag_ms=None), {"log": (Filling(60, None), Level.OK)})
    told = scrape(metrics)
    assert "giovang_capture_lag_seconds" not in told
    assert not any("limit" in name or "forecast" in name for name in told)


def health(**changes: object) -> Health:
    process = Process(
        instance="i", role="active", host="shop", pid=4, backend=5, version="0.2.0",
        started_at=NOW - timedelta(hours=2, minutes=3, seconds=4), ended_at=None,
        connected=True, beat_age_s=0.4, position=0x1E4E3C8, committed_at=NOW,
        events=1234567, passed_over=0, rate_per_s=12.25,
        lag_bytes=1536, lag_ms=14, retained_bytes=60, last_error=None, last_error_at=None,
    )  # fmt: skip
    slot = Slot("s", WalStatus.RESERVED, "0/10", 9, 60, 8 * 1024**3, Level.OK, 10**9)
    values = {"state": "streaming", "processes": [process], "slot": slot}
    return Health(NOW, **{**values, **changes})  # type: ignore[arg-type]


def test_a_healthy_capture_is_told_in_few_lines() -> None:
    told = list(lines(health()))
    assert told[0] == "capture     streaming on shop, process 4, for 2 h 3 min, release 0.2.0"
    assert told[1] == "lag         14 ms, 1.5 KB of log"
    assert told[2] == "rate        12.2 events/s; 1,234,567 since its start"
    assert "slot        s holds back 60 bytes of 8.0 GB: ok" in told
    assert told[-1] == "All well."
    assert document(health())["exit_status"] == 0


def test_what_is_wrong_comes_last_and_decides_the_status() -> None:
    wrong = health(problems=["mend this"])
    assert list(lines(wrong))[-2:] == ["Needs a person:", "  - mend this"]
    assert wrong.exit_status == 1
    dark = Health(NOW, unreachable=["NATS does not answer"], problems=["mend this"])
    assert list(lines(dark))[-3:] == [
        "Cannot tell:",
        "  - NATS does not answer",
        "  - mend this",
    ]
    assert dark.exit_status == 2


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (1024, "1.0 KB"), (8 * 1024**3, "8.0 GB")],
)
def test_sizes_are_for_people(count: int, text: str) -> None:
    assert size(count) == text
