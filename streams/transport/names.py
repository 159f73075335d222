"""Names: how topics, partitions, keys and headers of Faust are written in JetStream.

Pure functions, so producer, consumer and tools agree. Every name is reversible or, where a key is
too long for a subject, a collision-free digest; a name never contains a character that NATS gives
a meaning.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import unquote_to_bytes

TOPIC_ROOT = "faust.topic"
GROUP_ROOT = "faust.group"
PLAN_ROOT = "faust.partitions"
PLAN_STREAM = "FAUST_PARTITIONS"

KEY_HEADER = "Faust-Key"
TOMBSTONE_HEADER = "Faust-Tombstone"
TIMESTAMP_HEADER = "Faust-Timestamp"
SOURCE_HEADER = "Faust-Source"
PARTITIONS_METADATA = "faust.partitions"
COMPACTING_METADATA = "faust.compacting"
LAYOUTS_METADATA = "faust.layouts"

BYTES_HEADER_PREFIX = "Faust-Header-"

# `Status` and `Description` are how the server tells a consumer that a pull ended.
_RESERVED_HEADERS = frozenset(
    {KEY_HEADER, TOMBSTONE_HEADER, TIMESTAMP_HEADER, SOURCE_HEADER, "Status", "Description"}
)
_PLAIN_HEADER = re.compile(r"[A-Za-z0-9_-]+")

_KEY_TOKEN_LIMIT = 180
_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]")
_NO_KEY = "_"
_OWN_KEY = "="


def token(name: str) -> str:
    """Write any text as one subject token, which is also a valid stream name.

    Letters, digits, `-` and `_` stay; every other byte becomes `=XX`, so two names never meet.
    """
    return _UNSAFE.sub(lambda match: b"=%02X" % match[0][0], name.encode()).decode()


def from_token(text: str) -> str:
    """Read back what `token` wrote."""
    return unquote_to_bytes(text.replace("=", "%")).decode()


def topic_stream(topic: str) -> str:
    """Return the stream that carries a declared topic."""
    return f"FAUST_TOPIC_{token(topic)}"


def topic_root(topic: str, layout: int = 0) -> str:
    """Return what the subjects of a declared topic begin with, in one of its layouts.

    Each time a topic is given more partitions its next layout begins, under other subjects.
    """
    root = f"{TOPIC_ROOT}.{token(topic)}"
    return f"{root}.e{layout}" if layout else root


def topic_subjects(topic: str, layout: int = 0) -> str:
    """Return the subject filter that covers a declared topic."""
    return f"{topic_root(topic, layout)}.>"


def key_token(key: bytes | None) -> str:
    """Write a message key as one subject token; a long key is replaced by its SHA-256."""
    if key is None:
        return _NO_KEY
    text = base64.urlsafe_b64encode(key).decode().rstrip("=")
    if len(text) > _KEY_TOKEN_LIMIT:
        return f"={hashlib.sha256(key).hexdigest()}"
    return f"k{text}"


def group_stream(app_id: str) -> str:
    """Return the stream that holds the state of an app: members, generation, offsets, tables."""
    return f"FAUST_GROUP_{token(app_id)}"


def member_subject(app_id: str, member: str) -> str:
    """Return the subject of the record of one worker; `*` covers those of all."""
    return f"{GROUP_ROOT}.{token(app_id)}.member.{'*' if member == '*' else token(member)}"


def generation_subject(app_id: str) -> str:
    """Return the subject of the record that says who owns which partitions."""
    return f"{GROUP_ROOT}.{token(app_id)}.generation"


def nudge_subject(app_id: str) -> str:
    """Return the subject, of no stream, on which workers tell each other to look again."""
    return f"faust.nudge.{token(app_id)}"


def changelog_root(app_id: str, topic: str, layout: str = "") -> str:
    """Return what the subjects of a table's changelog begin with, `layout` being where it moved."""
    root = f"{GROUP_ROOT}.{token(app_id)}.table.{token(topic)}"
    return f"{root}.{layout}" if layout else root


def changelog_record(app_id: str, topic: str) -> str:
    """Return the subject that says how many partitions a table's changelog has."""
    return f"{GROUP_ROOT}.{token(app_id)}.changelog.{token(topic)}"


def layout_subject(app_id: str, topic: str) -> str:
    """Return the subject that says in which layout of a topic an app's offsets and tables lie."""
    return f"{GROUP_ROOT}.{token(app_id)}.layout.{token(topic)}"


