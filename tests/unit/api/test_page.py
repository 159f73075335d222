"""The payer's pages: right words, nothing unescaped, nothing their policy would block."""

import base64
import hashlib
import re
import string
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from api.chain.model import Transfer
from api.checkout import page
from api.checkout.assets import HEADERS
from api.checkout.proof import paying_wallet, text_to_sign
from api.checkout.view import Order
from api.checkout.words import WORDS, grouped, language
from api.contract import USDC_MINT, USDT_MINT, PaymentException, PaymentStatus
from api.merchants.model import Merchant
from api.payments.model import Payment

NOW = datetime(2026, 1, 31, 2, 0, tzinfo=UTC)
LATER = NOW + timedelta(minutes=15)
SITE = "https://pay.example.com"
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
    expires_at=LATER,
    status_at=NOW,
    completed_at=None,
)
SHOP = Merchant(
    id=PAYMENT.merchant_id,
    name="Phở",
    trade="restaurant",
    timezone="Asia/Ho_Chi_Minh",
    country="VN",
    fee_bps=100,
    tolerance_bps=0,
    escrow_days=7,
    created_at=NOW,
    updated_at=NOW,
)
ESCROW = replace(PAYMENT, status="escrow_held", is_escrow=True, settled_minor=250_000)


def transfer(
    wallet: str, amount_minor: int, *, slot: int = 1, mint: str = USDC_MINT, **more: Any
) -> Transfer:
    values = {"commitment": "finalized", "block_time": NOW, **more}
    return Transfer(
        signature=f"{wallet}{slot}",
        token_account="a",
        payment_id=PAYMENT.id,
        payer_address=wallet,
        mint=mint,
        amount_minor=amount_minor,
        slot=slot,
        recorded_at=NOW,
        **values,
    )


def order(payment: Payment = PAYMENT, *transfers: Transfer, **shop: Any) -> Order:
    return Order(payment, replace(SHOP, **shop), NOW, transfers)


def render(payment: Payment = PAYMENT, *transfers: Transfer, lang: str = "vi", **how: Any) -> str:
    settings = {"public_url": SITE, "demo": False, "live_token": None, **how}
    return page.render_order(order(payment, *transfers), lang=lang, **settings)


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
    assert language(accepted) == chosen
    assert language(accepted, "en") == "en"
    assert language(accepted, "fr") == chosen


def test_both_languages_say_the_same_things_of_the_same_values() -> None:
    def values(text: str) -> set[str]:
        return {name for _, name, _, _ in string.Formatter().parse(text) if name}

    vietnamese, english = WORDS["vi"], WORDS["en"]
    assert vietnamese.keys() == english.keys()
    for key, text in vietnamese.items():
        assert values(text) == values(english[key]), key


def test_numbers_are_written_as_the_language_does() -> None:
    assert grouped(Decimal("26150.50000000"), "vi") == "26.150,5"
    assert grouped(Decimal("26150.50000000"), "en") == "26,150.5"
    assert grouped(Decimal(1000), "vi") == "1.000"


def test_a_payer_sees_what_to_pay() -> None:
    html = render()
    for part in ("9.560230", "USDC", "250.000 ₫", "<svg", "solana:mvines", "09:15 31/01/2026"):
        assert part in html
    assert "1 USDC = 26.150 ₫" in html
    assert '<noscript><meta http-equiv="refresh" content="3"></noscript>' in html
    assert "/demo-pay?" not in html
    assert "/demo-pay?" in render(demo=True)
    assert "250,000 ₫" in render(lang="en")
    # Codes of both kinds and links into wallets take an https address.
    assert html.count('<div class="qr') == 2
    assert "phantom.app" in html
    local = render(public_url="http://127.0.0.1:8000")
    assert local.count('<div class="qr') == 1
    assert "phantom.app" not in local


def test_the_script_is_told_what_it_needs_and_nothing_else_changes_with_time() -> None:
    html = render(live_token="1.a-_")
    assert f'data-live="/api/v1/payments/{PAYMENT.id}" data-token="?token=1.a-_"' in html
    assert f'data-ends="{int(LATER.timestamp()) * 1000}"' in html
    later = page.render_order(
        replace(order(), read_at=NOW + timedelta(seconds=9)),
        lang="vi",
        public_url=SITE,
        demo=False,
        live_token="2.b",
    )
    start = '<section id="sum"'
    assert html.partition(start)[2] == later.partition(start)[2] != ""


