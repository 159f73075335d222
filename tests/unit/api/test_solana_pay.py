"""Solana Pay links and token accounts by the rules and vectors of the specification."""

from urllib.parse import parse_qsl, unquote

from hypothesis import given
from hypothesis import strategies as st
from solders.pubkey import Pubkey

from api.chain.solana_pay import LONGEST_URL, new_reference, pay_url, token_account
from api.contract import USDC_MINT

WALLET = "mvines9iiHiQTysrwkJjGf2gb9Ex9jXJX8ns3qwf2kN"
REFERENCE = "82ZJ7nbGpixjeDCmEhUcmwXYfvurzAgGdtSMuHnUgyny"


def test_the_vector_of_an_associated_token_account() -> None:
    assert token_account(WALLET, USDC_MINT) == "5ZGPSxMzV9xV5s3Wep73r8k5MsPAtLYs11dGDdknznM5"


def test_a_link_encodes_as_wallets_decode() -> None:
    link = pay_url(
        recipient=WALLET,
        amount="9.560230",
        mint=USDC_MINT,
        reference=REFERENCE,
        label="Cà phê & bánh",
        message="two iced coffees",
    )
    assert link == (
        f"solana:{WALLET}?amount=9.560230&spl-token={USDC_MINT}&reference={REFERENCE}"
        "&label=C%C3%A0%20ph%C3%AA%20%26%20b%C3%A1nh&message=two%20iced%20coffees"
    )


@given(label=st.text(max_size=300), message=st.text(max_size=600))
def test_a_link_is_never_too_long_and_always_pays_right(label: str, message: str) -> None:
    label, message = (text.encode(errors="ignore").decode() for text in (label, message))
    link = pay_url(
        recipient=WALLET,
        amount="1.000000",
        mint=USDC_MINT,
        reference=REFERENCE,
        label=label,
        message=message,
    )
    assert len(link) <= LONGEST_URL
    assert "+" not in link
    assert " " not in link
    target, _, query = link.partition("?")
    assert target == f"solana:{WALLET}"
    fields = dict(parse_qsl(query, keep_blank_values=True))
    assert (fields["amount"], fields["spl-token"], fields["reference"]) == (
        "1.000000",
        USDC_MINT,
        REFERENCE,
    )
    assert unquote(fields.get("label", label)) in {label, unquote(label)}


def test_references_are_fresh_keys_of_32_bytes() -> None:
    made = {new_reference() for _ in range(200)}
    assert len(made) == 200
    assert all(len(bytes(Pubkey.from_string(reference))) == 32 for reference in made)
