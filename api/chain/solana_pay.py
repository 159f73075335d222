"""Solana Pay links, references and token accounts: pure functions.

Rules: https://docs.solanapay.com/spec. A transfer request says everything in the link; a
transaction request names an https address of ours that builds the chain transaction. A malformed
address given to `token_account`, or a link that wallets must refuse, raises ValueError.
"""

import secrets
from collections.abc import Sequence
from typing import Final
from urllib.parse import quote, urlsplit

from solders.pubkey import Pubkey
from solders.token.associated import get_associated_token_address

LONGEST_URL: Final = 2048
_SCHEME: Final = "solana:"


def new_reference() -> str:
    """Return 32 random bytes, base58: the mark by which a payment's transfer is recognised.

    It only has to be unlike any other; by the rules it need not lie on the curve as a wallet does.
    """
    return str(Pubkey(secrets.token_bytes(32)))


def token_account(owner: str, mint: str) -> str:
    """Return the associated token account in which `owner` holds tokens of `mint`."""
    return str(get_associated_token_address(Pubkey.from_string(owner), Pubkey.from_string(mint)))


def memo_of(reference: str) -> str:
    """Return the memo of a payment's transfer.

    A memo is public for ever, and who knows a payment's id may see its page. So the memo repeats
    the reference, which is on the chain anyway, and not the id.
    """
    return f"giovang:{reference}"


def pay_url(
    *,
    recipient: str,
    amount: str,
    mint: str,
    references: Sequence[str],
    memo: str | None = None,
    label: str | None = None,
    message: str | None = None,
    longest: int = LONGEST_URL,
) -> str:
    """Return the transfer request that a wallet opens or a QR code carries.

    `recipient` is a wallet, never a token account; `amount` is in tokens, as a plain decimal. A
    message, then a label, is left out where the link would grow past `longest`; what makes the
    payment right always fits.
    """
    marks = "".join(f"&reference={reference}" for reference in references)
    link = f"{_SCHEME}{recipient}?amount={amount}&spl-token={mint}{marks}{_field('memo', memo)}"
    for name, text in (("label", label), ("message", message)):
        addition = _field(name, text)
        if len(link) + len(addition) <= longest:
            link += addition
    return link


def request_url(link: str) -> str:
    """Return the transaction request for an absolute https address that serves one.

    An address with a query is encoded whole, lest its parameters be taken for the protocol's.
    Raises ValueError for any other address, which wallets must refuse.
    """
    parts = urlsplit(link)
    if parts.scheme != "https" or not parts.hostname or parts.fragment:
        raise ValueError("a transaction request needs an absolute https address")
    url = _SCHEME + (quote(link, safe="") if parts.query else link)
    if len(url) > LONGEST_URL:
        raise ValueError(f"a transaction request has at most {LONGEST_URL} characters")
    return url


def _field(name: str, text: str | None) -> str:
    # quote() writes a space as %20; wallets do not read the + of HTML forms.
    return f"&{name}={quote(text, safe='')}" if text else ""
