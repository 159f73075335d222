"""Names and headers of the transport: reversible, free of collisions, equal to the server's."""

import base64

import pytest
from nats.aio.client import Client
from yarl import URL

from streams.transport import names
from streams.transport.access import server_address
from streams.transport.connection import FastHeaderClient
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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trace", b"abc"),
        ("trace", b""),
        ("trace", b" padded "),
        ("trace", b"two\r\nlines"),
        ("trace", b"\x00\xff\xfe"),
        ("a name: with signs", b"abc"),
        ("Nats-TTL", b"1s"),
        ("Nats-Msg-Id", b"forged"),
        ("Faust-Key", b"forged"),
        ("Status", b"404"),
    ],
)
def test_headers_survive_the_wire_and_instruct_nobody(name: str, value: bytes) -> None:
    written = names.encode_headers(b"k", b"v", None, {name: value}) or {}
    assert written[names.KEY_HEADER] == base64.b64encode(b"k").decode()
    assert not any(header.startswith("Nats-") or header == "Status" for header in written)
    # The client trims values, and the server ends a header at the end of its line.
    read = {header: text.strip() for header, text in written.items() if text.isprintable()}
    assert names.decode_headers(read) == {name: value}
    assert names.decode_key(read) == b"k"


def test_a_message_has_the_time_its_sender_gave() -> None:
    given = names.encode_headers(b"k", b"v", 1.5, None)
    assert names.decode_timestamp(given, 9.0) == 1.5
    assert names.decode_timestamp(names.encode_headers(b"k", b"v", None, None), 9.0) == 9.0
    assert names.decode_timestamp(None, 9.0) == 9.0


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
    assert server_address(url) == "nats://127.0.0.1:4222", "what is logged holds no secret"
