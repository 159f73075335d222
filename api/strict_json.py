"""What JSON this API reads: shallow, with each name once, and without numbers that are none.

JSON as such allows names twice and any depth, and Python reads NaN besides; what two readers of one
body understand differently is refused before anybody acts on it. Raises MalformedRequest with one
sentence; the limit on size is elsewhere.
"""

import json
import re
from typing import Any, Final, NoReturn

from api.errors import MalformedRequest

MOST_LEVELS: Final = 16

# A string as a whole, so that brackets inside it do not count, or one bracket. A string that does
# not end matches to the end of the body: each byte is looked at once, whatever the body is.
_STRING_OR_BRACKET: Final = re.compile(rb'"(?:[^"\\]|\\.?)*+"?|[\[{\]}]', re.DOTALL)
_ESCAPED_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


def check(body: bytes) -> None:
    """Return where the body is JSON that this API reads; raises MalformedRequest."""
    if body.count(b"[") + body.count(b"{") > MOST_LEVELS and _levels(body) > MOST_LEVELS:
        raise MalformedRequest(f"the body nests deeper than {MOST_LEVELS} levels")
    try:
        json.loads(body, object_pairs_hook=_each_name_once, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise MalformedRequest("the body is not valid JSON") from error
    if _ESCAPED_SURROGATE.search(body):
        json.loads(body, object_pairs_hook=_names_are_text)


def _levels(body: bytes) -> int:
    deepest = level = 0
    for match in _STRING_OR_BRACKET.finditer(body):
        token = match[0]
        if token in b"[{":
            level += 1
            deepest = max(deepest, level)
        elif token in b"]}":
            level -= 1
    return deepest


def _each_name_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        raise MalformedRequest("the body holds an object that has the same name twice")
    return content


def _no_number(name: str) -> NoReturn:
    raise MalformedRequest(f"{name} is not a number in JSON")


def _names_are_text(pairs: list[tuple[str, Any]]) -> None:
    """Refuse half of a surrogate pair in a name, which no answer about it could repeat.

    In a value it is refused by the field's own rules.
    """
    try:
        "".join(name for name, _ in pairs).encode()
    except UnicodeEncodeError as error:
        raise MalformedRequest("the body has a name that holds half a character") from error
