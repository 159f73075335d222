"""Masking: columns that leave the process in another form, or not at all.

Set by `GIOVANG_INGEST_MASK`, checked once at the start against the published tables: what would
break a reader of the stream, a key or an amount of money is refused in a sentence, so a mask that
was accepted masks every image of every event. `hash` keeps equality: one value has one hash under
one key, in whatever column it stands; `remove` leaves null.
"""

import hmac
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from pydantic import SecretStr

from ingest.columns import (
    ANY_WAY,
    MOMENT_SUFFIX,
    MONEY_SUFFIX,
    NEEDED,
    NO_WAY,
    TYPES,
    Column,
    Family,
    MaskWay,
)
from ingest.contract import Table
from ingest.errors import MaskRefused

Mask = Callable[[str], str | None]
Masks = Mapping[str, Mapping[str, Mask]]
"""Table, then column, to what is done with each of its values that is not null."""

NO_MASKS: Final[Masks] = {}
HASH_PREFIX: Final = "masked-"
"""Begins every hash, so that nobody takes one for what it stands for."""
MIN_KEY_BYTES: Final = 16
_HASHABLE: Final = TYPES[Family.TEXT] | {"json", "jsonb", "uuid"}


def masks(wanted: Mapping[str, MaskWay], key: SecretStr | None, columns: Iterable[Column]) -> Masks:
    """Return the masks for columns named `table.column`; `MaskRefused` names what cannot be.

    `key` is hexadecimal; needed where anything is hashed.
    """
    types = {f"{column.table}.{column.name}": column.type for column in columns}
    made: dict[str, dict[str, Mask]] = {}
    for place, way in wanted.items():
        table, _, name = place.partition(".")
        if place not in types or table == Table.CAPTURE_BACKFILL:
            raise MaskRefused(f"GIOVANG_INGEST_MASK names {place}, which is no published column")
        if way not in _allowed(Table(table), name, types[place]):
            raise MaskRefused(f"GIOVANG_INGEST_MASK cannot {way} {place}: {_why(table, name)}")
        made.setdefault(table, {})[name] = _remove if way is MaskWay.REMOVE else _hasher(key)
    return made


def hashed_already(value: object) -> bool:
    """Say whether a value that came back from the stream is a hash of ours."""
    return isinstance(value, str) and value.startswith(HASH_PREFIX)


def _allowed(table: Table, name: str, kind: str) -> frozenset[MaskWay]:
    if name in NEEDED[table]:
        return NEEDED[table][name].masks
    if name.endswith((MONEY_SUFFIX, MOMENT_SUFFIX)) or kind not in _HASHABLE:
        return frozenset({MaskWay.REMOVE}) if not name.endswith(MONEY_SUFFIX) else NO_WAY
    return ANY_WAY


def _why(table: str, name: str) -> str:
    need = NEEDED[Table(table)].get(name)
    if need is None:
        return "only text can be hashed, and money is never masked"
    ways = " or ".join(sorted(need.masks)) or "nothing"
    return f"{', '.join(need.readers)} would break ({ways} is possible)"


def _remove(_: str) -> None:
    return None


def _hasher(key: SecretStr | None) -> Mask:
    if key is None:
        raise MaskRefused("GIOVANG_INGEST_MASK hashes, so GIOVANG_INGEST_MASK_KEY is needed")
    try:
        secret = bytes.fromhex(key.get_secret_value())
    except ValueError:
        secret = b""
    if len(secret) < MIN_KEY_BYTES:
        raise MaskRefused(
            f"GIOVANG_INGEST_MASK_KEY must be hexadecimal, of at least {MIN_KEY_BYTES} bytes: "
            "`openssl rand -hex 32` makes one"
        )

    def hashed(value: str) -> str:
        return f"{HASH_PREFIX}{hmac.digest(secret, value.encode(), 'sha256').hex()}"

    return hashed
