"""Solana Pay transfer requests, references and token accounts: pure functions.

Rules: https://docs.solanapay.com/spec. Malformed addresses raise ValueError.
"""

import secrets
from typing import Final
from urllib.parse import quote

from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.token.associated import get_associated_token_address

LONGEST_URL: Final = 2048


def new_reference() -> str:
    """Return a fresh public key, base58: the mark by which a payment's transfer is recognised.

    Nobody keeps its secret half; it only has to be unlike any other.
    """
    return str(Keypair.from_seed(secrets.token_bytes(32)).pubkey())


def token_account(owner: str, mint: str) -> str:
    """Return the associated token account in which `owner` holds tokens of `mint`."""
    return str(get_associated_token_address(Pubkey.from_string(owner), Pubkey.from_string(mint)))


def pay_url(
    *,
    recipient: str,
    amount: str,
    mint: str,
    reference: str,
    label: str | None = None,
    message: str | None = None,
) -> str:
    """Return the link that a wallet opens or a QR code carries.

    `amount` is in tokens, as a plain decimal. A message, then a label, is left out where the link
    would grow past what wallets must accept; what makes the payment right always fits.
    """
    link = f"solana:{recipient}?amount={amount}&spl-token={mint}&reference={reference}"
    for name, value in (("label", label), ("message", message)):
        # quote() writes a space as %20; wallets do not read the + of HTML forms.
        addition = f"&{name}={quote(value, safe='')}" if value else ""
        if len(link) + len(addition) <= LONGEST_URL:
            link += addition
    return link
