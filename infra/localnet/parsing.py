"""Instructions in the RPC's `jsonParsed` form: system, SPL Token, associated token and memo.

The rules are those of the validator's transaction-status crate, traps included: extra accounts
behind a token instruction's authority, such as Solana Pay references, are shown as `signers` and
the authority as `multisigAuthority`. What cannot be parsed is given back partially decoded, as the
validator does; nothing raises.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from solders.pubkey import Pubkey

from infra.localnet import base58
from infra.localnet.errors import Json
from infra.localnet.tokens import ASSOCIATED_TOKEN_PROGRAM, TOKEN_PROGRAMS, ui_token_amount

Info = dict[str, Json]


class _NotParsableError(Exception):
    """The instruction does not have the layout of its program."""


@dataclass(slots=True)
class _Reader:
    """Takes values from the front of instruction data."""

    data: bytes

    def take(self, count: int) -> bytes:
        if len(self.data) < count:
            raise _NotParsableError
        head, self.data = self.data[:count], self.data[count:]
        return head

    def u8(self) -> int:
        return self.take(1)[0]

    def u64(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def address(self) -> str:
        return str(Pubkey(self.take(32)))

    def optional_address(self) -> str | None:
        flag = self.u8()
        if flag > 1:
            raise _NotParsableError
        return self.address() if flag else None

    def text(self) -> str:
        return _utf8(self.take(self.u64()))


def parse_instruction(
    keys: Sequence[Pubkey],
    program_index: int,
    account_indexes: Sequence[int],
    data: bytes,
    stack_height: int | None,
) -> Info:
    """One instruction as the RPC's `parsed` object, or partially decoded."""
    program = keys[program_index]
    accounts = [str(keys[index]) for index in account_indexes]
    parser = _PROGRAMS.get(program)
    if parser is not None:
        name, parse = parser
        try:
            parsed = parse(accounts, data)
        except _NotParsableError:
            pass
        else:
            return {
                "program": name,
                "programId": str(program),
                "parsed": parsed,
                "stackHeight": stack_height,
            }
    return {
        "programId": str(program),
        "accounts": accounts,
        "data": base58.encode(data),
        "stackHeight": stack_height,
    }


def _parse_memo(_accounts: Sequence[str], data: bytes) -> Json:
    return _utf8(data)


def _parse_associated_token(accounts: Sequence[str], data: bytes) -> Json:
    create = ("source", "account", "wallet", "mint", "systemProgram", "tokenProgram")
    nested = (
        "nestedSource", "nestedMint", "destination", "nestedOwner", "ownerMint", "wallet",
        "tokenProgram",
    )  # fmt: skip
    kinds = {
        b"": "create",
        b"\x00": "create",
        b"\x01": "createIdempotent",
        b"\x02": "recoverNested",
    }
    kind = kinds.get(data)
    if kind is None:
        raise _NotParsableError
    return {"type": kind, "info": _named(accounts, nested if data == b"\x02" else create)}


def _parse_system(accounts: Sequence[str], data: bytes) -> Json:
    reader = _Reader(data)
    (tag,) = struct.unpack("<I", reader.take(4))
    layout = _SYSTEM.get(tag)
    if layout is None or not accounts:
        raise _NotParsableError
    kind, names, fields = layout
    return {"type": kind, "info": {**_named(accounts, names), **_fields(reader, fields)}}


def _parse_token(accounts: Sequence[str], data: bytes) -> Json:
    reader = _Reader(data)
    tag = reader.u8()
    if not accounts:
        raise _NotParsableError
    if tag in _TOKEN_SIGNED:
        kind, names, fields, authority = _TOKEN_SIGNED[tag]
        info = {**_named(accounts, names), **_fields(reader, fields)}
        return {"type": kind, "info": {**info, **_authority(accounts, len(names), authority)}}
    if tag in _TOKEN_PLAIN:
        kind, names, fields = _TOKEN_PLAIN[tag]
        return {"type": kind, "info": {**_named(accounts, names), **_fields(reader, fields)}}
    if tag in _TOKEN_MULTISIG:
        kind, names = _TOKEN_MULTISIG[tag]
        required = reader.u8()
        signers = list(accounts[len(names) :])
        if not signers:
            raise _NotParsableError
        return {
            "type": kind,
            "info": {**_named(accounts, names), "signers": signers, "m": required},
        }
    if tag == _SET_AUTHORITY:
        return _parse_set_authority(accounts, reader)
    if tag == _GET_ACCOUNT_DATA_SIZE:
        return _parse_account_data_size(accounts, reader)
    raise _NotParsableError


