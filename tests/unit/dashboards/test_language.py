"""Both languages say the same things, and write numbers each in its own way."""

import json
import string
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from dashboards.language import LANGUAGES, language

LOCALES = Path(__file__).resolve().parents[3] / "dashboards" / "locales"


def placeholders(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_the_languages_have_the_same_keys_and_placeholders() -> None:
    texts = {
        code: json.loads((LOCALES / f"{code}.json").read_text(encoding="utf-8"))
        for code in LANGUAGES
    }
    assert sorted(path.stem for path in LOCALES.glob("*.json")) == sorted(LANGUAGES)
    assert texts["vi"].keys() == texts["en"].keys()
    for key, vietnamese in texts["vi"].items():
        assert vietnamese.strip(), key
        assert placeholders(vietnamese) == placeholders(texts["en"][key]), key


@pytest.mark.parametrize(
    ("code", "amount", "written"),
    [
        ("vi", Decimal(1234567), "₫\u00a01.234.567"),
        ("en", Decimal(1234567), "₫\u00a01,234,567"),
        ("vi", Decimal("1234567.50"), "₫\u00a01.234.567,50"),
        ("vi", Decimal("375000.00"), "₫\u00a0375.000"),
        ("vi", Decimal(-9500), "−₫\u00a09.500"),
        ("en", Decimal(0), "₫\u00a00"),
        ("vi", Decimal("9999999999999.99"), "₫\u00a09.999.999.999.999,99"),
    ],
)
def test_money_is_written_exactly(code: str, amount: Decimal, written: str) -> None:
    assert language(code).dong(amount) == written


def test_shares_are_written_as_percent() -> None:
    assert language("en").percent(Decimal("0.8636")) == "86%"
    assert language("vi").percent(Decimal("0.8636"), places=1) == "86,4\u202f%"


def test_a_clock_of_another_day_carries_its_date() -> None:
    zone = ZoneInfo("Asia/Ho_Chi_Minh")
    instant = datetime(2026, 1, 31, 17, 30, tzinfo=UTC).astimezone(zone)
    assert language("vi").clock(instant, date(2026, 2, 1)) == "00:30:00"
    assert language("vi").clock(instant, date(2026, 2, 2)) == "00:30:00, 1/2/2026"
    assert language("en").clock(instant, date(2026, 2, 2)) == "00:30:00, 1 February 2026"


def test_days_are_named() -> None:
    assert language("vi").day(date(2026, 2, 1)) == "Chủ Nhật, 1/2/2026"
    assert language("en").day(date(2026, 2, 1)) == "Sunday, 1 February 2026"


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ValueError, match="no such language"):
        language("../../etc/passwd")
