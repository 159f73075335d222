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

KEY_HEADER = "Faust-Key"
TOMBSTONE_HEADER = "Faust-Tombstone"
TIMESTAMP_HEADER = "Faust-Timestamp"
PARTITIONS_METADATA = "faust.partitions"
COMPACTING_METADATA = "faust.compacting"

_RESERVED_HEADERS = frozenset({KEY_HEADER, TOMBSTONE_HEADER, TIMESTAMP_HEADER})

_KEY_TOKEN_LIMIT = 180
_UNSAFE = re.compile(rb"[^A-Za-z0-9_-]")
_NO_KEY = "_"


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


def topic_subjects(topic: str) -> str:
    """Return the subject filter that covers a declared topic."""
    return f"{TOPIC_ROOT}.{token(topic)}.>"


def partition_filter(topic: str, partition: int, *, compacting: bool) -> str:
    """Return the filter that selects one partition of a declared topic."""
    subject = f"{TOPIC_ROOT}.{token(topic)}.{partition}"
    return f"{subject}.>" if compacting else subject


def message_subject(topic: str, partition: int, key: bytes | None, *, compacting: bool) -> str:
    """Return the subject a message is published on; a compacted topic has one a key."""
    subject = f"{TOPIC_ROOT}.{token(topic)}.{partition}"
    return f"{subject}.{key_token(key)}" if compacting else subject


def key_token(key: bytes | None) -> str:
    """Write a message key as one subject token; a long key is replaced by its SHA-256."""
    if key is None:
        return _NO_KEY
    text = base64.urlsafe_b64encode(key).decode().rstrip("=")
    if len(text) > _KEY_TOKEN_LIMIT:
        return f"={hashlib.sha256(key).hexdigest()}"
    return f"k{text}"


def group_stream(app_id: str) -> str:
    """Return the stream that holds the ownership and the offsets of an app."""
    return f"FAUST_GROUP_{token(app_id)}"


def owner_subject(app_id: str) -> str:
    """Return the subject of the ownership record of an app."""
    return f"{GROUP_ROOT}.{token(app_id)}.owner"


def offset_subject(app_id: str, topic: str, partition: int) -> str:
    """Return the subject of the offset record of one partition."""
    return f"{GROUP_ROOT}.{token(app_id)}.offset.{token(topic)}.{partition}"


def partition_for(key: bytes, count: int) -> int:
    """Map a key to a partition: 32-bit FNV-1a modulo `count`, as the server's `partition()`."""
    digest = 0x811C9DC5
    for byte in key:
        digest = ((digest ^ byte) * 0x01000193) & 0xFFFFFFFF
    return digest % count


def encode_headers(
    key: bytes | None,
    value: bytes | None,
    timestamp_s: float | None,
    headers: Mapping[str, bytes | str] | None,
) -> dict[str, str] | None:
    """Write key, tombstone flag, timestamp and the user's headers as NATS headers.

    Header values are text on the wire; bytes that are not UTF-8 are refused with ValueError, since
    silently changing them would be worse.
    """
    encoded: dict[str, str] = {}
    for name, content in (headers or {}).items():
        encoded[name] = content.decode() if isinstance(content, bytes) else str(content)
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
    return header not in _RESERVED_HEADERS and not header.startswith("Nats-")


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