def _parse_set_authority(accounts: Sequence[str], reader: _Reader) -> Json:
    kinds = ("mintTokens", "freezeAccount", "accountOwner", "closeAccount")
    index = reader.u8()
    if index >= len(kinds):
        raise _NotParsableError
    owned = "mint" if index < 2 else "account"
    info: Info = _named(accounts, (owned,))
    info["authorityType"] = kinds[index]
    info["newAuthority"] = reader.optional_address()
    return {"type": "setAuthority", "info": {**info, **_authority(accounts, 1, "authority")}}


def _parse_account_data_size(accounts: Sequence[str], reader: _Reader) -> Json:
    info: Info = _named(accounts, ("mint",))
    extensions = []
    while reader.data:
        (index,) = struct.unpack("<H", reader.take(2))
        if index >= len(_EXTENSIONS):
            raise _NotParsableError
        extensions.append(_EXTENSIONS[index])
    if extensions:
        info["extensionTypes"] = extensions
    return {"type": "getAccountDataSize", "info": info}


def _authority(accounts: Sequence[str], at: int, name: str) -> Info:
    if len(accounts) <= at:
        raise _NotParsableError
    if len(accounts) == at + 1:
        return {name: accounts[at]}
    multisig = f"multisig{name[0].upper()}{name[1:]}"
    return {multisig: accounts[at], "signers": list(accounts[at + 1 :])}


def _named(accounts: Sequence[str], names: Sequence[str]) -> Info:
    if len(accounts) < len(names):
        raise _NotParsableError
    return dict(zip(names, accounts, strict=False))


def _fields(reader: _Reader, fields: Sequence[tuple[str, str]]) -> Info:
    info: Info = {}
    for name, kind in fields:
        if kind == "optional_address":
            # The RPC leaves an absent freeze authority out instead of showing null.
            address = reader.optional_address()
            if address is not None:
                info[name] = address
        else:
            info[name] = _FIELD_KINDS[kind](reader)
    return info


def _checked_amount(reader: _Reader) -> Json:
    amount_minor = reader.u64()
    return ui_token_amount(amount_minor, reader.u8())


def _utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _NotParsableError from error


_FIELD_KINDS: Final[Mapping[str, Callable[[_Reader], Json]]] = {
    "u8": _Reader.u8,
    "u64": _Reader.u64,
    "u64_text": lambda reader: str(reader.u64()),
    "address": _Reader.address,
    "text": _Reader.text,
    "rest": lambda reader: _utf8(reader.data),
    "checked": _checked_amount,
}

