"""The charts draw what the marts hold, in local hours, with the peaks told apart by shape too."""

from datetime import datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from dashboards.charts import hours_chart, profile_chart
from dashboards.language import language
from dashboards.warehouse import Hour, TypicalHour

ZONE = ZoneInfo("Asia/Ho_Chi_Minh")
TYPICAL = [TypicalHour(h, Decimal(h * 1000), Decimal("0.5")) for h in range(24)]


def values(spec: dict[str, Any], layer: int) -> list[dict[str, Any]]:
    name = spec["layer"][layer]["data"]["name"]
    rows: list[dict[str, Any]] = spec["datasets"][name]
    return rows


@pytest.mark.parametrize("code", ["vi", "en"])
@pytest.mark.parametrize("dark", [True, False])
def test_bars_stand_at_the_local_hour(code: str, *, dark: bool) -> None:
    words = language(code)
    hours = [Hour(datetime(2026, 2, 1, 0, tzinfo=ZONE), Decimal(250000), 2)]
    spec = hours_chart(hours, TYPICAL, words, 84, dark=dark).to_dict()
    (bar,) = values(spec, 0)
    assert (bar["hour"], bar["volume"], bar["amount"]) == (0, 250000.0, words.dong(250000))
    assert len(values(spec, 1)) == 24


def test_a_day_without_payments_and_without_history_still_draws() -> None:
    spec = hours_chart([], [], language("vi"), 0, dark=False).to_dict()
    assert spec["layer"][0]["encoding"]["x"]["scale"]["domain"] == list(range(24))


def test_peaks_have_a_pointer_and_not_only_a_colour() -> None:
    words = language("en")
    spec = profile_chart(TYPICAL, [11, 12], words, dark=False).to_dict()
    assert [row["hour"] for row in values(spec, 1)] == [11, 12]
    assert spec["layer"][1]["mark"]["text"] == "▼"
    peaks = [row["hour"] for row in values(spec, 0) if row["series"] == words.text("peaks.legend")]
    assert peaks == [11, 12]
