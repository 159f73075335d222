"""Words and number formats of the two languages.

Every text comes from locales/<language>.json; a missing key or value raises KeyError, and a test
holds both files to the same keys. Money is formatted from Decimal and never rounded.
"""

import json
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import streamlit as st

LANGUAGES: Final = {"vi": "Tiếng Việt", "en": "English"}
DEFAULT: Final = "vi"
_FOLDER: Final = Path(__file__).parent / "locales"
_CHOICE: Final = "lang"
_NARROW_SPACE: Final = "\u202f"
_NO_BREAK: Final = "\u00a0"


@dataclass(frozen=True, slots=True)
class Language:
    """One language: its texts and how it writes numbers, money and dates."""

    code: str
    texts: dict[str, str]

    def text(self, key: str, **values: object) -> str:
        """Return a text with its {placeholders} filled in."""
        return self.texts[key].format(**values)

    def number(self, value: Decimal | int, places: int = 0) -> str:
        """Write a number with the language's separators."""
        english = f"{value:,.{places}f}"
        if self.code == "en":
            return english
        return english.translate(str.maketrans(",.", ".,"))

    def dong(self, amount: Decimal | int) -> str:
        """Write an amount of đồng: ₫ 1.234.567, with hundredths only where there are any."""
        places = 0 if amount == int(amount) else 2
        sign = "−" if amount < 0 else ""
        return f"{sign}₫{_NO_BREAK}{self.number(abs(Decimal(amount)), places)}"

    def percent(self, share: Decimal, places: int = 0) -> str:
        """Write a share of one as percent."""
        gap = _NARROW_SPACE if self.code == "vi" else ""
        return f"{self.number(share * 100, places)}{gap}%"

    def day(self, day: date) -> str:
        """Write a date with its day of the week."""
        weekday = self.texts[f"weekday.{day.isoweekday()}"]
        return self.text("date.long", weekday=weekday, date=self.short_day(day))

    def short_day(self, day: date) -> str:
        """Write a date in few letters."""
        month = self.texts[f"month.{day.month}"]
        return self.text("date.short", day=day.day, month=month, year=day.year)

    def clock(self, instant: datetime, today: date) -> str:
        """Write an instant of local time; the date stands with it unless it is today's."""
        time = f"{instant:%H:%M:%S}"
        if instant.date() == today:
            return time
        return f"{time}, {self.short_day(instant.date())}"

    def zone(self, zone: ZoneInfo) -> str:
        """Name a time zone by its city; the city's own spelling where the language has one."""
        city = zone.key.rpartition("/")[2].replace("_", " ")
        return self.texts.get(f"zone.{zone.key}", city)

    def span(self, first_hour: int) -> str:
        """Write the hour that begins at `first_hour`, for example 11:00–12:00."""
        return f"{first_hour:02d}:00–{first_hour + 1:02d}:00"


@cache
def language(code: str) -> Language:
    """Read one language's file; ValueError for a language there is none of."""
    if code not in LANGUAGES:
        message = f"no such language: {code}"
        raise ValueError(message)
    texts = json.loads((_FOLDER / f"{code}.json").read_text(encoding="utf-8"))
    return Language(code=code, texts=texts)


def chosen_language() -> Language:
    """The language of this browser session, once the switch was shown."""
    return language(st.session_state.get(_CHOICE) or DEFAULT)


def language_switch() -> Language:
    """Show the switch and return the chosen language; the choice stands in the URL for reloads."""
    st.segmented_control(
        "Ngôn ngữ / Language",
        options=list(LANGUAGES),
        format_func=str.upper,
        default=DEFAULT,
        required=True,
        key=_CHOICE,
        label_visibility="collapsed",
        bind="query-params",
        persist_state="session",
    )
    return chosen_language()
