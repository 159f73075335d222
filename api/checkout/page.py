"""The payer's page as one piece of HTML: no script, nothing fetched from elsewhere.

It refreshes itself while something can still change, follows the reader's language (Vietnamese or
English) and theme, and is allowed by its content security policy to do nothing else.
"""

import base64
import hashlib
import io
from collections.abc import Mapping
from datetime import datetime
from html import escape
from typing import Final
from zoneinfo import ZoneInfo

import segno

from api.checkout.links import Purpose
from api.contract import ExceptionOutcome, PaymentStatus, is_final
from api.payments.model import Payment, due_minor, link_of
from api.rates.model import decimal_string, rate_string

# Money on its way is a matter of seconds, escrow one of days.
_REFRESH_S: Final = 3
_ESCROW_REFRESH_S: Final = 60

WORDS: Final[dict[str, dict[str, str]]] = {
    "vi": {
        "title": "Thanh toán cho {name}",
        "pay": "Quét mã bằng ví Solana, hoặc",
        "open": "mở trong ví",
        "until": "Tỷ giá được giữ đến",
        "received": "Đã nhận",
        "reference": "Mã thanh toán",
        "demo": "Trả thử bằng ví demo",
        "release": "Tôi đã nhận hàng, chuyển tiền cho cửa hàng",
        "dispute": "Có vấn đề, hãy giữ tiền lại",
        "release_question": "Chuyển {amount} ₫ cho {name}? Việc này không thể hoàn tác.",
        "dispute_question": "Điều gì không đúng? Tiền được giữ lại đến khi có quyết định.",
        "send": "Gửi",
        "back": "Quay lại",
        "release_due": "Tự động chuyển cho cửa hàng vào",
        "created": "Chờ thanh toán",
        "pending": "Chờ thanh toán",
        "confirming": "Đã thấy giao dịch, đang chờ mạng xác nhận",
        "completed": "Đã thanh toán. Cảm ơn bạn!",
        "expired": "Đã hết hạn. Đừng gửi tiền cho mã này nữa.",
        "failed": "Thanh toán không thành công",
        "escrow_held": "Đã thanh toán. Tiền được giữ an toàn đến khi bạn nhận hàng.",
        "awaiting_release": "Cửa hàng báo đã giao. Tiền đang chờ bạn xác nhận.",
        "disputed": "Đang được xem xét. Tiền vẫn được giữ lại.",
        "resolved": "Tranh chấp đã được giải quyết.",
        "refunded": "Số tiền đó đã được gửi trả lại cho bạn.",
        "underpaid": "Số tiền nhận được chưa đủ. Vui lòng gửi phần còn thiếu: {due} {asset}.",
        "overpaid": "Bạn đã gửi nhiều hơn số tiền cần trả. Phần dư đang được giữ lại cho bạn.",
        "late": "Tiền đến sau khi hết hạn và đang được giữ lại. Hãy liên hệ cửa hàng.",
        "wrong_asset": "Token nhận được không đúng loại, đang được giữ lại. Hãy hỏi cửa hàng.",
    },
    "en": {
        "title": "Pay {name}",
        "pay": "Scan with a Solana wallet, or",
        "open": "open in your wallet",
        "until": "This rate holds until",
        "received": "Received",
        "reference": "Payment",
        "demo": "Pay from the demo wallet",
        "release": "I have what I paid for: pay the shop",
        "dispute": "Something is wrong: keep the money back",
        "release_question": "Pay {amount} ₫ to {name}? This cannot be undone.",
        "dispute_question": "What is wrong? The money stays where it is until this is decided.",
        "send": "Send",
        "back": "Back",
        "release_due": "Goes to the shop by itself on",
        "created": "Waiting for payment",
        "pending": "Waiting for payment",
        "confirming": "Transfer seen, waiting for the network to finalise it",
        "completed": "Paid. Thank you!",
        "expired": "Expired. Please send nothing to this code any more.",
        "failed": "The payment failed",
        "escrow_held": "Paid. The money is kept safe until you have what you paid for.",
        "awaiting_release": "The shop says it delivered. The money waits for your word.",
        "disputed": "Under review. The money stays where it is.",
        "resolved": "The dispute is resolved.",
        "refunded": "That money was sent back to you.",
        "underpaid": "Not enough has arrived. Please send the missing {due} {asset}.",
        "overpaid": "You sent more than was due. The rest is kept for you.",
        "late": "Your money arrived after the end and is kept for you. Please ask the shop.",
        "wrong_asset": "A different token arrived and is kept for you. Please ask the shop.",
    },
}