_Fields = tuple[tuple[str, str], ...]
_Names = tuple[str, ...]
_SEED: Final = (("base", "address"), ("seed", "text"))
_NONCE_SYSVAR: Final = "recentBlockhashesSysvar"
# tag: type, names of the leading accounts, fields of the data behind the tag
_SYSTEM: Final[Mapping[int, tuple[str, _Names, _Fields]]] = {
    0: (
        "createAccount",
        ("source", "newAccount"),
        (("lamports", "u64"), ("space", "u64"), ("owner", "address")),
    ),
    1: ("assign", ("account",), (("owner", "address"),)),
    2: ("transfer", ("source", "destination"), (("lamports", "u64"),)),
    3: (
        "createAccountWithSeed",
        ("source", "newAccount"),
        (*_SEED, ("lamports", "u64"), ("space", "u64"), ("owner", "address")),
    ),
    4: ("advanceNonce", ("nonceAccount", _NONCE_SYSVAR, "nonceAuthority"), ()),
    5: (
        "withdrawFromNonce",
        ("nonceAccount", "destination", _NONCE_SYSVAR, "rentSysvar", "nonceAuthority"),
        (("lamports", "u64"),),
    ),
    6: (
        "initializeNonce",
        ("nonceAccount", _NONCE_SYSVAR, "rentSysvar"),
        (("nonceAuthority", "address"),),
    ),
    7: ("authorizeNonce", ("nonceAccount", "nonceAuthority"), (("newAuthorized", "address"),)),
    8: ("allocate", ("account",), (("space", "u64"),)),
    9: ("allocateWithSeed", ("account",), (*_SEED, ("space", "u64"), ("owner", "address"))),
    10: ("assignWithSeed", ("account",), (*_SEED, ("owner", "address"))),
    11: (
        "transferWithSeed",
        ("source", "sourceBase", "destination"),
        (("lamports", "u64"), ("sourceSeed", "text"), ("sourceOwner", "address")),
    ),
    12: ("upgradeNonce", ("nonceAccount",), ()),
}
_MINT_FIELDS: Final = (
    ("decimals", "u8"),
    ("mintAuthority", "address"),
    ("freezeAuthority", "optional_address"),
)
_TOKEN_PLAIN: Final[Mapping[int, tuple[str, _Names, _Fields]]] = {
    0: ("initializeMint", ("mint", "rentSysvar"), _MINT_FIELDS),
    1: ("initializeAccount", ("account", "mint", "owner", "rentSysvar"), ()),
    16: ("initializeAccount2", ("account", "mint", "rentSysvar"), (("owner", "address"),)),
    17: ("syncNative", ("account",), ()),
    18: ("initializeAccount3", ("account", "mint"), (("owner", "address"),)),
    20: ("initializeMint2", ("mint",), _MINT_FIELDS),
    22: ("initializeImmutableOwner", ("account",), ()),
    23: ("amountToUiAmount", ("mint",), (("amount", "u64_text"),)),
    24: ("uiAmountToAmount", ("mint",), (("uiAmount", "rest"),)),
}
_TOKEN_MULTISIG: Final[Mapping[int, tuple[str, _Names]]] = {
    2: ("initializeMultisig", ("multisig", "rentSysvar")),
    19: ("initializeMultisig2", ("multisig",)),
}
_SET_AUTHORITY: Final = 6
_GET_ACCOUNT_DATA_SIZE: Final = 21
# Token-2022's extension types by number; the associated token program asks for immutableOwner.
_EXTENSIONS: Final = (
    "uninitialized", "transferFeeConfig", "transferFeeAmount", "mintCloseAuthority",
    "confidentialTransferMint", "confidentialTransferAccount", "defaultAccountState",
    "immutableOwner", "memoTransfer", "nonTransferable", "interestBearingConfig", "cpiGuard",
    "permanentDelegate", "nonTransferableAccount",
)  # fmt: skip
_AMOUNT: Final = (("amount", "u64_text"),)
_CHECKED: Final = (("tokenAmount", "checked"),)
# As above, then the name of the authority, which is the account behind the named ones.
_TOKEN_SIGNED: Final[Mapping[int, tuple[str, _Names, _Fields, str]]] = {
    3: ("transfer", ("source", "destination"), _AMOUNT, "authority"),
    4: ("approve", ("source", "delegate"), _AMOUNT, "owner"),
    5: ("revoke", ("source",), (), "owner"),
    7: ("mintTo", ("mint", "account"), _AMOUNT, "mintAuthority"),
    8: ("burn", ("account", "mint"), _AMOUNT, "authority"),
    9: ("closeAccount", ("account", "destination"), (), "owner"),
    10: ("freezeAccount", ("account", "mint"), (), "freezeAuthority"),
    11: ("thawAccount", ("account", "mint"), (), "freezeAuthority"),
    12: ("transferChecked", ("source", "mint", "destination"), _CHECKED, "authority"),
    13: ("approveChecked", ("source", "mint", "delegate"), _CHECKED, "owner"),
    14: ("mintToChecked", ("mint", "account"), _CHECKED, "mintAuthority"),
    15: ("burnChecked", ("account", "mint"), _CHECKED, "authority"),
}

_Parser = Callable[[Sequence[str], bytes], Json]
_PROGRAMS: Final[Mapping[Pubkey, tuple[str, _Parser]]] = {
    Pubkey.default(): ("system", _parse_system),
    ASSOCIATED_TOKEN_PROGRAM: ("spl-associated-token-account", _parse_associated_token),
    Pubkey.from_string("Memo1UhkJRfHyvLMcVucJwxXeuD728EqVDDwQDxFMNo"): ("spl-memo", _parse_memo),
    Pubkey.from_string("MemoSq4gqABAXKb96qnH8TysNcWxMyWCqXgDLGmfcHr"): ("spl-memo", _parse_memo),
    # The validator names both token programs alike here, though not where it shows accounts.
    **dict.fromkeys(TOKEN_PROGRAMS, ("spl-token", _parse_token)),
}
