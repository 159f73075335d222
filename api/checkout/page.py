"""The payer's page as one piece of HTML: no script, nothing fetched from elsewhere.

It refreshes itself while something can still change, follows the reader's language (Vietnamese or
English) and theme, and is allowed by its content security policy to do nothing else.
"""

import base64
import hashlib
import io
from datetime import datetime
from html import escape
from typing import Final
from zoneinfo import ZoneInfo

import segno

from api.contract import PaymentStatus, is_final
from api.payments.model import Payment, link_of
from api.rates.model import decimal_string, rate_string

_REFRESH_S: Final = 3

WORDS: Final[dict[str, dict[str, str]]] = {
    "vi": {
        "title": "Thanh toán cho {name}",
        "pay": "Quét mã bằng ví Solana, hoặc",
        "open": "mở trong ví",
        "until": "Tỷ giá được giữ đến",
        "received": "Đã nhận",
        "reference": "Mã thanh toán",
        "demo": "Trả thử bằng ví demo",
        "created": "Chờ thanh toán",
        "pending": "Chờ thanh toán",
        "confirming": "Đã thấy giao dịch, đang chờ mạng xác nhận",
        "completed": "Đã thanh toán. Cảm ơn bạn!",
        "expired": "Đã hết hạn. Đừng gửi tiền cho mã này nữa.",
        "failed": "Thanh toán không thành công",
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
        "created": "Waiting for payment",
        "pending": "Waiting for payment",
        "confirming": "Transfer seen, waiting for the network to finalise it",
        "completed": "Paid. Thank you!",
        "expired": "Expired. Please send nothing to this code any more.",
        "failed": "The payment failed",
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


def render(payment: Payment, *, merchant_name: str, timezone: str, lang: str, demo: bool) -> str:
    """Return the page of a payment in a language; `demo` adds the button of the demo wallet."""
    words = WORDS[lang]
    status = payment.status
    moves = not is_final("payment", status)
    refresh = f'<meta http-equiv="refresh" content="{_REFRESH_S}">' if moves else ""
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
        f"{_facts(payment, words, timezone)}"
        "</main></body></html>"
    )


def _note(payment: Payment, words: dict[str, str]) -> str:
    if payment.exception is None:
        return ""
    due = max(payment.asset_amount_minor - payment.received_minor, 0)
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
    facts = (
        (words["until"], f"{until} ({rate})"),
        (words["received"], f"{received} {payment.asset}"),
        (words["reference"], payment.id),
    )
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
