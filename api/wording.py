"""What a caller is told of one wrong field: a sentence that says what to write there.

Pydantic says what did not match, down to the expression. Whoever defines a pattern says here, by
`worded`, what it stands for; every pattern of the API's document has such words, which a test sees
to. What pydantic says well it says itself.
"""

import re
from collections.abc import Mapping
from typing import Any, Final

from api.database import ID_BODY

DONG: Final = 'in at most 13 digits without separators, such as "250000"'
EXAMPLE_BODY: Final = "01jz8w5k6h7m9n0p2q3r4s5t6v"
_SAYS: Final[dict[str, str]] = {}
_MOMENT: Final = "a moment is written as RFC 3339 says, such as 2026-01-31T00:00:00+07:00"
_OF_KIND: Final = {
    "missing": "this is required",
    "extra_forbidden": "there is no such field here; leave it out",
    "string_type": 'write this as a string, in "quotes"',
    "dict_type": "send a JSON object here",
    "model_type": "send a JSON object here",
    "model_attributes_type": "send a JSON object here",
    "timezone_aware": f"the time zone is missing; {_MOMENT}",
    "datetime_parsing": _MOMENT,
    "datetime_from_date_parsing": _MOMENT,
}
_DATE_AND_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]")
_LOST_PLUS: Final = re.compile(r"\d \d\d:\d\d$")


def worded(pattern: str, says: str) -> str:
    """Return the pattern, and keep what a caller is told whose text does not match it."""
    _SAYS[pattern] = says
    return pattern


def id_pattern(prefix: str) -> str:
    """Return what an id of this prefix looks like."""
    return worded(f"^{prefix}_{ID_BODY}$", f"an id, such as {prefix}_{EXAMPLE_BODY}")


def words_of(pattern: str) -> str | None:
    """Return what is said of a pattern, or None where nobody said it."""
    return _SAYS.get(pattern)


def sentence(error: Mapping[str, Any]) -> str:
    """Return what to tell of one of pydantic's errors."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "string_pattern_mismatch":
        return words_of(context["pattern"]) or str(error["msg"])
    if kind == "value_error":
        return str(context["error"])
    if kind == "missing" and error["loc"] == ("body",):
        return "send a JSON object as the body"
    return _OF_KIND.get(kind) or str(error["msg"])


def written_out(value: object) -> object:
    """Refuse a bare number, which pydantic would take for seconds since 1970.

    And a plus that stood in an address as it is, where it means a space.
    """
    if isinstance(value, str):
        if not _DATE_AND_TIME.match(value):
            raise ValueError(_MOMENT)
        if _LOST_PLUS.search(value):
            raise ValueError("write the + of the time zone as %2B in an address")
    return value
