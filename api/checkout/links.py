"""Signed links by which a payer acts on a payment: what the payer holds is the permission.

A token is the end of its life and an HMAC-SHA256 over payment, purpose and that end, under a key
derived from the sealing key (HKDF, RFC 5869). It says nothing, is checked in the same time whatever
differs, and one for another payment, another purpose or a past time is refused. Tokens are shown on
the payer's page alone; the API gives them to nobody.
"""

import base64
import hashlib
import hmac
from functools import lru_cache
from typing import Final, Literal

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

Purpose = Literal["release", "dispute"]
LIFETIME_S: Final = 30 * 86_400
_INFO: Final = b"giovang payer links 1"


class PayerLinks:
    """Makes and checks the tokens of payers' links."""

    def __init__(self, sealing_key_base64: str) -> None:
        self._key = _derived(sealing_key_base64)

    def token(self, payment_id: str, purpose: Purpose, *, now_s: int) -> str:
        """Return a token that lets its holder do this to this payment for thirty days."""
        ends_at_s = now_s + LIFETIME_S
        return f"{ends_at_s}.{self._mac(payment_id, purpose, ends_at_s)}"

    def is_valid(self, token: str, payment_id: str, purpose: Purpose, *, now_s: int) -> bool:
        """Say whether a token lets its holder do this to this payment now."""
        end, _, mac = token.partition(".")
        # Twelve digits last for thirty thousand years; more would only cost time to read.
        is_number = end.isascii() and end.isdigit() and len(end) <= 12
        ends_at_s = int(end) if is_number else 0
        expected = self._mac(payment_id, purpose, ends_at_s)
        is_ours = hmac.compare_digest(mac.encode(), expected.encode())
        return is_ours and now_s < ends_at_s

    def _mac(self, payment_id: str, purpose: Purpose, ends_at_s: int) -> str:
        message = f"{purpose}\n{payment_id}\n{ends_at_s}".encode()
        digest = hmac.new(self._key, message, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


@lru_cache(maxsize=4)
def _derived(sealing_key_base64: str) -> bytes:
    sealing_key = base64.b64decode(sealing_key_base64, validate=True)
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=_INFO).derive(sealing_key)
