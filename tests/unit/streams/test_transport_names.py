"""Names and headers of the transport: reversible, free of collisions, equal to the server's."""

import pytest
from nats.aio.client import Client
from yarl import URL

from streams.transport import names
from streams.transport.connection import FastHeaderClient, server_address
from streams.transport.topics import external_topics


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("payments", "payments"),
        ("app-counts-changelog", "app-counts-changelog"),
        ("a.b", "a=2Eb"),
        ("a=2Eb", "a=3D2Eb"),
        ("a b>*", "a=20b=3E=2A"),
        ("giờ", "gi=E1=BB=9D"),
    ],
)
def test_any_topic_name_is_one_token(name: str, token: str) -> None:
    assert names.token(name) == token


def test_keys_never_meet() -> None:
    keys = [None, b"", b"_", b"k", b"\x00", b"a" * 500, b"a" * 501, "giờ".encode()]
    tokens = [names.key_token(key) for key in keys]
    assert len(set(tokens)) == len(keys)
    assert all(token and not set(token) & set(". *>") for token in tokens)


@pytest.mark.parametrize(
    ("key", "digest"), [(b"", 0x811C9DC5), (b"a", 0xE40C292C), (b"foobar", 0xBF9CF968)]
)
def test_the_partitioner_is_fnv_1a(key: bytes, digest: int) -> None:
    assert names.partition_for(key, 2**32) == digest
    assert names.partition_for(key, 7) == digest % 7


@pytest.mark.parametrize("key", [None, b"", b"k\x00\xff"])
@pytest.mark.parametrize("value", [None, b"", b"v"])
def test_keys_and_tombstones_survive_the_wire(key: bytes | None, value: bytes | None) -> None:
    headers = names.encode_headers(key, value, 1.5, {"trace": b"abc", "n": "1"})
    assert names.decode_key(headers) == key
    assert names.decode_value(headers, value or b"") == value
    assert headers is not None
    assert {name for name in headers if names.is_users(name)} == {"trace", "n"}


def test_headers_that_are_not_text_are_refused() -> None:
    with pytest.raises(UnicodeDecodeError):
        names.encode_headers(b"k", b"v", None, {"bad": b"\xff\xfe"})


def test_instructions_to_the_server_are_not_the_users() -> None:
    assert not names.is_users("Nats-Msg-Id")
    assert not names.is_users("Nats-Batch-Id")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"A: b\r\nC:d\r\nE:\t f \r\n\r\n",
        b"no colon\r\nKey: a:b:c\r\n",
        b"bad name: x\r\ng\xe1: y\r\nv: gi\xe1\xbb\x9d \xff\r\n",
        b": empty\r\n",
    ],
)
def test_fast_headers_read_what_the_client_reads(raw: bytes) -> None:
    assert FastHeaderClient._parse_header_lines(raw) == Client._parse_header_lines(raw)


def test_a_broker_url_names_external_topics() -> None:
    url = URL("nats://user:pass@127.0.0.1:4222/?topic.ledger=LEDGER&topic.risk=RISK")
    assert external_topics([url]) == {"ledger": "LEDGER", "risk": "RISK"}
    assert server_address(url) == "nats://user:pass@127.0.0.1:4222"
