"""The payer's pages as HTML: the payment, its receipt, the text to sign, and refusals.

Every page is whole by itself (style and script inside, nothing from elsewhere), says everything
without its script, and is escaped by the templates throughout.
"""

from pathlib import Path
from typing import Any, Final, get_args
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from api.checkout import assets
from api.checkout.codes import CodeKind, code_link, qr_svg, wallet_links
from api.checkout.proof import code_end, paying_wallet, text_to_sign
from api.checkout.view import Order
from api.checkout.words import LANGUAGES, WORDS, dong, grouped, moment, say
from api.payments.model import due_minor, link_of, transfer_of
from api.rates.model import decimal_string
from api.security import Purpose

_TEMPLATES: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_order(
    order: Order, *, lang: str, public_url: str, demo: bool, live_token: str | None = None
) -> str:
    """Return the page of a payment; `live_token` lets its script watch, `demo` adds its button."""
    payment = order.payment
    path = f"/api/v1/payments/{payment.id}"
    return _render(
        "order.html",
        lang=lang,
        order=order,
        title=say(lang, "title", name=order.merchant.name),
        demo=demo,
        live=None if live_token is None else f"?token={quote(live_token)}",
        live_path=path,
        # The rest is asked for only while it can be paid.
        tokens=_tokens(
            order,
            transfer_of(payment).amount_minor if order.is_payable else payment.asset_amount_minor,
        ),
        whole=_tokens(order, payment.asset_amount_minor),
        pay=_ways(order, lang, public_url) if order.is_payable else None,
        wallet=paying_wallet(order) if order.actions else None,
        **_common(order, lang),
    )


def render_receipt(order: Order, *, lang: str) -> str:
    """Return the receipt of a payment that is paid."""
    signatures = [one.signature for one in order.transfers if one.commitment != "dropped"]
    return _render(
        "receipt.html",
        lang=lang,
        order=order,
        title=say(lang, "title.receipt", name=order.merchant.name),
        tokens=_tokens(order, order.payment.asset_amount_minor),
        signatures=list(dict.fromkeys(signatures)),
        share=dong(order.payment.settled_minor, lang),
        **_common(order, lang),
    )


def render_act(
    order: Order, purpose: Purpose, *, lang: str, code: str, public_url: str, demo: bool
) -> str:
    """Return the page on which the payer agrees to an act by signing; its text carries `code`."""
    wallet = paying_wallet(order) or ""
    return _render(
        "act.html",
        lang=lang,
        order=order,
        purpose=purpose,
        code=code,
        demo=demo,
        title=say(lang, f"title.{purpose}", name=order.merchant.name),
        wallet=wallet,
        short=f"{wallet[:4]}…{wallet[-4:]}",
        text=text_to_sign(order, purpose, code=code, site=public_url, lang=lang),
        good_until=moment(code_end(code), order.merchant.timezone),
        held=dong(order.payment.settled_minor, lang),
        wallets=wallet_links(order.payment, public_url),
        **_common(order, lang),
    )


def render_refusal(code: str, *, lang: str, payment_id: str | None) -> str:
    """Return the page of a request that was refused; `code` is the problem's."""
    key = f"refused.{code}"
    return _render(
        "refused.html",
        lang=lang,
        title=say(lang, "refused.title"),
        detail=WORDS[lang].get(key, WORDS[lang]["refused.other"]),
        is_test=False,
        payment_id=payment_id,
    )


def _render(template: str, *, lang: str, **values: Any) -> str:  # noqa: ANN401 - any template's
    return _TEMPLATES.get_template(template).render(
        lang=lang,
        languages=LANGUAGES,
        t=lambda key, **named: say(lang, key, **named),
        style=assets.STYLE,
        script=assets.WALLET if template == "act.html" else assets.LIVE,
        **values,
    )


def _common(order: Order, lang: str) -> dict[str, Any]:
    """Return what more than one page says of a payment."""
    payment, zone = order.payment, order.merchant.timezone
    due_at, released_at = payment.escrow_release_due_at, payment.escrow_released_at
    return {
        "payment": payment,
        "name": order.merchant.name,
        "is_test": payment.mode == "test",
        "path": f"/order/{payment.id}",
        "dong": dong(payment.amount_minor, lang),
        "rate": f"1 {payment.asset} = {grouped(payment.rate, lang)} ₫",
        "received": _tokens(order, payment.received_minor),
        "excess": _tokens(order, order.excess_minor),
        "due": _tokens(order, max(due_minor(payment), 0)),
        "until": moment(payment.expires_at, zone),
        "zone": zone,
        "paid_at": moment(order.paid_at, zone),
        "release_due": None if due_at is None else moment(due_at, zone),
        "released": None if released_at is None else moment(released_at, zone),
    }


def _tokens(order: Order, amount_minor: int) -> str:
    return decimal_string(amount_minor, order.payment.asset)


def _ways(order: Order, lang: str, public_url: str) -> dict[str, Any]:
    """Return how money may be sent: codes to scan, links that open wallets, and by hand."""
    payment, name = order.payment, order.merchant.name
    transfer = transfer_of(payment)
    title = say(
        lang,
        "pay.qr",
        amount=_tokens(order, transfer.amount_minor),
        asset=payment.asset,
        name=name,
    )
    codes = {
        kind: _picture(link, title)
        for kind in get_args(CodeKind)
        if (link := code_link(payment, kind, label=name, public_url=public_url)) is not None
    }
    return {
        "codes": codes,
        "link": link_of(payment, name),
        "wallets": wallet_links(payment, public_url),
        "by_hand": [
            ("amount", _tokens(order, transfer.amount_minor)),
            ("address", transfer.recipient),
            ("mint", transfer.mint),
            ("reference", transfer.references[0]),
        ],
    }


def _picture(link: str, title: str) -> Markup:
    # Drawn by our library from text that it escapes.
    return Markup(qr_svg(link, title=title))  # noqa: S704
