"""The style and the scripts of the payer's pages, and the policy that allows these alone.

They stand inside the page, so that it is whole after one request, and are named by their hash in
the content security policy: nothing else on the page can run, load, frame it or be sent elsewhere.
"""

import base64
import hashlib
from pathlib import Path
from typing import Final

from markupsafe import Markup

_STATIC: Final = Path(__file__).parent / "static"


def _read(name: str) -> Markup:
    """Return a file as it stands in the page, without its comments and indentation."""
    lines = (line.strip() for line in (_STATIC / name).read_text("utf-8").splitlines())
    kept = [line for line in lines if line and not line.startswith(("//", "/*"))]
    # Ours, so it may stand in a page as it is.
    return Markup("\n".join(kept))  # noqa: S704


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


STYLE: Final = _read("style.css")
LIVE: Final = _read("live.js")
WALLET: Final = _read("wallet.js")

HEADERS: Final = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(LIVE)} {_hash(WALLET)}; "
        "connect-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Vary": "Accept-Language",
}
