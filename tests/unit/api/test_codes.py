"""QR codes and the links that open wallets, of a payment as it stands."""

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree as ET

import pytest
import segno

from api.checkout.codes import LONGEST_IN_A_CODE, code_link, qr_svg, wallet_links
from api.contract import USDC_MINT
from api.payments.model import Payment, link_of, request_link_of, transfer_of

PUBLIC_URL = "https://pay.example.com"
SVG = "{http://www.w3.org/2000/svg}"
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


def link(payment: Payment, kind: str = "transfer", public_url: str = PUBLIC_URL) -> str | None:
    return code_link(payment, kind, label="Phở Thìn", public_url=public_url)  # type: ignore[arg-type]


def test_both_links_of_a_payment() -> None:
    assert link(PAYMENT) == link_of(PAYMENT, "Phở Thìn")
    assert link(PAYMENT, "request") == f"solana:{PUBLIC_URL}/order/{PAYMENT.id}/pay"


def test_without_https_there_is_no_request_and_no_wallets_browser() -> None:
    assert link(PAYMENT, "request", "http://127.0.0.1:8000") is None
    assert request_link_of(PAYMENT, "http://127.0.0.1:8000") is None
    assert wallet_links(PAYMENT, "http://127.0.0.1:8000") == []


def test_a_code_drops_a_long_text_before_phones_cannot_read_it() -> None:
    wordy = replace(PAYMENT, description="cà phê sữa đá " * 30)
    made = link(wordy)
    assert made is not None
    assert len(made) <= LONGEST_IN_A_CODE < len(link_of(wordy, "Phở Thìn"))
    assert "message" not in made
    assert int(segno.make(made, error="m", micro=False).version) <= 17


@pytest.mark.parametrize(
    ("received", "asked"),
    [(0, 9_560_230), (1, 9_560_229), (9_560_230, 9_560_230), (9_560_231, 9_560_230)],
)
def test_what_is_asked_for_is_what_is_still_due(received: int, asked: int) -> None:
    payment = replace(PAYMENT, asset_amount_minor=9_560_230, received_minor=received)
    assert transfer_of(payment).amount_minor == asked
    amount = parse_qs(link_of(payment, "Phở").partition("?")[2])["amount"]
    assert amount == [f"{asked // 10**6}.{asked % 10**6:06d}"]


def test_a_code_is_a_picture_with_an_alternative_text() -> None:
    title = 'Phở <"Thìn"> & bạn'
    root = ET.fromstring(qr_svg("solana:x", title=title, standalone=True))  # noqa: S314
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    found = root.find(f"{SVG}title")
    assert found is not None
    assert found.text == title
    assert "xmlns" not in qr_svg("solana:x", title=title)
    # Nothing that a strict content security policy would have to allow.
    assert {element.tag.removeprefix(SVG) for element in root.iter()} == {"svg", "title", "path"}
    assert "style" not in qr_svg("solana:x", title=title)


def test_wallet_links_carry_the_page_encoded() -> None:
    links = dict(wallet_links(PAYMENT, PUBLIC_URL))
    assert list(links) == ["Phantom", "Solflare"]
    for base, made in zip(
        ("https://phantom.app/ul/browse/", "https://solflare.com/ul/v1/browse/"),
        links.values(),
        strict=True,
    ):
        assert made.startswith(base)
        parts = urlsplit(made)
        assert unquote(parts.path.rpartition("/")[2]) == f"{PUBLIC_URL}/order/{PAYMENT.id}"
        assert parse_qs(parts.query) == {"ref": [PUBLIC_URL]}