def move_subject(app_id: str) -> str:
    """Return the subject that says what a move of an app's tables leaves to be cleaned up."""
    return f"{GROUP_ROOT}.{token(app_id)}.move"


def plan_subject(topic: str) -> str:
    """Return the subject on which it is decided how many partitions a topic's next layout has."""
    return f"{PLAN_ROOT}.{token(topic)}"


def offset_subject(app_id: str, topic: str, partition: int | str) -> str:
    """Return the subject of the offset record of one partition; `*` covers those of all."""
    return f"{GROUP_ROOT}.{token(app_id)}.offset.{token(topic)}.{partition}"


def partition_for(key: bytes, count: int) -> int:
    """Map a key to a partition: 32-bit FNV-1a modulo `count`, as the server's `partition()`."""
    digest = 0x811C9DC5
    for byte in key:
        digest = ((digest ^ byte) * 0x01000193) & 0xFFFFFFFF
    return digest % count


def encode_source(source: bytes | None, key: bytes | None) -> str:
    """Write which key decided on the partition of a table's change; `key` is the change's own."""
    if source is None:
        return _NO_KEY
    return _OWN_KEY if source == key else f"k{base64.b64encode(source).decode()}"


def decode_source(headers: Mapping[str, str] | None) -> bytes | None:
    """Read back what `encode_source` wrote; KeyError where nothing says it."""
    text = (headers or {})[SOURCE_HEADER]
    if text == _NO_KEY:
        return None
    return decode_key(headers) if text == _OWN_KEY else base64.b64decode(text[1:])


def encode_headers(
    key: bytes | None,
    value: bytes | None,
    timestamp_s: float | None,
    headers: Mapping[str, bytes | str] | None,
) -> dict[str, str] | None:
    """Write key, tombstone flag, timestamp and the user's headers as NATS headers.

    NATS trims header values and knows text only, so whatever would not survive that, or would be
    taken for an instruction to the server, is written in base64 under a name of ours.
    """
    encoded: dict[str, str] = {}
    for name, content in (headers or {}).items():
        raw = content if isinstance(content, bytes) else str(content).encode()
        text = raw.decode(errors="replace")
        if (
            _PLAIN_HEADER.fullmatch(name)
            and is_users(name)
            and (text.isprintable() and text == text.strip() and text.encode() == raw)
        ):
            encoded[name] = text
        else:
            encoded[BYTES_HEADER_PREFIX + name.encode().hex()] = base64.b64encode(raw).decode()
    if key is not None:
        encoded[KEY_HEADER] = base64.b64encode(key).decode()
    if value is None:
        encoded[TOMBSTONE_HEADER] = "1"
    if timestamp_s is not None:
        encoded[TIMESTAMP_HEADER] = repr(timestamp_s)
    return encoded or None


@lru_cache(maxsize=1024)
def is_users(header: str) -> bool:
    """Tell the user's headers from the transport's own and from the server's.

    The server's (`Nats-...`: batch, expected sequence, message id) are instructions; a message
    that is forwarded must not repeat them.
    """
    return header not in _RESERVED_HEADERS and not header.startswith(("Nats-", BYTES_HEADER_PREFIX))


def decode_headers(headers: Mapping[str, str]) -> dict[str, bytes]:
    """Read the user's headers back."""
    decoded: dict[str, bytes] = {}
    for name, text in headers.items():
        if is_users(name):
            decoded[name] = text.encode()
        elif name.startswith(BYTES_HEADER_PREFIX):
            written = bytes.fromhex(name.removeprefix(BYTES_HEADER_PREFIX)).decode()
            decoded[written] = base64.b64decode(text)
    return decoded


def decode_timestamp(headers: Mapping[str, str] | None, stored_at_s: float) -> float:
    """Read the time the sender gave the message; `stored_at_s` when it gave none."""
    given = headers.get(TIMESTAMP_HEADER) if headers else None
    return float(given) if given is not None else stored_at_s


def decode_key(headers: Mapping[str, str] | None) -> bytes | None:
    """Read the message key back; None when the message has none."""
    if not headers or KEY_HEADER not in headers:
        return None
    return base64.b64decode(headers[KEY_HEADER])


def decode_value(headers: Mapping[str, str] | None, data: bytes) -> bytes | None:
    """Read the value back: None for a tombstone, the bytes (also empty) otherwise."""
    if headers and TOMBSTONE_HEADER in headers:
        return None
    return data
