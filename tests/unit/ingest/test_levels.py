"""Levels and forecasts: what fills up, and when it is full."""

import pytest

from ingest.checkpoint import WalStatus
from ingest.levels import Filling, Growth, Level, log_level, worst


@pytest.mark.parametrize(
    ("used", "limit", "level"),
    [
        (0, 100, Level.OK),
        (49, 100, Level.OK),
        (50, 100, Level.WARNING),
        (79, 100, Level.WARNING),
        (80, 100, Level.CRITICAL),
        (130, 100, Level.CRITICAL),
        (10**12, None, Level.OK),
    ],
)
def test_levels_follow_the_share_of_the_limit(used: int, limit: int | None, level: Level) -> None:
    assert Filling(used, limit).level is level


def test_postgresqls_own_word_stands_above_the_share() -> None:
    empty, full = Filling(0, 100), Filling(99, 100)
    assert log_level(WalStatus.LOST, empty) is Level.LOST
    assert log_level(WalStatus.UNRESERVED, empty) is Level.CRITICAL
    assert log_level(WalStatus.EXTENDED, empty) is Level.OK
    assert log_level(WalStatus.RESERVED, full) is Level.CRITICAL
    assert worst(Level.OK, Level.LOST, Level.WARNING) is Level.LOST


def test_a_forecast_needs_growth_and_a_limit() -> None:
    assert Filling(40, 100, 2.0).forecast_s == 30
    assert Filling(100, 100, 2.0).forecast_s == 0
    assert Filling(120, 100, 2.0).forecast_s == 0
    assert Filling(40, 100, 0.0).forecast_s is None
    assert Filling(40, 100, -5.0).forecast_s is None
    assert Filling(40, 100).forecast_s is None
    assert Filling(40, None, 2.0).forecast_s is None


def test_growth_is_that_of_the_window() -> None:
    growth = Growth(window_s=60)
    told = []
    for second in (0, 9, 10):
        growth.add(second, 100 * second)
        told.append(growth.per_s)
    assert told == [None, None, 100], "nine seconds are no trend"
    # A minute later only the quiet minute counts.
    for second in range(11, 131):
        growth.add(second, 1000)
    assert growth.per_s == 0


def test_what_is_released_shrinks() -> None:
    growth = Growth()
    growth.add(0, 1000)
    growth.add(20, 0)
    assert growth.per_s == -50
