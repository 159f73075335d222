"""Lists by cursor: `limit`, `starting_after` or `ending_before`, and `has_more`; none is counted.

A cursor is the id of an item already shown. Ids sort by time, so a page costs the same wherever it
is, and items that arrive meanwhile neither repeat nor hide others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

from fastapi import Query

from api.errors import FieldError, InvalidRequest
from api.wording import EXAMPLE_BODY, id_pattern

T = TypeVar("T")
MOST_PER_PAGE: Final = 100
DEFAULT_PER_PAGE: Final = 20


@dataclass(frozen=True, slots=True)
class Paging:
    """Which page: `limit` items after one cursor or before the other, or the first of all."""

    limit: int = DEFAULT_PER_PAGE
    starting_after: str | None = None
    ending_before: str | None = None

    def __post_init__(self) -> None:
        """Refuse two directions at once."""
        if self.starting_after is not None and self.ending_before is not None:
            error = FieldError(detail="not with starting_after", pointer="/query/ending_before")
            raise InvalidRequest("a page has one direction", errors=[error])

    @property
    def cursor(self) -> str | None:
        """The item next to the page, or None for the first page."""
        return self.ending_before or self.starting_after

    @property
    def is_backward(self) -> bool:
        """Whether the page lies before its cursor: rows are then read in reverse."""
        return self.ending_before is not None

    def cut(self, found: list[T]) -> tuple[list[T], bool]:
        """Return the page of rows read nearest first, one more than `limit`, and `has_more`."""
        page, has_more = found[: self.limit], len(found) > self.limit
        return (page[::-1] if self.is_backward else page), has_more


def paging(cursor_pattern: str, *, example: str) -> Callable[..., Paging]:
    """Return the dependency that reads a list's page from the query."""
    Limit = Annotated[int, Query(ge=1, le=MOST_PER_PAGE)]  # noqa: N806 - a type
    Cursor = Annotated[  # noqa: N806 - a type
        str | None, Query(pattern=cursor_pattern, examples=[example])
    ]

    def read(
        limit: Limit = DEFAULT_PER_PAGE,
        starting_after: Cursor = None,
        ending_before: Cursor = None,
    ) -> Paging:
        return Paging(limit, starting_after, ending_before)

    return read


def by_id(prefix: str) -> Callable[..., Paging]:
    """Return the dependency for a list whose items have ids of this prefix."""
    return paging(id_pattern(prefix), example=f"{prefix}_{EXAMPLE_BODY}")
