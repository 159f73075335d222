"""What the overview says of a merchant's figures."""

import csv
import dataclasses
import io
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest

from dashboards import figures
from dashboards.language import language
from dashboards.warehouse import Comparison, Hour, Live, Peaks, Today, TypicalHour, day_bounds

ZONE = ZoneInfo("Asia/Ho_Chi_Minh")
EN, VI = language("en"), language("vi")
NOON = datetime(2026, 2, 1, 12, 0, tzinfo=ZONE)
TODAY = Today(
    local_date=date(2026, 2, 1),
    volume_vnd=Decimal("1000000.00"),
    tx_count=4,
    refunds_vnd=Decimal("100000.00"),
    refund_count=1,
    net_vnd=Decimal("900000.00"),
    created_count=5,
    created_completed_count=4,
    conversion=Decimal("0.8000"),
    day_before=Comparison(Decimal("600000.00"), 4, Decimal("0.00"), Decimal("0.9000")),
    week_before=None,
)


def hour(at: int, volume: str, count: int) -> Hour:
    return Hour(datetime(2026, 2, 1, at, tzinfo=ZONE), Decimal(volume), count)


def test_the_tiles_compare_with_the_same_time_of_earlier_days() -> None:
    net, payments, conversion, refunds = figures.today_tiles(TODAY, EN)
    assert (net.value, net.note) == ("₫\u00a0900,000", "₫\u00a01,000,000 gross, less refunds")
    assert [(c.amount, c.judgement) for c in net.changes] == [("▲ 50%", "good")]
    assert payments.value == "4"
    assert [c.amount for c in payments.changes] == ["level"]
    assert (conversion.value, conversion.note) == ("80%", "4 of 5 payments created")
    assert [(c.amount, c.judgement) for c in conversion.changes] == [("▼ 10.0 pts", "bad")]
    # More refunds are worse, and there is no percentage of nothing.
    assert [(c.amount, c.judgement) for c in refunds.changes] == [("▲ ₫\u00a0100,000", "bad")]


def test_a_merchant_without_history_is_not_compared() -> None:
    today = dataclasses.replace(
        TODAY, day_before=None, tx_count=0, created_count=0, conversion=None
    )
    net, payments, conversion, _ = figures.today_tiles(today, EN)
    assert [c.against for c in net.changes] == ["no earlier day to compare with"]
    assert payments.note == "no payment yet today"
    assert (conversion.value, list(conversion.changes)) == ("–", [])


def test_the_summary_names_the_best_hour() -> None:
    hours = [hour(9, "300000", 2), hour(11, "700000", 1), hour(12, "0", 0)]
    assert figures.hours_summary(hours, EN) == (
        "The best hour today is 11:00–12:00: ₫\u00a0700,000 from 1 payments. "
        "So far there are 3 payments and ₫\u00a01,000,000 in all."
    )
    assert "chưa có giao dịch" in figures.hours_summary([hour(12, "0", 0)], VI)


def test_the_export_sums_exactly() -> None:
    # A float would lose the last digits of such a sum.
    hours = [hour(9, "9007199254740993.01", 1), hour(10, "0.02", 2), hour(11, "1.10", 3)]
    rows = list(csv.DictReader(io.StringIO(figures.hours_csv(hours))))
    assert sum(Decimal(row["volume_vnd"]) for row in rows) == Decimal("9007199254740994.13")
    assert sum(int(row["payments"]) for row in rows) == 6
    assert rows[0]["hour_start"] == "2026-02-01T09:00:00+07:00"


def test_the_table_stands_beside_the_typical_hours_and_adds_up() -> None:
    typical = [
        TypicalHour(9, Decimal("250000.40"), Decimal("1.5000")),
        TypicalHour(23, Decimal("7000000.00"), Decimal("9.0000")),
    ]
    table = figures.hours_table([hour(9, "300000", 2), hour(10, "5", 1)], typical, EN)
    assert table.rows == [
        ["09:00–10:00", "₫\u00a0300,000", "2", "₫\u00a0250,000"],
        ["10:00–11:00", "₫\u00a05", "1", "–"],
    ]
    # The typical hour at 23:00 is not among the rows, so it is not in their sum.
    assert table.foot == ["Total", "₫\u00a0300,005", "3", "₫\u00a0250,000"]
    profile = figures.profile_table(typical, EN)
    assert profile.foot == ["Total", "₫\u00a07,250,000", "10.5"]


@pytest.mark.parametrize(
    ("behind", "words", "is_late"),
    [
        (timedelta(seconds=5), "complete up to 11:59:55", False),
        (timedelta(minutes=3), "complete up to 11:57:00, 3 min behind", True),
        (timedelta(days=1), "complete up to 12:00:00, 31 January 2026, 1,440 min behind", True),
    ],
)
def test_every_tile_says_how_fresh_it_is(behind: timedelta, words: str, *, is_late: bool) -> None:
    live = Live(TODAY, (), (NOON - behind).astimezone(UTC))
    freshness = figures.freshness_of(live, NOON, EN)
    assert (freshness.words, freshness.is_late) == (words, is_late)


def test_marts_that_were_never_built_are_not_called_fresh() -> None:
    assert figures.freshness_of(Live(None, (), None), NOON, EN).is_late


def test_peak_hours_say_what_they_rest_on() -> None:
    peaks = Peaks(
        hours=(11, 12),
        avg_volume=Decimal(1),
        share_percent=44,
        payments=1260,
        days=28,
        active_days=28,
        confident=True,
        recommendations={"vi": "", "en": ""},
        window_start=date(2026, 2, 1),
        window_end=date(2026, 2, 28),
    )
    assert figures.evidence(peaks, EN) == (
        "From 1,260 payments on 28 days, 1 February 2026 to 28 February 2026"
    )
    unknown = dataclasses.replace(peaks, window_start=None, window_end=None)
    assert figures.evidence(unknown, EN) == "There is no complete day of sales yet."


def test_a_local_day_begins_at_local_midnight() -> None:
    first, after = day_bounds(date(2026, 2, 1), ZONE)
    assert first == datetime(2026, 1, 31, 17, tzinfo=UTC)
    assert after == datetime(2026, 2, 1, 17, tzinfo=UTC)
    # The night in which Berlin's clocks go forward has 23 hours.
    first, after = day_bounds(date(2026, 3, 29), ZoneInfo("Europe/Berlin"))
    assert after - first == timedelta(hours=23)
