"""Accounts and landed Solana transactions in the encodings a client can ask for.

Shapes are the validator's (`json`, `jsonParsed`, `base58`, `base64`); an encoding that cannot carry
the data, or one this network does not speak, is an `RpcError` in the validator's words.
"""

import base64
from typing import Final

from solders.account import Account
from solders.message import MessageV0
from solders.pubkey import Pubkey

from infra.localnet import base58
from infra.localnet.errors import Json, RpcError, invalid_params
from infra.localnet.journal import RENT_EXEMPT_EPOCH, Landed
from infra.localnet.network import View
from infra.localnet.parsing import parse_instruction
from infra.localnet.submission import Submission, decode_wire
from infra.localnet.tokens import TOKEN_PROGRAMS, parse_token_data, read_mint, read_token_account

ACCOUNT_ENCODINGS: Final = ("binary", "base58", "base64", "jsonParsed")
LANDED_ENCODINGS: Final = ("binary", "json", "jsonParsed", "base58", "base64")
_MAX_BASE58_BYTES: Final = 128
_TOP_LEVEL: Final = 1


def render_account(
    account: Account, encoding: str, view: View, data_slice: tuple[int, int] | None = None
) -> dict[str, Json]:
    """An account as `getAccountInfo` shows it; `data_slice` is offset and length in bytes."""
    return {
        "lamports": account.lamports,
        "owner": str(account.owner),
        "data": _account_data(account, encoding, view, data_slice),
        "executable": account.executable,
        "rentEpoch": RENT_EXEMPT_EPOCH,
        "space": len(account.data),
    }


def render_landed(
    landed: Landed, encoding: str, max_version: int | None, block_time: int
) -> dict[str, Json]:
    """A landed transaction as `getTransaction` shows it."""
    submission = decode_wire(landed.wire)
    if not submission.is_legacy and max_version is None:
        message = (
            "Transaction version (0) is not supported by the requesting client. "
            "Please try the request again with the following configuration parameter: "
            '"maxSupportedTransactionVersion": 0'
        )
        raise RpcError(RpcError.UNSUPPORTED_VERSION, message)
    loaded = landed.meta["loadedAddresses"]
    keys = [
        *submission.message.account_keys,
        *(Pubkey.from_string(key) for key in (*loaded["writable"], *loaded["readonly"])),
    ]
    shown: dict[str, Json] = {
        "slot": landed.slot,
        "blockTime": block_time,
        "transaction": _transaction(submission, encoding, keys, len(loaded["writable"])),
        "meta": _meta(landed, encoding, keys),
    }
    if max_version is not None:
        shown["version"] = "legacy" if submission.is_legacy else 0
    return shown


def return_data(program_id: str, data: bytes) -> dict[str, Json]:
    """What a program returned, as the RPC shows it."""
    return {"programId": program_id, "data": [base64.b64encode(data).decode(), "base64"]}


def render_inner(inner: Json, keys: list[Pubkey]) -> list[Json]:
    """Inner instructions, stored in compiled form, in their `jsonParsed` form."""
    return [
        {
            "index": group["index"],
            "instructions": [
                parse_instruction(
                    keys,
                    instruction["programIdIndex"],
                    instruction["accounts"],
                    base58.decode(instruction["data"]),
                    instruction["stackHeight"],
                )
                for instruction in group["instructions"]
            ],
        }
        for group in inner
    ]


def _account_data(
    account: Account, encoding: str, view: View, data_slice: tuple[int, int] | None
) -> Json:
    if encoding == "jsonParsed":
        parsed = _parsed_data(account, view)
        if parsed is not None:
            return parsed
        encoding = "base64"
    data = account.data
    if data_slice is not None:
        offset, length = data_slice
        data = data[offset : offset + length]
    if encoding == "base64":
        return [base64.b64encode(data).decode(), "base64"]
    if len(data) > _MAX_BASE58_BYTES:
        message = (
            "Encoded binary (base 58) data should be less than 128 bytes, "
            "please use Base64 encoding."
        )
        raise RpcError(RpcError.INVALID_REQUEST, message)
    text = base58.encode(data)
    return text if encoding == "binary" else [text, "base58"]


