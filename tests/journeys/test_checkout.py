"""A payer's way through checkout, in a real browser against the whole stack.

The page is opened, paid by the demo's button, and followed to its receipt; once with its script,
over the live connection and without the document being loaded again, and once without any script.
"""

import json
import secrets
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, WebSocket, expect

from api.database import new_id
from tests.fixtures.browser import DESKTOP, PHONE, chromium, complaints
from tests.fixtures.services import Stack

# With the start of the stack.
pytestmark = pytest.mark.timeout(900)

PAID_MS = 90_000
# Notes, half a second after the payment is completed, what the page is like that goes on soon.
NOTE_THE_END = """
() => {
  window.sameDocument = true;
  new MutationObserver((_, observer) => {
    if (document.querySelector('#state')?.dataset.status !== 'completed') return;
    observer.disconnect();
    setTimeout(() => sessionStorage.setItem('end', JSON.stringify({
      sameDocument: window.sameDocument,
      navigations: performance.getEntriesByType('navigation').length,
      focus: document.activeElement.id,
    })), 500);
  }).observe(document.body, {attributes: true, childList: true, subtree: true});
}
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def shop(stack: Stack) -> Iterator[httpx.Client]:
    """A program of a new merchant, made as an operator makes one."""
    merchant_id = new_id("mer")
    base_url = stack.endpoints["api"]
    admin = {"Authorization": f"Bearer {stack.secrets['admin_key']}"}
    with httpx.Client(base_url=base_url, headers=admin, timeout=60) as client:
        path = f"/api/v1/merchants/{merchant_id}"
        made = client.put(path, json={"name": "Quán Journey", "trade": "coffee"})
        assert made.status_code == 200, made.text
        key = client.post(f"{path}/api-keys", json={"mode": "test"})
        assert key.status_code == 201, key.text
    bearer = {"Authorization": f"Bearer {key.json()['key']}"}
    with httpx.Client(base_url=base_url, headers=bearer, timeout=60) as client:
        yield client


def opened(browser: Browser, shop: httpx.Client, *, script: bool, escrow: bool = False) -> Page:
    """Return the payer's page of a new payment."""
    made = shop.post(
        "/api/v1/payments",
        json={"amount": "65000", "asset": "USDC", "escrow": escrow},
        headers={"Idempotency-Key": secrets.token_hex(8)},
    )
    assert made.status_code == 201, made.text
    context = browser.new_context(
        base_url=str(shop.base_url),
        locale="vi-VN",
        viewport=PHONE if script else DESKTOP,  # type: ignore[arg-type]
        java_script_enabled=script,
    )
    page = context.new_page()
    answer = page.goto(f"/order/{made.json()['id']}")
    assert answer is not None
    assert answer.status == 200
    return page


def pay(page: Page) -> None:
    page.get_by_role("button", name="Trả thử bằng ví demo").click()


def test_the_status_reaches_completed_without_a_reload_and_then_the_receipt(
    shop: httpx.Client, browser: Browser
) -> None:
    page = opened(browser, shop, script=True)
    said = complaints(page)
    frames: list[str] = []

    def heard(socket: WebSocket) -> None:
        socket.on("framereceived", lambda frame: frames.append(str(frame)))

    page.on("websocket", heard)
    # The connection is opened by the document that is watched, from its beginning.
    page.reload()
    page.evaluate(NOTE_THE_END)
    state = page.locator("#state")
    expect(state).to_have_attribute("data-status", "pending")
    expect(page.get_by_role("timer")).to_contain_text("còn ")
    page.get_by_role("link", name="Mở trong ví").focus()
    pay(page)
    page.wait_for_url("**/success?lang=vi", timeout=PAID_MS)
    # The button that had the focus is gone with the way to pay; the status has it now.
    assert json.loads(page.evaluate("sessionStorage.getItem('end')")) == {
        "sameDocument": True,
        "navigations": 1,
        "focus": "state",
    }
    expect(page.get_by_role("heading", level=1)).to_have_text("Đã thanh toán. Cảm ơn bạn!")
    expect(page.get_by_text("Chữ ký trên chuỗi")).to_be_visible()
    assert said == []
    told = ("payment.confirming", "payment.completed")
    assert any(kind in frame for frame in frames for kind in told), frames
    page.context.close()


def test_without_a_script_the_page_refreshes_to_the_receipt(
    shop: httpx.Client, browser: Browser
) -> None:
    page = opened(browser, shop, script=False)
    pay(page)
    page.wait_for_url("**/success?lang=vi", timeout=PAID_MS)
    expect(page.get_by_role("heading", level=1)).to_have_text("Đã thanh toán. Cảm ơn bạn!")
    expect(page.get_by_role("button")).to_have_count(0)
    page.context.close()


@pytest.mark.parametrize(("purpose", "status"), [("release", "completed"), ("dispute", "disputed")])
def test_the_payer_decides_by_the_wallet_that_paid(
    shop: httpx.Client, browser: Browser, purpose: str, status: str
) -> None:
    page = opened(browser, shop, script=True, escrow=True)
    address = page.url.partition("?")[0]
    pay(page)
    state = page.locator("#state")
    expect(state).to_have_attribute("data-status", "escrow_held", timeout=PAID_MS)
    # Who knows the address alone can do nothing with it.
    for known in ({}, {"code": "1"}, {"signature": "1" * 64}):
        assert httpx.post(f"{address}/{purpose}", data=known).status_code == 403
    page.locator(f"[data-action={purpose}]").click()
    if purpose == "dispute":
        page.get_by_label("Điều gì không đúng?").fill("vỏ hộp rỗng")
    expect(page.locator("#text")).to_contain_text("Việc ký không tốn phí")
    page.get_by_role("button", name="Ký bằng ví demo").click()
    expect(state).to_have_attribute("data-status", status, timeout=PAID_MS)
    page.context.close()
