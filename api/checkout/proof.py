"""The payer's proof: a text signed by the wallet that paid, without which nobody acts for a payer.

The text says in plain words what is agreed to, of which payment, shop and amount, until when, and
carries a code of ours (an HMAC over payment, purpose and end), so that one signature serves one
payment, one purpose and a quarter of an hour. It needs no memory here: what it permits happens once
by the payment's own state. The wallet is the one whose tokens paid more than half of what was
asked, the first ones counting first: neither dust sent ahead nor money sent after makes a payer.
A signature that proves nothing, for whatever reason, is NotPermitted.
"""

import unicodedata
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from solders.pubkey import Pubkey
from solders.signature import Signature

from api.checkout.view import Order
from api.checkout.words import Lang, dong, say, utc
from api.errors import NotPermitted
from api.rates.model import decimal_string
from api.security import PayerLinks, Purpose

# How the Solana command line tool wraps a text before it signs it: the signing domain, version 0,
# format 1 (UTF-8); the length in two bytes follows. docs.anza.xyz, off-chain message signing.
_WRAPPING: Final = b"\xffsolana offchain\x00\x01"
# Letters that show nothing, or turn what follows around: they could make a name read otherwise.
_UNSEEN: Final = frozenset({"Cc", "Cf", "Zl", "Zp"})


@dataclass(frozen=True, slots=True)
class Proof:
    """What a payer presents: our code, the signature in base58, and in which language it read."""

    code: str
    signature: str
    lang: Lang


def paying_wallet(order: Order) -> str | None:
    """Return the wallet that paid more than half of what was asked, or None where none did."""
    payment = order.payment
    missing = payment.asset_amount_minor
    paid: Counter[str] = Counter()
    for transfer in sorted(order.transfers, key=lambda one: (one.slot, one.signature)):
        if transfer.mint != payment.mint or transfer.commitment == "dropped":
            continue
        counted = min(transfer.amount_minor, missing)
        missing -= counted
        if transfer.payer_address is not None:
            paid[transfer.payer_address] += counted
    for wallet, amount_minor in paid.items():
        if 2 * amount_minor > payment.asset_amount_minor:
            return wallet
    return None


def text_to_sign(order: Order, purpose: Purpose, *, code: str, site: str, lang: str) -> str:
    """Return what the paying wallet signs to act; `site` is our address as payers know it."""
    payment = order.payment
    tokens = f"{decimal_string(payment.asset_amount_minor, payment.asset)} {payment.asset}"
    return say(
        lang,
        f"proof.{purpose}",
        site=site,
        shop=_plain(order.merchant.name),
        payment=payment.id,
        amount=f"{dong(payment.settled_minor, lang)} ({tokens})",
        wallet=paying_wallet(order),
        until=utc(code_end(code)),
        code=code,
    )


def code_end(code: str) -> datetime:
    """Return when a code of ours ends."""
    return datetime.fromtimestamp(int(code.partition(".")[0]), UTC)


def demand(
    order: Order, purpose: Purpose, proof: Proof, *, links: PayerLinks, site: str, now_s: int
) -> None:
    """Return where the proof is the paying wallet's; raises NotPermitted."""
    if not links.is_valid(proof.code, order.payment.id, purpose, now_s=now_s):
        raise NotPermitted("this text is not valid any more; open the payment's page again")
    wallet = paying_wallet(order)
    if wallet is None:
        raise NotPermitted("no wallet paid more than half; ask the shop")
    text = text_to_sign(order, purpose, code=proof.code, site=site, lang=proof.lang).encode()
    if not _signed(wallet, proof.signature, text):
        raise NotPermitted("this is not the signature of the wallet that paid under this text")


def _signed(wallet: str, signature: str, text: bytes) -> bool:
    try:
        key, signed = Pubkey.from_string(wallet), Signature.from_string(signature.strip())
    except ValueError:
        return False
    wrapped = _WRAPPING + len(text).to_bytes(2, "little") + text
    return signed.verify(key, text) or signed.verify(key, wrapped)


def _plain(name: str) -> str:
    return "".join(letter for letter in name if unicodedata.category(letter) not in _UNSEEN)
