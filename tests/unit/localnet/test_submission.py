"""A submission is decoded whole or refused with the caller's mistake."""

import base64

import pytest
from solders.account import Account
from solders.address_lookup_table_account import AddressLookupTableAccount
from solders.hash import Hash
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import Message, MessageV0
from solders.pubkey import Pubkey
from solders.system_program import TransferParams, transfer
from solders.transaction import VersionedTransaction

from infra.localnet import base58
from infra.localnet.errors import RpcError
from infra.localnet.submission import (
    MAX_WIRE_BYTES,
    UnresolvedError,
    decode_submission,
    decode_wire,
)

PAYER = Keypair.from_seed(bytes([1]) * 32)
TARGET, TABLE, OTHER = (Keypair.from_seed(bytes([i]) * 32).pubkey() for i in (2, 3, 4))
TABLE_PROGRAM = Pubkey.from_string("AddressLookupTab1e1111111111111111111111111")
MEMO = Pubkey.from_string("MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr")
SENDING = transfer(TransferParams(from_pubkey=PAYER.pubkey(), to_pubkey=TARGET, lamports=1))


def legacy(*instructions: Instruction) -> bytes:
    message = Message(list(instructions), PAYER.pubkey())
    return bytes(VersionedTransaction(message, [PAYER]))


def versioned(addresses: list[Pubkey]) -> bytes:
    instruction = Instruction(
        MEMO,
        b"",
        [
            AccountMeta(TARGET, is_signer=False, is_writable=True),
            AccountMeta(OTHER, is_signer=False, is_writable=False),
        ],
    )
    table = AddressLookupTableAccount(TABLE, addresses)
    message = MessageV0.try_compile(PAYER.pubkey(), [instruction], [table], Hash.default())
    return bytes(VersionedTransaction(message, [PAYER]))


def table_account(addresses: list[Pubkey]) -> Account:
    meta = b"\x01\x00\x00\x00" + b"\xff" * 8 + bytes(8) + b"\x00" + b"\x00" + bytes(32) + bytes(2)
    return Account(1, meta + b"".join(map(bytes, addresses)), TABLE_PROGRAM)


def test_both_encodings_give_the_same() -> None:
    wire = legacy(SENDING)
    as_base64 = decode_submission(base64.b64encode(wire).decode(), "base64")
    as_base58 = decode_submission(base58.encode(wire), "base58")
    assert as_base64 == as_base58
    assert as_base64.wire == wire
    assert as_base64.is_legacy


@pytest.mark.parametrize(
    ("encoded", "encoding", "reason"),
    [
        ("", "base64", "failed to deserialize"),
        ("not base64!", "base64", "invalid base64 encoding"),
        ("0OIl", "base58", "invalid base58 encoding"),
        ("A" * 1645, "base64", "too large"),
        (base64.b64encode(bytes(MAX_WIRE_BYTES + 1)).decode(), "base64", "too large"),
        (base64.b64encode(legacy(SENDING)[:-1]).decode(), "base64", "failed to deserialize"),
        (base64.b64encode(legacy(SENDING) + b"\0").decode(), "base64", "trailing bytes"),
        (base64.b64encode(b"\0" + legacy(SENDING)[65:]).decode(), "base64", "deserialize"),
    ],
)
def test_unsound_bytes_are_refused(encoded: str, encoding: str, reason: str) -> None:
    with pytest.raises(RpcError, match=reason) as caught:
        decode_submission(encoded, encoding)
    assert caught.value.code == RpcError.INVALID_PARAMS


def test_flipped_bits_never_escape_as_other_errors() -> None:
    wire = legacy(SENDING)
    refused = 0
    for index in range(len(wire)):
        damaged = bytearray(wire)
        damaged[index] ^= 0xFF
        try:
            decode_wire(bytes(damaged))
        except RpcError:
            refused += 1
    assert refused > 0


def test_memos_in_the_form_of_histories() -> None:
    assert decode_wire(legacy(SENDING)).memo() is None
    memos = [Instruction(MEMO, data, []) for data in ("chợ".encode(), b"\xff")]
    assert decode_wire(legacy(*memos)).memo() == "[5] chợ; [1] (unparsable)"


def test_writable_keys() -> None:
    submission = decode_wire(legacy(SENDING))
    assert [submission.is_writable(index) for index in range(3)] == [True, True, False]


def test_table_addresses_come_behind_the_static_keys() -> None:
    submission = decode_wire(versioned([OTHER, TARGET]))
    keys = submission.resolve({TABLE: table_account([OTHER, TARGET])}.get)
    assert keys.static == (PAYER.pubkey(), MEMO)
    assert keys.loaded_writable == (TARGET,)
    assert keys.loaded_readonly == (OTHER,)
    assert keys.all == (PAYER.pubkey(), MEMO, TARGET, OTHER)


@pytest.mark.parametrize(
    ("account", "err"),
    [
        (None, "AddressLookupTableNotFound"),
        (Account(1, b"", Pubkey.default()), "InvalidAddressLookupTableOwner"),
        (Account(1, b"short", TABLE_PROGRAM), "InvalidAddressLookupTableData"),
        (table_account([OTHER]), "InvalidAddressLookupTableIndex"),
    ],
)
def test_unusable_tables_have_the_runtimes_names(account: Account | None, err: str) -> None:
    submission = decode_wire(versioned([OTHER, TARGET]))
    with pytest.raises(UnresolvedError) as caught:
        submission.resolve(lambda _address: account)
    assert caught.value.err == err
