"""Token layouts, addresses and the amounts a person reads."""

import pytest
from solders.account import Account
from solders.pubkey import Pubkey
from solders.token.state import Mint, TokenAccount, TokenAccountState

from infra.localnet.tokens import (
    TOKEN_2022_PROGRAM,
    TOKEN_PROGRAM,
    associated_address,
    parse_token_data,
    read_holding,
    read_mint,
    ui_token_amount,
)

USDC = Pubkey.from_string("EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v")
OWNER = Pubkey.from_string("mvines9iiHiQTysrwkJjGf2gb9Ex9jXJX8ns3qwf2kN")


def token_account(
    *, amount: int = 5, delegate: Pubkey | None = None, state: TokenAccountState | None = None
) -> TokenAccount:
    return TokenAccount(
        mint=USDC,
        owner=OWNER,
        amount=amount,
        delegate=delegate,
        state=TokenAccountState.Initialized if state is None else state,
        is_native=None,
        delegated_amount=3 if delegate else 0,
        close_authority=None,
    )


def test_associated_address_vector() -> None:
    assert str(associated_address(OWNER, USDC)) == "5ZGPSxMzV9xV5s3Wep73r8k5MsPAtLYs11dGDdknznM5"


@pytest.mark.parametrize(
    ("amount_minor", "decimals", "text", "number"),
    [
        (0, 6, "0", 0.0),
        (1, 6, "0.000001", 0.000001),
        (9_560_230, 6, "9.56023", 9.56023),
        (10_000_000, 6, "10", 10.0),
        (100, 0, "100", 100.0),
        (2**64 - 1, 6, "18446744073709.551615", 18446744073709.551615),
    ],
)
def test_amounts(amount_minor: int, decimals: int, text: str, number: float) -> None:
    assert ui_token_amount(amount_minor, decimals) == {
        "amount": str(amount_minor),
        "decimals": decimals,
        "uiAmount": number,
        "uiAmountString": text,
    }


def test_token_account_is_read_by_its_program_and_state() -> None:
    data = bytes(token_account())
    holding = read_holding(Account(1, data, TOKEN_PROGRAM))
    assert holding is not None
    assert (holding.mint, holding.owner, holding.amount_minor) == (USDC, OWNER, 5)
    assert read_holding(None) is None
    assert read_holding(Account(1, data, Pubkey.default())) is None
    assert read_holding(Account(1, data[:-1], TOKEN_PROGRAM)) is None
    assert read_holding(Account(1, bytes(165), TOKEN_PROGRAM)) is None
    assert read_mint(Account(1, data, TOKEN_PROGRAM)) is None


def test_extended_accounts_are_told_by_their_type() -> None:
    extended = bytes(token_account()) + b"\x02" + b"\x07\x00\x00\x00"
    assert read_holding(Account(1, extended, TOKEN_2022_PROGRAM)) is not None
    assert read_holding(Account(1, extended, TOKEN_PROGRAM)) is None
    mint = bytes(Mint(OWNER, 10, 6, is_initialized=True))
    padded = mint + bytes(165 - len(mint)) + b"\x01"
    assert read_mint(Account(1, padded, TOKEN_2022_PROGRAM)) is not None
    assert read_holding(Account(1, padded, TOKEN_2022_PROGRAM)) is None


def test_parsed_forms() -> None:
    frozen = token_account(delegate=USDC, state=TokenAccountState.Frozen)
    parsed = parse_token_data(Account(1, bytes(frozen), TOKEN_PROGRAM), 6)
    assert parsed is not None
    assert parsed["type"] == "account"
    assert parsed["info"]["state"] == "frozen"
    assert parsed["info"]["delegate"] == str(USDC)
    assert parsed["info"]["delegatedAmount"]["uiAmountString"] == "0.000003"
    assert parse_token_data(Account(1, bytes(frozen), TOKEN_PROGRAM), None) is None
    mint = Account(1, bytes(Mint(None, 10, 2, is_initialized=True)), TOKEN_PROGRAM)
    assert parse_token_data(mint, None) == {
        "type": "mint",
        "info": {
            "mintAuthority": None,
            "supply": "10",
            "decimals": 2,
            "isInitialized": True,
            "freezeAuthority": None,
        },
    }
    multisig = bytes([2, 2, 1]) + bytes(OWNER) + bytes(USDC) + bytes(32 * 9)
    parsed = parse_token_data(Account(1, multisig, TOKEN_PROGRAM), None)
    assert parsed is not None
    assert parsed["info"]["signers"] == [str(OWNER), str(USDC)]
    assert parse_token_data(Account(1, b"x", TOKEN_PROGRAM), 6) is None