_STYLE: Final = """
:root{color-scheme:light dark;--ink:#14110f;--paper:#fffdf8;--soft:#6b635a;--line:#e5ded2;
--gold:#9a6a00}
@media(prefers-color-scheme:dark){:root{--ink:#f6f1e7;--paper:#171411;--soft:#b0a698;--line:#3a342c;
--gold:#f2b632}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.5 system-ui,sans-serif}
main{max-width:26rem;margin:0 auto;padding:1.5rem;text-align:center}
h1{font-size:1.1rem;font-weight:500;color:var(--soft);margin:0 0 1rem}
.amount{font-size:2.2rem;font-weight:700;line-height:1.2}.dong,dt,.hint{color:var(--soft)}
.status{margin:1.25rem 0;padding:.75rem;border:1px solid var(--line);border-radius:.75rem;
font-weight:600}.completed{color:var(--gold);border-color:var(--gold)}
.note{font-weight:400}
.qr{background:#fff;padding:.75rem;border-radius:.75rem;display:inline-block;
border:1px solid var(--line)}
.qr svg{display:block;width:15rem;height:15rem}
a{color:var(--gold)}
dl{display:grid;grid-template-columns:auto 1fr;gap:.25rem 1rem;text-align:left;font-size:.875rem;
border-top:1px solid var(--line);padding-top:1rem}
dd{margin:0;overflow-wrap:anywhere;text-align:right}
.act{display:block;margin:.75rem 0}textarea{font:inherit;width:100%;min-height:6rem;padding:.5rem;
border-radius:.75rem;border:1px solid var(--line);background:var(--paper);color:var(--ink)}
button{font:inherit;font-weight:600;padding:.75rem 1.25rem;border-radius:.75rem;border:0;
cursor:pointer;background:var(--gold);color:var(--paper)}
"""
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS: Final = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
}


def language(accepted: str) -> str:
    """Return `vi` or `en` by the first of them that an Accept-Language header prefers."""
    weighted: list[tuple[float, int, str]] = []
    for position, part in enumerate(accepted.split(",")):
        tag, _, parameters = part.strip().partition(";")
        name = tag.strip().lower().partition("-")[0]
        if name not in WORDS:
            continue
        quality = parameters.strip().removeprefix("q=") or "1"
        try:
            weight = float(quality)
        except ValueError:
            weight = 0.0
        weighted.append((-weight, position, name))
    return min(weighted)[2] if weighted else "vi"


def actions(payment: Payment) -> tuple[Purpose, ...]:
    """Return what the payer may do about a payment whose money is in escrow."""
    is_waiting = payment.status in {PaymentStatus.ESCROW_HELD, PaymentStatus.AWAITING_RELEASE}
    return ("release", "dispute") if is_waiting else ()


def render(
    payment: Payment,
    *,
    merchant_name: str,
    timezone: str,
    lang: str,
    demo: bool,
    tokens: Mapping[Purpose, str] | None = None,
) -> str:
    """Return the page of a payment in a language.

    `demo` adds the button of the demo wallet, `tokens` the links by which its payer acts.
    """
    words = WORDS[lang]
    status = payment.status
    # An expired payment may still be accepted, but nobody waits before its page for that.
    moves = not is_final("payment", status) and status != PaymentStatus.EXPIRED
    refresh_s = _ESCROW_REFRESH_S if payment.settled_minor else _REFRESH_S
    refresh = f'<meta http-equiv="refresh" content="{refresh_s}">' if moves else ""
    title = escape(words["title"].format(name=merchant_name))
    asset_amount = decimal_string(payment.asset_amount_minor, payment.asset)
    return (
        f'<!doctype html><html lang="{lang}"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">{refresh}'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{title}</h1>"
        f'<div class="amount">{asset_amount} {escape(payment.asset)}</div>'
        f'<div class="dong">{_dong(payment.amount_minor, lang)} ₫</div>'
        f'<div class="status {status}" role="status" data-status="{status}">'
        f"{escape(words.get(status, status))}{_note(payment, words)}</div>"
        f"{_how_to_pay(payment, merchant_name, words, demo=demo)}"
        f"{_what_to_do(payment, words, tokens or {})}"
        f"{_facts(payment, words, timezone)}"
        "</main></body></html>"
    )


