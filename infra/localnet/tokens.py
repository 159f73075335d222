"""The layouts of SPL Token accounts and mints, and the amounts a person reads.

Pure functions over account data. Data that is not a token account or mint gives `None`, never a
guess; Token-2022 accounts are read by their base layout, their extensions are not decoded.
"""

from dataclasses import dataclass
from typing import Final

from solders.account import Account
from solders.pubkey import Pubkey
from solders.token.state import Mint, TokenAccount, TokenAccountState

from infra.localnet.errors import Json

TOKEN_PROGRAM: Final = Pubkey.from_string("TokenkegQfeZyiNwAJbNbGKPFXCWuBvf9Ss623VQ5DA")
TOKEN_2022_PROGRAM: Final = Pubkey.from_string("TokenzQdBNbLqP5VEhdkAS6EPFLC1PHnBqCXEpPxuEb")
ASSOCIATED_TOKEN_PROGRAM: Final = Pubkey.from_string("ATokenGPvbdGVxr1b2hvZbsiqW5xWH25efTNsLJA8knL")
TOKEN_PROGRAMS: Final = {TOKEN_PROGRAM: "spl-token", TOKEN_2022_PROGRAM: "spl-token-2022"}

_ACCOUNT_LENGTH: Final = 165
_MINT_LENGTH: Final = 82
_MULTISIG_LENGTH: Final = 355
# Token-2022 puts the account type behind the longer of the two base layouts.
_TYPE_AT: Final = 165
_TYPE_MINT: Final = 1
_TYPE_ACCOUNT: Final = 2
_STATE_NAMES: Final = ("uninitialized", "initialized", "frozen")


@dataclass(frozen=True, slots=True)
class Holding:
    """What a token account holds: `amount_minor` of `mint`, for `owner`."""

    mint: Pubkey
    owner: Pubkey
    amount_minor: int
    program: Pubkey


def associated_address(
    owner: Pubkey, mint: Pubkey, token_program: Pubkey = TOKEN_PROGRAM
) -> Pubkey:
    """Address of the owner's associated token account for the mint."""
    seeds = [bytes(owner), bytes(token_program), bytes(mint)]
    return Pubkey.find_program_address(seeds, ASSOCIATED_TOKEN_PROGRAM)[0]


def read_token_account(account: Account | None) -> TokenAccount | None:
    """Decode an initialized token account, or return None where it is something else."""
    if account is None or account.owner not in TOKEN_PROGRAMS:
        return None
    data = account.data
    if len(data) != _ACCOUNT_LENGTH and not _has_type(account, _TYPE_ACCOUNT):
        return None
    try:
        token_account = TokenAccount.from_bytes(data[:_ACCOUNT_LENGTH])
    except ValueError:
        return None
    return None if token_account.state == TokenAccountState.Uninitialized else token_account


def read_mint(account: Account | None) -> Mint | None:
    """Decode an initialized mint, or return None where it is something else."""
    if account is None or account.owner not in TOKEN_PROGRAMS:
        return None
    data = account.data
    if len(data) != _MINT_LENGTH and not _has_type(account, _TYPE_MINT):
        return None
    try:
        mint = Mint.from_bytes(data[:_MINT_LENGTH])
    except ValueError:
        return None
    return mint if mint.is_initialized else None


def read_holding(account: Account | None) -> Holding | None:
    """Mint, owner and amount of a token account, or None where it is something else."""
    token_account = read_token_account(account)
    if account is None or token_account is None:
        return None
    return Holding(
        mint=token_account.mint,
        owner=token_account.owner,
        amount_minor=token_account.amount,
        program=account.owner,
    )


def ui_amount_string(amount_minor: int, decimals: int) -> str:
    """Decimal string of an amount without trailing zeros, as the RPC writes it."""
    if decimals == 0:
        return str(amount_minor)
    digits = str(amount_minor).rjust(decimals + 1, "0")
    return f"{digits[:-decimals]}.{digits[-decimals:]}".rstrip("0").rstrip(".")


def ui_token_amount(amount_minor: int, decimals: int) -> dict[str, Json]:
    """The RPC's `uiTokenAmount`; `uiAmount` is a float because the RPC's is, and is only shown."""
    return {
        "uiAmount": amount_minor / 10**decimals,
        "decimals": decimals,
        "amount": str(amount_minor),
        "uiAmountString": ui_amount_string(amount_minor, decimals),
    }


def parse_token_data(account: Account, decimals: int | None) -> dict[str, Json] | None:
    """The RPC's `jsonParsed` form of a token account, mint or multisig; None if it is neither.

    `decimals` are those of the account's mint; a token account without them cannot be shown.
    """
    token_account = read_token_account(account)
    if token_account is not None:
        if decimals is None:
            return None
        return {"type": "account", "info": _token_account_info(token_account, decimals)}
    mint = read_mint(account)
    if mint is not None:
        info = {
            "mintAuthority": _address_or_null(mint.mint_authority),
            "supply": str(mint.supply),
            "decimals": mint.decimals,
            "isInitialized": True,
            "freezeAuthority": _address_or_null(mint.freeze_authority),
        }
        return {"type": "mint", "info": info}
    return _parse_multisig(account)


def _token_account_info(token_account: TokenAccount, decimals: int) -> dict[str, Json]:
    info: dict[str, Json] = {
        "mint": str(token_account.mint),
        "owner": str(token_account.owner),
        "tokenAmount": ui_token_amount(token_account.amount, decimals),
        "state": _STATE_NAMES[int(token_account.state)],
        "isNative": token_account.is_native is not None,
    }
    if token_account.delegate is not None:
        info["delegate"] = str(token_account.delegate)
        info["delegatedAmount"] = ui_token_amount(token_account.delegated_amount, decimals)
    if token_account.is_native is not None:
        info["rentExemptReserve"] = ui_token_amount(token_account.is_native, decimals)
    if token_account.close_authority is not None:
        info["closeAuthority"] = str(token_account.close_authority)
    return info


def _parse_multisig(account: Account) -> dict[str, Json] | None:
    data = account.data
    if account.owner not in TOKEN_PROGRAMS or len(data) != _MULTISIG_LENGTH or not data[2]:
        return None
    required, valid = data[0], data[1]
    signers = [str(Pubkey(data[3 + 32 * i : 35 + 32 * i])) for i in range(min(valid, 11))]
    info = {"numRequiredSigners": required, "numValidSigners": valid, "isInitialized": True}
    return {"type": "multisig", "info": {**info, "signers": signers}}


def _has_type(account: Account, expected: int) -> bool:
    data = account.data
    return (
        account.owner == TOKEN_2022_PROGRAM
        and len(data) > _TYPE_AT
        and len(data) != _MULTISIG_LENGTH
        and data[_TYPE_AT] == expected
    )


def _address_or_null(address: Pubkey | None) -> str | None:
    return None if address is None else str(address)
