"""The payer's page: right words, nothing unescaped, nothing its policy would block."""

import base64
import hashlib
import re
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest

from api.checkout import page
from api.checkout.links import Purpose
from api.contract import USDC_MINT, PaymentException, PaymentStatus
from api.payments.model import Payment

NOW = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)
PAYMENT = Payment(
    id="pay_01jz8w5k6h7m9n0p2q3r4s5t6v",
    merchant_id="mer_01jz8w5k6h7m9n0p2q3r4s5t6v",
    mode="test",
    status="pending",
    exception=None,
    amount_minor=250_000,
    currency="VND",
    asset="USDC",
    asset_amount_minor=9_560_230,
    received_minor=0,
    rate=Decimal("26150.00000000"),
    rate_source="file",
    chain="solana",
    recipient="mvines9iiHiQTysrwkJjGf2gb9Ex9jXJX8ns3qwf2kN",
    mint=USDC_MINT,
    reference="82ZJ7nbGpixjeDCmEhUcmwXYfvurzAgGdtSMuHnUgyny",
    payer_address=None,
    payer_country=None,
    description=None,
    order_id=None,
    metadata={},
    fee_minor=0,
    created_at=NOW,
    expires_at=NOW,
    status_at=NOW,
    completed_at=None,
)


def render(payment: Payment, *, name: str = "Phở", lang: str = "vi", demo: bool = False) -> str:
    return page.render(
        payment, merchant_name=name, timezone="Asia/Ho_Chi_Minh", lang=lang, demo=demo
    )


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("", "vi"),
        ("vi-VN,vi;q=0.9,en;q=0.8", "vi"),
        ("en-US,en;q=0.9", "en"),
        ("fr,en;q=0.4,vi;q=0.5", "vi"),
        ("de-DE", "vi"),
        ("en;q=abc", "en"),
    ],
)
def test_the_readers_language(accepted: str, chosen: str) -> None:
    assert page.language(accepted) == chosen


def test_a_payer_sees_what_to_pay() -> None:
    html = render(PAYMENT)
    for part in ("9.560230 USDC", "250.000 ₫", "<svg", "solana:mvines", "09:00 31/01/2026"):
        assert part in html
    assert "1 USDC = 26150 ₫" in html
    assert 'http-equiv="refresh"' in html
    assert "demo-pay" not in html
    assert "demo-pay" in render(PAYMENT, demo=True)
    assert "250,000 ₫" in render(PAYMENT, lang="en")


def test_names_are_escaped() -> None:
    html = render(PAYMENT, name='<script>alert("1")</script>')
    assert "<script" not in html


def test_the_policy_allows_the_style_it_carries_and_no_script() -> None:
    html = render(PAYMENT)
    (style,) = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = page.HEADERS["Content-Security-Policy"]
    assert f"'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "script" not in html
    assert " style=" not in html


@pytest.mark.parametrize("status", PaymentStatus)
@pytest.mark.parametrize("lang", ["vi", "en"])
def test_every_status_has_its_page(status: PaymentStatus, lang: str) -> None:
    html = render(replace(PAYMENT, status=status), lang=lang)
    payable = status in {"created", "pending"}
    assert ("<svg" in html) == payable
    final = status in {"completed", "expired", "failed", "resolved"}
    assert ('http-equiv="refresh"' in html) != final


@pytest.mark.parametrize("exception", PaymentException)
@pytest.mark.parametrize("lang", ["vi", "en"])
def test_every_exception_tells_the_payer_what_to_do(exception: PaymentException, lang: str) -> None:
    html = render(replace(PAYMENT, exception=exception, received_minor=5_000_000), lang=lang)
    assert 'class="note"' in html
    assert ("4.560230 USDC" in html) == (exception == "underpaid")


def test_both_languages_say_the_same_things() -> None:
    assert page.WORDS["vi"].keys() == page.WORDS["en"].keys()


# Escrow.

ESCROW = replace(PAYMENT, status="escrow_held", is_escrow=True, settled_minor=250_000)


@pytest.mark.parametrize("status", ["escrow_held", "awaiting_release"])
def test_the_payer_may_act_while_the_money_is_held(status: str) -> None:
    payment = replace(ESCROW, status=status)
    assert page.actions(payment) == ("release", "dispute")
    shown = page.render(
        payment,
        merchant_name="Phở",
        timezone="Asia/Ho_Chi_Minh",
        lang="en",
        demo=False,
        tokens={"release": 'a"b', "dispute": "c"},
    )
    assert f'href="/order/{payment.id}/release?token=a&quot;b"' in shown
    assert f'href="/order/{payment.id}/dispute?token=c"' in shown


@pytest.mark.parametrize(
    "status", ["created", "pending", "confirming", "completed", "disputed", "resolved", "expired"]
)
def test_there_is_nothing_to_do_before_and_after(status: str) -> None:
    assert page.actions(replace(ESCROW, status=status)) == ()


@pytest.mark.parametrize("purpose", ["release", "dispute"])
@pytest.mark.parametrize("lang", ["vi", "en"])
def test_a_question_acts_by_its_button_alone(purpose: Purpose, lang: str) -> None:
    shown = page.render_question(ESCROW, purpose, 'x"y', merchant_name="<b>Phở</b>", lang=lang)
    assert f'<form method="post" action="/order/{ESCROW.id}/{purpose}">' in shown
    assert 'name="token" value="x&quot;y"' in shown
    assert "<b>" not in shown
    assert "refresh" not in shown
    assert ("<textarea" in shown) == (purpose == "dispute")


def test_the_day_of_release_is_said() -> None:
    payment = replace(ESCROW, status="awaiting_release", escrow_release_due_at=NOW)
    assert "Goes to the shop by itself on" in render(payment, lang="en")
    assert "09:00 31/01/2026" in render(payment, lang="en")


def test_how_an_exception_ended_is_said() -> None:
    late = replace(PAYMENT, status="expired", exception="late")
    assert "after the end" in render(late, lang="en")
    assert "sent back" in render(replace(late, exception_outcome="refunded"), lang="en")
    accepted = replace(late, status="completed", exception_outcome="accepted")
    assert "after the end" not in render(accepted, lang="en")


def test_nobody_waits_before_an_expired_page() -> None:
    assert "refresh" not in render(replace(PAYMENT, status="expired"))
    assert 'http-equiv="refresh" content="3"' in render(PAYMENT)
    assert 'http-equiv="refresh" content="60"' in render(ESCROW)
