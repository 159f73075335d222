"""Vietnamese public holidays that shape a shop's year.

Dates of the lunar calendar are a table, not a calculation; outside its years the lunar holidays
are missing and the year is merely flatter.
"""

from datetime import date
from enum import StrEnum

# First day of the lunar year, and the 10th day of the third lunar month, by Gregorian year.
_TET = {
    2023: date(2023, 1, 22),
    2024: date(2024, 2, 10),
    2025: date(2025, 1, 29),
    2026: date(2026, 2, 17),
    2027: date(2027, 2, 6),
    2028: date(2028, 1, 26),
    2029: date(2029, 2, 13),
    2030: date(2030, 2, 3),
}
_HUNG_KINGS = {
    2023: date(2023, 4, 29),
    2024: date(2024, 4, 18),
    2025: date(2025, 4, 7),
    2026: date(2026, 4, 26),
    2027: date(2027, 4, 16),
    2028: date(2028, 4, 4),
    2029: date(2029, 4, 23),
    2030: date(2030, 4, 12),
}
_SOLAR = {(1, 1), (4, 30), (5, 1), (9, 2)}

_BEFORE_TET_DAYS = 14
_TET_DAYS = 5
_AFTER_TET_DAYS = 12


class Season(StrEnum):
    """What kind of day it is for a shop."""

    ORDINARY = "ordinary"
    HOLIDAY = "holiday"
    BEFORE_TET = "before_tet"
    TET = "tet"
    AFTER_TET = "after_tet"


def season(day: date) -> Season:
    """Return the season of a local day: Tết in its three parts, a national holiday, or neither."""
    new_year = _TET.get(day.year)
    if new_year is not None:
        offset = (day - new_year).days
        if -_BEFORE_TET_DAYS <= offset < -1:
            return Season.BEFORE_TET
        if -1 <= offset < _TET_DAYS:
            return Season.TET
        if _TET_DAYS <= offset < _AFTER_TET_DAYS:
            return Season.AFTER_TET
    if (day.month, day.day) in _SOLAR or day == _HUNG_KINGS.get(day.year):
        return Season.HOLIDAY
    return Season.ORDINARY
