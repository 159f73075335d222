"""What the payer's pages say, in Vietnamese and English, and how they write money and time.

Both languages say the same things under the same keys (a test compares them); a key that is missing
raises KeyError.
"""

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Final, Literal, cast, get_args
from zoneinfo import ZoneInfo

Lang = Literal["vi", "en"]

LANGUAGES: Final = get_args(Lang)
_LOCALES: Final = Path(__file__).parent / "locales"
WORDS: Final[dict[str, dict[str, str]]] = {
    lang: json.loads((_LOCALES / f"{lang}.json").read_text("utf-8")) for lang in LANGUAGES
}


def language(accepted: str, chosen: str | None = None) -> Lang:
    """Return the language chosen, else the first of ours that an Accept-Language header prefers."""
    if chosen in LANGUAGES:
        return cast("Lang", chosen)
    weighted: list[tuple[float, int, str]] = []
    for position, part in enumerate(accepted.split(",")):
        tag, _, parameters = part.strip().partition(";")
        name = tag.strip().lower().partition("-")[0]
        if name not in LANGUAGES:
            continue
        quality = parameters.strip().removeprefix("q=") or "1"
        try:
            weight = float(quality)
        except ValueError:
            weight = 0.0
        weighted.append((-weight, position, name))
    return cast("Lang", min(weighted)[2]) if weighted else "vi"


def say(lang: str, key: str, **values: object) -> str:
    """Return a sentence with its values put in."""
    text = WORDS[lang][key]
    return text.format(**values) if values else text


def dong(amount_minor: int, lang: str) -> str:
    """Return dong as the language groups them."""
    return f"{grouped(Decimal(amount_minor), lang)} ₫"


def grouped(number: Decimal, lang: str) -> str:
    """Return a number with the language's marks, and no more places than it needs."""
    whole, _, places = f"{number:,f}".partition(".")
    places = places.rstrip("0")
    mark, point = (".", ",") if lang == "vi" else (",", ".")
    return whole.replace(",", mark) + (f"{point}{places}" if places else "")


def moment(at: datetime, timezone: str) -> str:
    """Return a moment by the clock of a zone, to the minute."""
    return at.astimezone(ZoneInfo(timezone)).strftime("%H:%M %d/%m/%Y")


def utc(at: datetime) -> str:
    """Return a moment for machines, and for texts that must read the same everywhere."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