def _parsed_data(account: Account, view: View) -> Json:
    token_account = read_token_account(account)
    decimals = None
    if token_account is not None:
        mint = read_mint(view.account(token_account.mint))
        decimals = None if mint is None else mint.decimals
    parsed = parse_token_data(account, decimals)
    if parsed is None:
        return None
    return {
        "program": TOKEN_PROGRAMS[account.owner],
        "parsed": parsed,
        "space": len(account.data),
    }


def _transaction(
    submission: Submission, encoding: str, keys: list[Pubkey], loaded_writable: int
) -> Json:
    if encoding == "binary":
        return base58.encode(submission.wire)
    if encoding == "base58":
        return [base58.encode(submission.wire), "base58"]
    if encoding == "base64":
        return [base64.b64encode(submission.wire).decode(), "base64"]
    if encoding == "jsonParsed":
        message = _parsed_message(submission, keys, loaded_writable)
    elif encoding == "json":
        message = _raw_message(submission)
    else:
        raise invalid_params(f"unsupported encoding: {encoding}")
    signatures = [str(signature) for signature in submission.decoded.signatures]
    return {"signatures": signatures, "message": message}


def _raw_message(submission: Submission) -> dict[str, Json]:
    header = submission.message.header
    message: dict[str, Json] = {
        "header": {
            "numRequiredSignatures": header.num_required_signatures,
            "numReadonlySignedAccounts": header.num_readonly_signed_accounts,
            "numReadonlyUnsignedAccounts": header.num_readonly_unsigned_accounts,
        },
        "accountKeys": [str(key) for key in submission.message.account_keys],
        "recentBlockhash": str(submission.message.recent_blockhash),
        "instructions": [
            {
                "programIdIndex": instruction.program_id_index,
                "accounts": list(instruction.accounts),
                "data": base58.encode(instruction.data),
                "stackHeight": _TOP_LEVEL,
            }
            for instruction in submission.instructions
        ],
    }
    return {**message, **_lookups(submission)}


def _parsed_message(
    submission: Submission, keys: list[Pubkey], loaded_writable: int
) -> dict[str, Json]:
    static = len(submission.message.account_keys)
    signers = submission.message.header.num_required_signatures
    accounts = []
    for index, key in enumerate(keys):
        is_static = index < static
        writable = submission.is_writable(index) if is_static else index < static + loaded_writable
        accounts.append(
            {
                "pubkey": str(key),
                "writable": writable,
                "signer": index < signers,
                "source": "transaction" if is_static else "lookupTable",
            }
        )
    message: dict[str, Json] = {
        "accountKeys": accounts,
        "recentBlockhash": str(submission.message.recent_blockhash),
        "instructions": [
            parse_instruction(
                keys,
                instruction.program_id_index,
                list(instruction.accounts),
                bytes(instruction.data),
                _TOP_LEVEL,
            )
            for instruction in submission.instructions
        ],
    }
    return {**message, **_lookups(submission)}


def _lookups(submission: Submission) -> dict[str, Json]:
    if not isinstance(submission.message, MessageV0):
        return {}
    lookups = [
        {
            "accountKey": str(lookup.account_key),
            "writableIndexes": list(lookup.writable_indexes),
            "readonlyIndexes": list(lookup.readonly_indexes),
        }
        for lookup in submission.message.address_table_lookups
    ]
    return {"addressTableLookups": lookups}


def _meta(landed: Landed, encoding: str, keys: list[Pubkey]) -> dict[str, Json]:
    meta = dict(landed.meta)
    err = meta["err"]
    meta["status"] = {"Ok": None} if err is None else {"Err": err}
    meta["rewards"] = []
    if encoding == "jsonParsed":
        # The parsed key list already says where each key came from.
        del meta["loadedAddresses"]
        meta["innerInstructions"] = render_inner(meta["innerInstructions"], keys)
    returned = meta.get("returnData")
    if returned is not None:
        meta["returnData"] = return_data(returned["programId"], bytes.fromhex(returned["data"]))
    return meta
