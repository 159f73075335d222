"""Solana Pay links and token accounts by the rules and vectors of the specification."""

import re
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from solders.pubkey import Pubkey

from api.chain.solana_pay import (
    LONGEST_URL,
    memo_of,
    new_reference,
    pay_url,
    request_url,
    token_account,
)
from api.contract import DECIMALS, USDC_MINT, Asset
from api.rates.model import decimal_string

WALLET = "mvines9iiHiQTysrwkJjGf2gb9Ex9jXJX8ns3qwf2kN"
REFERENCE = "82ZJ7nbGpixjeDCmEhUcmwXYfvurzAgGdtSMuHnUgyny"
OTHER = "5ZGPSxMzV9xV5s3Wep73r8k5MsPAtLYs11dGDdknznM5"


def link(
    *, amount: str = "1.000000", references: tuple[str, ...] = (REFERENCE,), **more: str
) -> str:
    return pay_url(recipient=WALLET, amount=amount, mint=USDC_MINT, references=references, **more)  # type: ignore[arg-type]


def test_the_vector_of_an_associated_token_account() -> None:
    assert token_account(WALLET, USDC_MINT) == "5ZGPSxMzV9xV5s3Wep73r8k5MsPAtLYs11dGDdknznM5"


def test_a_malformed_address_has_no_token_account() -> None:
    with pytest.raises(ValueError, match=r".+"):
        token_account("not-base58", USDC_MINT)


def test_the_vector_of_a_transfer_request() -> None:
    # The example of the specification, with the reference and texts of its other examples.
    assert link(
        amount="0.01", label="Michael", message="Thanks for all the fish", memo="OrderId5678"
    ) == (
        f"solana:{WALLET}?amount=0.01&spl-token={USDC_MINT}&reference={REFERENCE}"
        "&memo=OrderId5678&label=Michael&message=Thanks%20for%20all%20the%20fish"
    )


def test_a_link_encodes_as_wallets_decode() -> None:
    assert link(amount="9.560230", label="Cà phê & bánh", message="two=iced?coffees#") == (
        f"solana:{WALLET}?amount=9.560230&spl-token={USDC_MINT}&reference={REFERENCE}"
        "&label=C%C3%A0%20ph%C3%AA%20%26%20b%C3%A1nh&message=two%3Diced%3Fcoffees%23"
    )


def test_references_keep_their_order_and_may_repeat() -> None:
    _, _, query = link(references=(OTHER, REFERENCE, OTHER)).partition("?")
    assert [v for n, v in parse_qsl(query) if n == "reference"] == [OTHER, REFERENCE, OTHER]


@given(minor=st.integers(0, 10**19), asset=st.sampled_from([Asset.USDC, Asset.USDT]))
def test_an_amount_is_a_plain_decimal_that_wallets_take(minor: int, asset: Asset) -> None:
    amount = dict(parse_qsl(link(amount=decimal_string(minor, asset)).partition("?")[2]))["amount"]
    assert re.fullmatch(r"\d+(\.\d+)?", amount)
    assert len(amount.partition(".")[2]) <= DECIMALS[asset]
    # Below one there is a zero before the point, and never another in front of a digit.
    assert amount.partition(".")[0] == str(int(amount.partition(".")[0]))
    assert int(amount.replace(".", "")) == minor


@given(
    label=st.text(max_size=300),
    message=st.text(max_size=600),
    longest=st.integers(400, LONGEST_URL),
)
def test_a_link_is_never_too_long_and_always_pays_right(
    label: str, message: str, longest: int
) -> None:
    label, message = (text.encode(errors="ignore").decode() for text in (label, message))
    made = pay_url(
        recipient=WALLET,
        amount="18446744073709.551615",
        mint=USDC_MINT,
        references=(REFERENCE,),
        memo=memo_of(REFERENCE),
        label=label,
        message=message,
        longest=longest,
    )
    assert len(made) <= longest
    assert made.isascii()
    assert "+" not in made
    assert " " not in made
    target, _, query = made.partition("?")
    assert target == f"solana:{WALLET}"
    fields = dict(parse_qsl(query, keep_blank_values=True))
    assert (fields["amount"], fields["spl-token"], fields["reference"], fields["memo"]) == (
        "18446744073709.551615",
        USDC_MINT,
        REFERENCE,
        memo_of(REFERENCE),
    )
    assert unquote(fields.get("label", label)) in {label, unquote(label)}


def test_a_memo_names_the_reference_and_nothing_else() -> None:
    assert memo_of(REFERENCE) == f"giovang:{REFERENCE}"


def test_a_transaction_request_is_the_bare_address() -> None:
    assert request_url("https://example.com/solana-pay") == "solana:https://example.com/solana-pay"


def test_an_address_with_a_query_is_encoded_whole() -> None:
    made = request_url("https://example.com/solana-pay?order=12345")
    assert made == "solana:https%3A%2F%2Fexample.com%2Fsolana-pay%3Forder%3D12345"
    assert urlsplit(made).query == ""


@pytest.mark.parametrize(
    "address",
    [
        "http://example.com/pay",
        "https:///pay",
        "/order/pay",
        "example.com/pay",
        "https://example.com/pay#part",
        "https://example.com/" + "p" * LONGEST_URL,
    ],
)
def test_what_wallets_refuse_is_not_made(address: str) -> None:
    with pytest.raises(ValueError, match="transaction request"):
        request_url(address)


def test_references_are_fresh_keys_of_32_bytes() -> None:
    made = {new_reference() for _ in range(200)}
    assert len(made) == 200
    assert all(len(bytes(Pubkey.from_string(reference))) == 32 for reference in made)
