"""Tokens that let their holder watch one payment for a quarter of an hour, and do nothing else.

They are payers' links (api.security) of the purpose "watch": signed, of one payment, and over at a
moment written in them. A socket outlives none: it is closed when its token ends, and a page opens
another with a new token.
"""

from typing import Final

from api.security import LINK_LIFETIME_S, PayerLinks

LIVE_TOKEN_LIFETIME_S: Final = LINK_LIFETIME_S["watch"]


def live_token(links: PayerLinks, payment_id: str, now_s: int) -> str:
    """Return a token for the addresses `ws` and `sse` of a payment."""
    return links.token(payment_id, "watch", now_s=now_s)


def live_token_end_s(links: PayerLinks, token: str, payment_id: str, now_s: int) -> int | None:
    """Return until when the token lets its holder watch the payment, or None where it does not."""
    return links.end_s(token, payment_id, "watch", now_s=now_s)
