"""A Solana transaction as it was submitted: its bytes, message, and every account it names.

Decoding refuses anything that would not survive a round trip with the caller's mistake as an
`RpcError`; nothing here has looked at the ledger except `resolve`, which reads address tables.
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from solders.account import Account
from solders.address_lookup_table_account import AddressLookupTable
from solders.instruction import CompiledInstruction
from solders.message import Message, MessageV0
from solders.pubkey import Pubkey
from solders.transaction import SanitizeError, VersionedTransaction

from infra.localnet import base58
from infra.localnet.errors import invalid_params

# The IPv6 minimum transmission unit less headers: the network's packet.
MAX_WIRE_BYTES: Final = 1232
_MAX_ENCODED: Final = {"base58": 1683, "base64": 1644}
_TYPE_NAME: Final = "solana_transaction::versioned::VersionedTransaction"
_MEMO_PROGRAMS: Final = frozenset(
    Pubkey.from_string(address)
    for address in (
        "Memo1UhkJRfHyvLMcVucJwxXeuD728EqVDDwQDxFMNo",
        "MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr",
    )
)
_ADDRESS_TABLE_PROGRAM: Final = Pubkey.from_string("AddressLookupTab1e1111111111111111111111111")

ReadAccount = Callable[[Pubkey], Account | None]


class UnresolvedError(Exception):
    """An address table cannot serve the message; `err` is the runtime's name for the reason."""

    def __init__(self, err: str) -> None:
        super().__init__(err)
        self.err = err


@dataclass(frozen=True, slots=True)
class AccountKeys:
    """All accounts of a message in the runtime's order: static, loaded writable, loaded read-only.

    Balances are listed by index into `all`.
    """

    static: tuple[Pubkey, ...]
    loaded_writable: tuple[Pubkey, ...]
    loaded_readonly: tuple[Pubkey, ...]

    @property
    def all(self) -> tuple[Pubkey, ...]:
        """The whole list."""
        return self.static + self.loaded_writable + self.loaded_readonly


@dataclass(frozen=True, slots=True)
class Submission:
    """One decoded Solana transaction with its first signature, by which the network knows it."""

    wire: bytes
    decoded: VersionedTransaction
    message: Message | MessageV0

    @property
    def signature(self) -> bytes:
        """First signature: the identity of the whole."""
        return bytes(self.decoded.signatures[0])

    @property
    def message_hash(self) -> bytes:
        """The runtime's other identity: the same message under another signature is a repeat."""
        return bytes(self.message.hash())

    @property
    def is_legacy(self) -> bool:
        """Whether the message predates versions."""
        return isinstance(self.message, Message)

    @property
    def instructions(self) -> Sequence[CompiledInstruction]:
        """The message's own instructions."""
        return self.message.instructions

    def is_writable(self, index: int) -> bool:
        """Whether the static key at `index` is locked for writing, programs excepted."""
        header = self.message.header
        keys = len(self.message.account_keys)
        signers = header.num_required_signatures
        if index < signers:
            asked = index < signers - header.num_readonly_signed_accounts
        else:
            asked = index < keys - header.num_readonly_unsigned_accounts
        return asked and not self.message.is_key_called_as_program(index)

    def resolve(self, read: ReadAccount) -> AccountKeys:
        """Name every account, reading address tables through `read`.

        Raises UnresolvedError with the runtime's reason.
        """
        static = tuple(self.message.account_keys)
        if isinstance(self.message, Message):
            return AccountKeys(static, (), ())
        writable: list[Pubkey] = []
        readonly: list[Pubkey] = []
        for lookup in self.message.address_table_lookups:
            addresses = _read_table(read(lookup.account_key))
            try:
                writable.extend(addresses[index] for index in lookup.writable_indexes)
                readonly.extend(addresses[index] for index in lookup.readonly_indexes)
            except IndexError as error:
                raise UnresolvedError("InvalidAddressLookupTableIndex") from error
        return AccountKeys(static, tuple(writable), tuple(readonly))

    def memo(self) -> str | None:
        """The memos of the message in the form `getSignaturesForAddress` shows."""
        keys = self.message.account_keys
        memos = []
        for instruction in self.instructions:
            # A program is always a static key; an index past them is refused by the runtime.
            index = instruction.program_id_index
            if index < len(keys) and keys[index] in _MEMO_PROGRAMS:
                data = bytes(instruction.data)
                try:
                    text = data.decode()
                except UnicodeDecodeError:
                    text = "(unparsable)"
                memos.append(f"[{len(data)}] {text}")
        return "; ".join(memos) if memos else None


def decode_submission(encoded: str, encoding: str) -> Submission:
    """Decode the wire form a client sent; raises RpcError (-32602) with the validator's words."""
    limit = _MAX_ENCODED[encoding]
    if len(encoded) > limit:
        message = (
            f"{encoding} encoded {_TYPE_NAME} too large: {len(encoded)} bytes "
            f"(max: encoded/raw {limit}/{MAX_WIRE_BYTES})"
        )
        raise invalid_params(message)
    try:
        if encoding == "base64":
            wire = base64.b64decode(encoded, validate=True)
        else:
            wire = base58.decode(encoded)
    except (binascii.Error, ValueError) as error:
        raise invalid_params(f"invalid {encoding} encoding: {error}") from error
    if len(wire) > MAX_WIRE_BYTES:
        message = f"decoded {_TYPE_NAME} too large: {len(wire)} bytes (max: {MAX_WIRE_BYTES} bytes)"
        raise invalid_params(message)
    return decode_wire(wire)


def decode_wire(wire: bytes) -> Submission:
    """Decode raw bytes; raises RpcError (-32602) where they are not one sound submission."""
    try:
        decoded = VersionedTransaction.from_bytes(wire)
        decoded.sanitize()
    except (ValueError, SanitizeError) as error:
        raise invalid_params(f"failed to deserialize {_TYPE_NAME}: {error}") from error
    message = decoded.message
    if not isinstance(message, Message | MessageV0):
        raise invalid_params(f"failed to deserialize {_TYPE_NAME}: unsupported version")
    if bytes(decoded) != wire:
        raise invalid_params(f"failed to deserialize {_TYPE_NAME}: trailing bytes")
    return Submission(wire=wire, decoded=decoded, message=message)


def _read_table(account: Account | None) -> Sequence[Pubkey]:
    if account is None:
        raise UnresolvedError("AddressLookupTableNotFound")
    if account.owner != _ADDRESS_TABLE_PROGRAM:
        raise UnresolvedError("InvalidAddressLookupTableOwner")
    try:
        return AddressLookupTable.deserialize(account.data).addresses
    except ValueError as error:
        raise UnresolvedError("InvalidAddressLookupTableData") from error