def test_what_people_wrote_is_escaped() -> None:
    evil = '"><script>alert("1")</script>'
    payment = replace(
        ESCROW, description=evil, order_id=evil, payer_address=evil, status="escrow_held"
    )
    found = order(payment, transfer("w", 9_560_230), name=evil)
    pages = [
        page.render_order(found, lang="vi", public_url=SITE, demo=True, live_token=evil),
        page.render_receipt(found, lang="vi"),
        page.render_act(
            found, "dispute", lang="vi", code="1800000000.x", public_url=SITE, demo=True
        ),
        page.render_order(
            order(replace(PAYMENT, description=evil), name=evil),
            lang="en",
            public_url=SITE,
            demo=True,
        ),
    ]
    for html in pages:
        assert "<script>alert" not in html
        assert html.count("<script>") == 1


def test_the_policy_allows_what_the_pages_carry_and_nothing_else() -> None:
    policy = HEADERS["Content-Security-Policy"]
    found = order(ESCROW, transfer("w", 9_560_230))
    act = page.render_act(
        found, "release", lang="vi", code="1800000000.x", public_url=SITE, demo=False
    )
    for html in (render(), page.render_receipt(found, lang="en"), act):
        for kind in ("style", "script"):
            (text,) = re.findall(f"<{kind}>(.*?)</{kind}>", html, flags=re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in policy
        assert " style=" not in html
        assert not re.search(r"\son\w+=", html)
        assert not re.search(r'(src|action)="https?:', html)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize("status", PaymentStatus)
@pytest.mark.parametrize("lang", ["vi", "en"])
def test_every_status_has_its_page(status: PaymentStatus, lang: str) -> None:
    html = render(replace(PAYMENT, status=status), lang=lang)
    assert ('<div class="qr' in html) == (status in {"created", "pending"})
    assert f'data-status="{status}"' in html
    final = status in {"expired", "failed", "resolved"}
    assert ('http-equiv="refresh"' in html) != final
    assert (f"3;url=/order/{PAYMENT.id}/success" in html) == (status == "completed")


def test_past_its_end_a_payment_asks_for_no_money() -> None:
    over = replace(order(), read_at=LATER)
    html = page.render_order(over, lang="en", public_url=SITE, demo=True)
    assert '<div class="qr' not in html
    assert "/demo-pay?" not in html
    assert "send nothing to this code" in html
    # What was sent in the last second may still be seen.
    assert 'http-equiv="refresh"' in html


@pytest.mark.parametrize("exception", PaymentException)
@pytest.mark.parametrize("lang", ["vi", "en"])
@pytest.mark.parametrize("status", ["pending", "expired", "completed"])
def test_every_exception_tells_the_payer_what_to_do(
    exception: PaymentException, lang: str, status: str
) -> None:
    payment = replace(PAYMENT, status=status, exception=exception, received_minor=5_000_000)
    assert 'class="note"' in render(payment, lang=lang)


def test_who_paid_too_little_is_asked_for_exactly_the_rest() -> None:
    payment = replace(PAYMENT, exception="underpaid", received_minor=5_000_000)
    html = render(payment, lang="en")
    assert "4.560230 USDC is missing" in html
    assert "amount=4.560230&" in html.replace("&amp;", "&")
    over = render(replace(payment, status="expired"), lang="en")
    assert "Only 5.000000 USDC arrived" in over
    assert "4.560230" not in over
    assert "To pay" not in over


def test_who_paid_too_much_is_told_how_much() -> None:
    payment = replace(
        PAYMENT,
        status="completed",
        exception="overpaid",
        received_minor=11_060_230,
        settled_minor=250_000,
    )
    assert "1.500000 USDC too much" in render(payment, lang="en")
    assert "1.500000 USDC too much" in page.render_receipt(order(payment), lang="en")


def test_how_an_exception_ended_is_said() -> None:
    late = replace(PAYMENT, status="expired", exception="late")
    assert "after the end" in render(late, lang="en")
    assert "sent back" in render(replace(late, exception_outcome="refunded"), lang="en")
    accepted = replace(late, status="completed", exception_outcome="accepted")
    assert "after the end" not in render(accepted, lang="en")


def test_steps_lead_from_waiting_to_paid() -> None:
    def steps(payment: Payment) -> str:
        return " ".join(f"{name}:{state}" for name, state in order(payment).steps)

    assert steps(PAYMENT) == "waiting:now seen:next final:next paid:next"
    confirming = replace(PAYMENT, status="confirming")
    assert steps(confirming) == "waiting:done seen:done final:now paid:next"
    assert "now" not in steps(replace(PAYMENT, status="completed"))
    assert steps(ESCROW).endswith("held:done delivered:now released:next")
    assert steps(replace(PAYMENT, status="expired")) == ""


# Escrow.


@pytest.mark.parametrize("status", ["escrow_held", "awaiting_release"])
def test_the_payer_may_act_while_the_money_is_held(status: str) -> None:
    payment = replace(ESCROW, status=status)
    html = render(payment, transfer("wallet", 9_560_230), lang="en")
    for purpose in ("release", "dispute"):
        assert f'href="/order/{payment.id}/{purpose}?lang=en"' in html
    # Who paid from an exchange is told whom to ask instead.
    assert "ask Phở" in html
    assert "data-action" not in render(payment, lang="en")


@pytest.mark.parametrize(
    "status", ["created", "pending", "confirming", "completed", "disputed", "resolved", "expired"]
)
def test_there_is_nothing_to_do_before_and_after(status: str) -> None:
    assert order(replace(ESCROW, status=status)).actions == ()


def test_the_day_of_release_is_said() -> None:
    payment = replace(ESCROW, status="awaiting_release", escrow_release_due_at=NOW)
    html = render(payment, lang="en")
    assert "Goes to the shop by itself" in html
    assert "09:00 31/01/2026" in html


def test_a_receipt_says_what_was_paid_to_whom_and_by_which_chain_transactions() -> None:
    payment = replace(
        ESCROW,
        status="completed",
        received_minor=9_560_230,
        payer_address="wallet",
        escrow_released_at=NOW + timedelta(days=1),
        order_id="1042",
    )
    paid = (transfer("one", 5_000_000, slot=1), transfer("two", 4_560_230, slot=2))
    gone = transfer("gone", 1, slot=3, commitment="dropped")
    html = page.render_receipt(order(payment, *paid, gone), lang="en")
    for part in ("Phở", "250,000 ₫", "9.560230 USDC", "26,150 ₫", "one1", "two2", "1042"):
        assert part in html
    assert "09:00 31/01/2026 (Asia/Ho_Chi_Minh)" in html
    assert "09:00 01/02/2026" in html
    assert payment.id in html
    assert "gone3" not in html


@pytest.mark.parametrize(
    ("transfers", "wallet"),
    [
        ([], None),
        ([("a", 9_560_230, 1)], "a"),
        ([("a", 1, 1), ("b", 9_560_229, 2)], "b"),
        ([("b", 9_560_229, 2), ("a", 1, 1)], "b"),
        ([("a", 9_560_230, 1), ("b", 90_000_000, 2)], "a"),
        ([("a", 4_780_115, 1), ("b", 4_780_115, 2)], None),
        ([("a", 4_780_116, 1), ("b", 90_000_000, 2)], "a"),
        ([("a", 2_500_000, 1), ("b", 90_000_000, 2)], "b"),
        ([("a", 2_500_000, 1), ("b", 1_000_000, 2), ("a", 6_060_230, 3)], "a"),
    ],
)
def test_the_payer_is_the_wallet_that_paid_more_than_half(
    transfers: list[tuple[str, int, int]], wallet: str | None
) -> None:
    came = [transfer(payer, amount, slot=slot) for payer, amount, slot in transfers]
    assert paying_wallet(order(ESCROW, *came)) == wallet
    other = [transfer("other", 90_000_000, slot=0, mint=USDT_MINT)]
    dropped = [transfer("dropped", 90_000_000, slot=0, commitment="dropped")]
    assert paying_wallet(order(ESCROW, *other, *dropped, *came)) == wallet


def test_a_name_cannot_make_the_text_read_otherwise() -> None:
    found = order(ESCROW, transfer("w", 9_560_230), name="Phở\u202e\u2028Purpose: x\u200b")
    text = text_to_sign(found, "release", code="1800000000.x", site=SITE, lang="en")
    assert "Shop: PhởPurpose: x\n" in text
    assert text.count("\n") == text_to_sign(
        order(ESCROW, transfer("w", 9_560_230)),
        "release",
        code="1800000000.x",
        site=SITE,
        lang="en",
    ).count("\n")
    assert len(text.encode()) < 1212, "longer than hardware wallets sign"


@pytest.mark.parametrize("code", ["not_found", "not_permitted", "conflict", "internal_error"])
def test_a_refusal_has_its_page(code: str) -> None:
    html = page.render_refusal(code, lang="en", payment_id=None)
    assert "That did not work" in html
    assert "/order/" not in html
