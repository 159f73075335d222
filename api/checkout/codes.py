"""What a payer scans or taps: QR codes as SVG, and links that open a wallet.

Pure. A QR code grows with its text, and phones read a dense one badly, so the text of the transfer
request is kept short in it: the texts of the shop go first, never what makes the payment right.
"""

import io
from functools import lru_cache
from typing import Final, Literal
from urllib.parse import quote

import segno

from api.payments.model import Payment, link_of, request_link_of

CodeKind = Literal["transfer", "request"]

# Bytes of version 13 at error correction M: 69 modules a side.
LONGEST_IN_A_CODE: Final = 331
# Universal links that show a page in the wallet's own browser. Phantom's is documented at
# docs.phantom.com/phantom-deeplinks/other-methods/browse; Solflare's is the one that the Solana
# wallet adapter uses.
_BROWSERS: Final = (
    ("Phantom", "https://phantom.app/ul/browse/"),
    ("Solflare", "https://solflare.com/ul/v1/browse/"),
)


def code_link(payment: Payment, kind: CodeKind, *, label: str, public_url: str) -> str | None:
    """Return what a QR code of this kind says; None for a request where we have no https."""
    if kind == "request":
        return request_link_of(payment, public_url)
    return link_of(payment, label, longest=LONGEST_IN_A_CODE)


@lru_cache(maxsize=256)
def qr_svg(link: str, *, title: str, standalone: bool = False) -> str:
    """Return a QR code as SVG with an alternative text, to stand in a page or as a file."""
    picture = io.BytesIO()
    segno.make(link, error="m", micro=False).save(
        picture,
        kind="svg",
        xmldecl=False,
        svgns=standalone,
        omitsize=True,
        border=4,
        title=title,
        light="#fff",
    )
    return picture.getvalue().decode().replace("<svg ", '<svg role="img" ', 1)


def wallet_links(payment: Payment, public_url: str) -> list[tuple[str, str]]:
    """Return names of wallets and the links that show the payer's page inside them.

    Empty where we have no https address: a wallet's browser on a phone could not reach us.
    """
    if not public_url.startswith("https://"):
        return []
    page = quote(f"{public_url}/order/{payment.id}", safe="")
    return [(name, f"{base}{page}?ref={quote(public_url, safe='')}") for name, base in _BROWSERS]
