"""Reading the parameters of a JSON-RPC call.

Every reader returns a checked value or raises an `RpcError` (-32602) that names what is wrong; a
missing optional parameter and an explicit null are the same.
"""

from dataclasses import dataclass
from typing import Final

from solders.hash import Hash
from solders.pubkey import Pubkey
from solders.signature import Signature

from infra.localnet import base58
from infra.localnet.errors import Json, RpcError, invalid_params
from infra.localnet.network import Commitment, Network
from infra.localnet.rendering import ACCOUNT_ENCODINGS

MAX_U64: Final = 2**64 - 1
# Names of the first RPC versions that clients still send.
_COMMITMENTS: Final = {
    "processed": Commitment.processed,
    "recent": Commitment.processed,
    "single": Commitment.confirmed,
    "singleGossip": Commitment.confirmed,
    "confirmed": Commitment.confirmed,
    "root": Commitment.finalized,
    "max": Commitment.finalized,
    "finalized": Commitment.finalized,
}


@dataclass(frozen=True, slots=True)
class Parameters:
    """The positional parameters of one call."""

    values: list[Json]

    def present(self, index: int) -> bool:
        """Whether the parameter was given and is not null."""
        return index < len(self.values) and self.values[index] is not None

    def required(self, index: int) -> Json:
        """The parameter, which must be given."""
        if not self.present(index):
            raise invalid_params(f"Invalid parameters: missing parameter {index + 1}")
        return self.values[index]

    def text(self, index: int) -> str:
        """A string."""
        value = self.required(index)
        if not isinstance(value, str):
            raise invalid_params(f"Invalid params: parameter {index + 1} must be a string")
        return value

    def integer(self, index: int) -> int:
        """An unsigned 64-bit integer."""
        return read_u64(self.required(index), f"parameter {index + 1}")

    def pubkey(self, index: int) -> Pubkey:
        """A base58 address."""
        return read_pubkey(self.text(index))

    def signature(self, index: int) -> bytes:
        """A base58 signature."""
        return read_signature(self.text(index))

    def blockhash(self, index: int) -> Hash:
        """A base58 block hash."""
        return Hash.from_bytes(bytes(read_pubkey(self.text(index))))

    def texts(self, index: int, limit: int) -> list[str]:
        """A list of strings, at most `limit` long."""
        values = self.required(index)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise invalid_params(f"Invalid params: parameter {index + 1} must be a list of strings")
        if len(values) > limit:
            raise invalid_params(f"Too many inputs provided; max {limit}")
        return values

    def config(self, index: int) -> "Config":
        """The configuration object, empty where it is missing."""
        value = self.values[index] if self.present(index) else {}
        if not isinstance(value, dict):
            raise invalid_params(f"Invalid params: parameter {index + 1} must be an object")
        return Config(value)


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration object: the last parameter of most calls."""

    values: dict[str, Json]

    def flag(self, name: str) -> bool:
        """A boolean that is false unless given."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, bool):
            raise invalid_params(f"Invalid params: {name} must be a boolean")
        return bool(value)

    def integer(self, name: str) -> int | None:
        """An unsigned 64-bit integer, if given."""
        value = self.values.get(name)
        return None if value is None else read_u64(value, name)

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """One of a few words."""
        value = self.values.get(name)
        if value is None:
            return default
        if value not in choices:
            raise invalid_params(
                f"Invalid params: unknown {name} `{value}`, expected one of {', '.join(choices)}"
            )
        return str(value)

    def commitment(self, default: Commitment = Commitment.finalized) -> Commitment:
        """The commitment; the RPC's default is the most settled one."""
        value = self.values.get("commitment")
        if value is None:
            return default
        commitment = _COMMITMENTS.get(value) if isinstance(value, str) else None
        if commitment is None:
            raise invalid_params(f"Invalid params: unknown commitment `{value}`")
        return commitment

    def settled_commitment(self) -> Commitment:
        """A commitment of at least confirmed, for calls about the settled ledger only."""
        commitment = self.commitment()
        if commitment is Commitment.processed:
            raise invalid_params("Method does not support commitment below `confirmed`")
        return commitment

    def slot(self, network: Network) -> int:
        """The slot to answer at. Raises RpcError (-32016) where it is below minContextSlot."""
        slot = network.slot(self.commitment())
        minimum = self.integer("minContextSlot")
        if minimum is not None and slot < minimum:
            raise RpcError(
                RpcError.MIN_CONTEXT_SLOT,
                "Minimum context slot has not been reached",
                {"contextSlot": slot},
            )
        return slot

    def account_encoding(self, default: str) -> str:
        """How account data is to be shown."""
        return self.choice("encoding", ACCOUNT_ENCODINGS, default)

    def data_slice(self) -> tuple[int, int] | None:
        """Offset and length of the part of account data that is wanted."""
        value = self.values.get("dataSlice")
        if value is None:
            return None
        if not isinstance(value, dict):
            raise invalid_params("Invalid params: dataSlice must be an object")
        offset = read_u64(value.get("offset"), "dataSlice.offset")
        return offset, read_u64(value.get("length"), "dataSlice.length")

    def signature(self, name: str) -> bytes | None:
        """A base58 signature, if given."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise invalid_params(f"Invalid params: {name} must be a string")
        return read_signature(value)


def read_u64(value: Json, name: str) -> int:
    """An unsigned 64-bit integer. JSON's 1.0 is not one, and neither is true."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_U64:
        raise invalid_params(f"Invalid params: {name} must be an unsigned 64-bit integer")
    return value


def read_pubkey(text: str) -> Pubkey:
    """A base58 address of 32 bytes."""
    try:
        return Pubkey.from_string(text)
    except ValueError as error:
        raise invalid_params(f"Invalid param: {_reason(text, 44)}") from error


def read_signature(text: str) -> bytes:
    """A base58 signature of 64 bytes."""
    try:
        return bytes(Signature.from_string(text))
    except ValueError as error:
        raise invalid_params(f"Invalid param: {_reason(text, 88)}") from error


def _reason(text: str, longest: int) -> str:
    readable = set(text) <= set(base58.ALPHABET)
    return "Invalid" if len(text) <= longest and not readable else "WrongSize"
