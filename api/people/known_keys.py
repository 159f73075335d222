"""The API keys that this process has looked up lately, so that not every request asks for them.

What is remembered is whose a key is, not that it counts: a unit of work that begins for a key
proves in PostgreSQL that it was not revoked (see `api.database`). Where no unit of work follows, a
route asks at once instead. A merchant's new name is noticed when the memory ends.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from api.people.model import Caller

_REMEMBERED_S: Final = 10.0
_MOST: Final = 10_000


class KnownKeys:
    """Callers by the digests of their keys, each for a few seconds; the oldest make room."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()

    def find(self, digest: bytes) -> Caller | None:
        """Return whose key this is, where that is remembered."""
        found = self._known.get(digest)
        if found is None or found[0] < self._clock():
            return None
        return found[1]

    def remember(self, digest: bytes, caller: Caller) -> None:
        """Keep whose key this is."""
        self._known.pop(digest, None)
        self._known[digest] = (self._clock() + _REMEMBERED_S, caller)
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
