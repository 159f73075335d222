"""Every state of the payer's pages in a real browser: both languages, both themes, both sizes.

Payments are brought into their states by settling receipts as the watcher does; the pages are
served by the real API. With GIOVANG_TEST_SCREENSHOTS a picture of each is kept in that folder.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from solders.keypair import Keypair

from api.contract import Asset
from tests.fixtures.api import ApiServer, Shop, show
from tests.fixtures.browser import (
    DESKTOP,
    PHONE,
    chromium,
    complaints,
    faults,
    keyboard_faults,
)
from tests.fixtures.desk import book, end, fake_signature, make_desk_api, minor, pay, receipt
from tests.fixtures.services import BrokerServer, DatabaseServer

PAYER = Keypair()
BUDGET_BYTES = 20 * 1024
PICTURES = os.environ.get("GIOVANG_TEST_SCREENSHOTS")
# Each language with each theme, each theme in each size; with pictures, all of them.
LOOKS = [
    (lang, theme, size)
    for lang in ("vi", "en")
    for theme in ("light", "dark")
    for size in ("phone", "desktop")
    if PICTURES or (lang == "vi") == ((theme == "light") == (size == "phone"))
]


@pytest.fixture(scope="module")
def api(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path_factory: Any
) -> Iterator[ApiServer]:
    server = make_desk_api(
        tmp_path_factory.mktemp("api"),
        ledger_database,
        redis_server,
        # As on a server: wallets' own browsers and transaction requests need https.
        public_url="https://pay.example.com",
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser(orders: dict[str, str]) -> Iterator[Browser]:  # noqa: ARG001 - made before it runs
    # The browser's client runs an event loop in this thread, and receipts are settled by another.
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def orders(api: ApiServer, ledger_database: DatabaseServer) -> dict[str, str]:
    """Return the address of a page for each state worth seeing."""
    shop = api.shop(name="Cà phê Sương Sớm")
    made = {name: make(api, shop, ledger_database) for name, make in STATES.items()}
    paths = {name: f"/order/{payment['id']}" for name, payment in made.items()}
    for purpose in ("release", "dispute"):
        paths[purpose] = f"{paths['escrow_held']}/{purpose}"
    for state in ("completed", "escrow_held", "overpaid"):
        paths[f"receipt_{state}"] = f"{paths[state]}/success"
    return paths


Make = Callable[[ApiServer, Shop, DatabaseServer], dict[str, Any]]


def _order(shop: Shop, **more: Any) -> dict[str, Any]:
    return shop.create(
        "250000", description="Hai ly cà phê muối, một bánh mì", order_id="1042", **more
    )


def _waiting(_api: ApiServer, shop: Shop, _database: DatabaseServer) -> dict[str, Any]:
    return _order(shop)


def _confirming(api: ApiServer, shop: Shop, database: DatabaseServer) -> dict[str, Any]:
    payment = _order(shop)
    show(api, database, payment, fake_signature())
    return payment


def _underpaid(api: ApiServer, shop: Shop, database: DatabaseServer) -> dict[str, Any]:
    payment = _order(shop)
    pay(api, database, payment, 5_000_000)
    return payment


def _underpaid_expired(api: ApiServer, shop: Shop, database: DatabaseServer) -> dict[str, Any]:
    payment = _underpaid(api, shop, database)
    end(database, payment)
    return payment


def _wrong_asset(api: ApiServer, shop: Shop, database: DatabaseServer) -> dict[str, Any]:
    payment = _order(shop)
    book(database, receipt(api, 5_000_000, payment, asset=Asset.USDT))
    return payment


def _expired(_api: ApiServer, shop: Shop, database: DatabaseServer) -> dict[str, Any]:
    payment = _order(shop)
    end(database, payment)
    return payment


def _late(api: ApiServer, shop: Shop, database: DatabaseServer) -> dict[str, Any]:
    payment = _order(shop)
    pay(api, database, payment, late=True)
    return payment


def _completed(api: ApiServer, shop: Shop, database: DatabaseServer) -> dict[str, Any]:
    payment = _order(shop)
    pay(api, database, payment, payer=str(PAYER.pubkey()))
    return payment


def _overpaid(api: ApiServer, shop: Shop, database: DatabaseServer) -> dict[str, Any]:
    payment = _order(shop)
    pay(api, database, payment, minor(payment["asset_amount"]) + 1_500_000)
    return payment


def _escrow_held(api: ApiServer, shop: Shop, database: DatabaseServer) -> dict[str, Any]:
    payment = _order(shop, escrow=True)
    pay(api, database, payment, payer=str(PAYER.pubkey()))
    return payment


def _awaiting_release(api: ApiServer, shop: Shop, database: DatabaseServer) -> dict[str, Any]:
    payment = _escrow_held(api, shop, database)
    assert shop.post(f"/api/v1/payments/{payment['id']}/deliver", {}).status_code == 200
    return payment


def _disputed(api: ApiServer, shop: Shop, database: DatabaseServer) -> dict[str, Any]:
    payment = _escrow_held(api, shop, database)
    body = {"reason": "khách đổi ý"}
    assert shop.post(f"/api/v1/payments/{payment['id']}/dispute", body).status_code == 200
    return payment


def _missing(_api: ApiServer, _shop: Shop, _database: DatabaseServer) -> dict[str, Any]:
    return {"id": "pay_" + "0" * 26}


STATES: dict[str, Make] = {
    "waiting": _waiting,
    "confirming": _confirming,
    "underpaid": _underpaid,
    "underpaid_expired": _underpaid_expired,
    "wrong_asset": _wrong_asset,
    "expired": _expired,
    "late": _late,
    "completed": _completed,
    "overpaid": _overpaid,
    "escrow_held": _escrow_held,
    "awaiting_release": _awaiting_release,
    "disputed": _disputed,
    "missing": _missing,
}
PAGES = [
    *STATES,
    "release",
    "dispute",
    "receipt_completed",
    "receipt_escrow_held",
    "receipt_overpaid",
]


def opened(browser: Browser, api: ApiServer, path: str, **how: Any) -> Page:
    page = browser.new_context(base_url=api.base_url, reduced_motion="reduce", **how).new_page()
    page.goto(path)
    return page


@pytest.mark.parametrize("how", LOOKS, ids="-".join)
def test_everybody_can_use_every_page(
    browser: Browser, api: ApiServer, orders: dict[str, str], how: tuple[str, Any, str]
) -> None:
    lang, theme, size = how
    context = browser.new_context(
        base_url=api.base_url,
        locale={"vi": "vi-VN", "en": "en-GB"}[lang],
        color_scheme=theme,
        reduced_motion="reduce",
        viewport={"phone": PHONE, "desktop": DESKTOP}[size],  # type: ignore[arg-type]
    )
    wrong: list[str] = []
    for name in PAGES:
        page = context.new_page()
        said = complaints(page)
        answer = page.goto(orders[name])
        assert answer is not None
        found = faults(page)
        if PICTURES:
            picture = Path(PICTURES) / f"checkout-{name}-{lang}-{theme}-{size}.png"
            page.screenshot(path=picture, full_page=True)
        if name in {"waiting", "escrow_held", "dispute", "receipt_completed"}:
            found += keyboard_faults(page)
        if name == "missing":
            said = [one for one in said if "404" not in one]
        assert page.locator("html").get_attribute("lang") == lang
        wrong += [f"{name}: {fault}" for fault in found + said]
        page.close()
    context.close()
    assert wrong == []


def test_a_page_is_small_without_its_code(browser: Browser, api: ApiServer, orders: Any) -> None:
    page = opened(browser, api, orders["waiting"])
    whole = len(page.content().encode())
    codes = sum(
        len(code.encode())
        for code in page.locator(".qr svg").evaluate_all("all => all.map((one) => one.outerHTML)")
    )
    assert whole - codes < BUDGET_BYTES
    page.context.close()


def test_the_paying_wallet_signs_in_the_page(
    browser: Browser, api: ApiServer, orders: dict[str, str]
) -> None:
    page = opened(browser, api, orders["escrow_held"])
    # A wallet by the wallet standard with a real key; a browser's extension cannot run here.
    page.context.expose_function(
        "signHere", lambda text: list(bytes(PAYER.sign_message(text.encode())))
    )
    page.context.add_init_script(WALLET.replace("ADDRESS", str(PAYER.pubkey())))
    page.goto(f"{orders['awaiting_release']}/release?lang=en")
    page.get_by_role("button", name="Sign with wallet").click()
    expect(page.locator("#state[data-status=completed]")).to_be_visible()
    page.context.close()


def test_another_wallet_is_told_so_and_a_page_without_wallet_too(
    browser: Browser, api: ApiServer, orders: dict[str, str]
) -> None:
    path = f"{orders['escrow_held']}/release?lang=en"
    page = opened(browser, api, path)
    page.get_by_role("button", name="Sign with wallet").click()
    expect(page.get_by_role("alert")).to_contain_text("no Solana wallet")
    page.context.add_init_script(WALLET.replace("ADDRESS", str(Keypair().pubkey())))
    page.reload()
    page.get_by_role("button", name="Sign with wallet").click()
    expect(page.get_by_role("alert")).to_contain_text("not the wallet that paid")
    page.context.close()


def test_without_a_script_a_signature_is_pasted(
    browser: Browser, api: ApiServer, orders: dict[str, str]
) -> None:
    page = opened(
        browser, api, f"{orders['escrow_held']}/dispute?lang=en", java_script_enabled=False
    )
    text = page.locator("#text").text_content()
    assert text is not None
    page.get_by_label("What is wrong?").fill("the cups\nwere empty")
    page.locator("summary").click()
    page.get_by_label("Signature (base58)").fill(str(PAYER.sign_message(text.encode())))
    page.get_by_role("button", name="Keep the money back").click()
    expect(page.locator("#state")).to_have_attribute("data-status", "disputed")
    page.context.close()


WALLET = """
const account = {address: 'ADDRESS', publicKey: new Uint8Array(32), chains: [], features: []};
const wallet = {version: '1.0.0', name: 'Test', icon: '', chains: [], accounts: [], features: {
  'standard:connect': {version: '1.0.0', connect: async () => { wallet.accounts = [account]; }},
  'solana:signMessage': {version: '1.1.0', signMessage: async (...asked) => Promise.all(
    asked.map(async ({message}) => ({signedMessage: message, signature: new Uint8Array(
      await signHere(new TextDecoder().decode(message)))})))},
}};
const callback = ({register}) => register(wallet);
addEventListener('wallet-standard:app-ready', (event) => callback(event.detail));
dispatchEvent(new CustomEvent('wallet-standard:register-wallet', {detail: callback}));
"""