def render_question(
    payment: Payment, purpose: Purpose, token: str, *, merchant_name: str, lang: str
) -> str:
    """Return the page that asks the payer to confirm; its button posts the token back."""
    words = WORDS[lang]
    title = escape(words["title"].format(name=merchant_name))
    question = words[f"{purpose}_question"].format(
        amount=_dong(payment.settled_minor, lang), name=merchant_name
    )
    reason = (
        '<textarea name="reason" required maxlength="1000" autofocus></textarea>'
        if purpose == "dispute"
        else ""
    )
    label = words["send"] if purpose == "dispute" else words["release"]
    return (
        f'<!doctype html><html lang="{lang}"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{title}</h1>"
        f'<form method="post" action="/order/{payment.id}/{purpose}">'
        f"<p>{escape(question)}</p>{reason}"
        f'<input type="hidden" name="token" value="{escape(token)}">'
        f'<button class="act">{escape(label)}</button></form>'
        f'<p class="hint"><a href="/order/{payment.id}">{escape(words["back"])}</a></p>'
        "</main></body></html>"
    )


def _what_to_do(payment: Payment, words: dict[str, str], tokens: Mapping[Purpose, str]) -> str:
    return "".join(
        f'<p class="act"><a href="/order/{payment.id}/{purpose}?token={escape(token)}" '
        f'data-action="{purpose}">{escape(words[purpose])}</a></p>'
        for purpose, token in tokens.items()
    )


def _note(payment: Payment, words: dict[str, str]) -> str:
    if payment.exception is None or payment.exception_outcome == ExceptionOutcome.ACCEPTED:
        return ""
    if payment.exception_outcome is not None:
        return f'<div class="note">{escape(words[payment.exception_outcome])}</div>'
    due = max(due_minor(payment), 0)
    text = words[payment.exception].format(
        due=decimal_string(due, payment.asset), asset=payment.asset
    )
    return f'<div class="note">{escape(text)}</div>'


def _how_to_pay(payment: Payment, merchant_name: str, words: dict[str, str], *, demo: bool) -> str:
    if payment.status not in {PaymentStatus.CREATED, PaymentStatus.PENDING}:
        return ""
    link = link_of(payment, merchant_name)
    button = (
        f'<form method="post" action="/order/{payment.id}/demo-pay">'
        f"<button>{escape(words['demo'])}</button></form>"
        if demo
        else ""
    )
    return (
        f'<div class="qr">{_qr(link)}</div>'
        f'<p class="hint">{escape(words["pay"])} '
        f'<a href="{escape(link)}">{escape(words["open"])}</a></p>{button}'
    )


def _facts(payment: Payment, words: dict[str, str], timezone: str) -> str:
    received = decimal_string(payment.received_minor, payment.asset)
    until = _moment(payment.expires_at, timezone)
    rate = f"1 {payment.asset} = {rate_string(payment.rate)} ₫"
    facts = [
        (words["until"], f"{until} ({rate})"),
        (words["received"], f"{received} {payment.asset}"),
        (words["reference"], payment.id),
    ]
    if payment.status == PaymentStatus.AWAITING_RELEASE and payment.escrow_release_due_at:
        facts.insert(1, (words["release_due"], _moment(payment.escrow_release_due_at, timezone)))
    return "<dl>" + "".join(f"<dt>{escape(n)}</dt><dd>{escape(v)}</dd>" for n, v in facts) + "</dl>"


def _qr(link: str) -> str:
    picture = io.BytesIO()
    segno.make(link, error="m", micro=False).save(
        picture, kind="svg", xmldecl=False, svgns=False, omitsize=True, border=2, title="QR"
    )
    return picture.getvalue().decode()


def _dong(amount: int, lang: str) -> str:
    grouped = f"{amount:,}"
    return grouped.replace(",", ".") if lang == "vi" else grouped


def _moment(moment: datetime, timezone: str) -> str:
    return moment.astimezone(ZoneInfo(timezone)).strftime("%H:%M %d/%m/%Y")
