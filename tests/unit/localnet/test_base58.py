"""Base58 agrees with its published vectors and with solders."""

import random

import pytest
from solders.pubkey import Pubkey

from infra.localnet.base58 import decode, encode


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"\0", "1"),
        (b"Hello World!", "2NEpo7TZRRrLZSi2U"),
        (bytes.fromhex("0000287fb4cd"), "11233QC4"),
        (
            b"The quick brown fox jumps over the lazy dog.",
            "USm3fpXnKG5EUBx2ndxBDMPVciP5hGey2Jh4NDv6gmeo1LkMeiKrLJUUBk6Z",
        ),
    ],
)
def test_vectors_of_the_draft(data: bytes, text: str) -> None:
    assert encode(data) == text
    assert decode(text) == data


def test_addresses_agree_with_solders() -> None:
    source = random.Random(58)
    for zeros in (0, 1, 5, 32):
        data = bytes(zeros) + source.randbytes(32 - zeros)
        assert encode(data) == str(Pubkey(data))
        assert decode(str(Pubkey(data))) == data


def test_any_length_comes_back() -> None:
    source = random.Random(1232)
    for length in (1, 2, 31, 64, 200, 1232):
        data = source.randbytes(length)
        assert decode(encode(data)) == data


@pytest.mark.parametrize("text", ["0", "O", "I", "l", "abc ", "é"])
def test_foreign_characters_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a base58 character"):
        decode(text)
