"""Wallet to API: transaction requests and QR codes, as wallets ask for them and as others might."""

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import segno
from solana.rpc.async_api import AsyncClient
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.transaction import Transaction
from spl.token.constants import ASSOCIATED_TOKEN_PROGRAM_ID, TOKEN_PROGRAM_ID

from api.chain.solana_pay import memo_of, token_account
from api.chain.transfers import MEMO_PROGRAM_ID
from api.contract import USDC_MINT, USDT_MINT
from api.database import new_id
from api.payments import settlement
from tests.fixtures.api import (
    ApiServer,
    PayerWallet,
    Shop,
    as_the_watcher_does,
    make_api,
    receipt_for,
    settle,
    show,
    until,
)
from tests.fixtures.services import BrokerServer, DatabaseServer, LocalnetServer

NO_CHAIN = "http://127.0.0.1:9"
PUBLIC_URL = "https://pay.example.com"
ACCOUNT = str(Keypair().pubkey())
ENGLISH = {"Accept-Language": "en-GB, en;q=0.9"}


@pytest.fixture(scope="module")
def api(
    ledger_database: DatabaseServer,
    redis_server: BrokerServer,
    network: LocalnetServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ApiServer]:
    server = make_api(
        tmp_path_factory.mktemp("api"),
        ledger_database,
        redis_server.url,
        rpc_url=network.rpc_url,
        public_url=PUBLIC_URL,
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def alone(
    ledger_database: DatabaseServer,
    redis_server: BrokerServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ApiServer]:
    """An API without https and without a chain."""
    server = make_api(
        tmp_path_factory.mktemp("alone"), ledger_database, redis_server.url, rpc_url=NO_CHAIN
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture
def shop(api: ApiServer) -> Shop:
    return api.shop()


def ask(api: ApiServer, payment_id: str, account: Any = ACCOUNT, **more: Any) -> httpx.Response:
    return httpx.post(
        f"{api.base_url}/order/{payment_id}/pay",
        json={"account": account, **more},
        headers=ENGLISH,
        timeout=30,
    )


def made(answer: httpx.Response) -> Transaction:
    assert answer.status_code == 200, answer.text
    return Transaction.from_bytes(base64.b64decode(answer.json()["transaction"], validate=True))


def programs(transaction: Transaction) -> list[Pubkey]:
    message = transaction.message
    return [message.account_keys[one.program_id_index] for one in message.instructions]


def amount_of(transaction: Transaction) -> int:
    """Return the amount of the last instruction, a TransferChecked."""
    data = transaction.message.instructions[-1].data
    assert data[0] == 12
    return int.from_bytes(data[1:9], "little")


def refused(answer: httpx.Response, status: int, code: str, message: str) -> None:
    """Assert that an answer is both our problem+json and what a wallet understands."""
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["access-control-allow-origin"] == "*"
    assert message in answer.json()["message"]
    assert len(answer.json()["message"]) <= 80


def test_a_payment_shows_both_links(shop: Shop, alone: ApiServer) -> None:
    payment = shop.create()
    assert payment["pay_request_url"] == f"solana:{PUBLIC_URL}/order/{payment['id']}/pay"
    assert f"&memo={memo_of(payment['reference']).replace(':', '%3A')}" in payment["pay_url"]
    assert payment["id"] not in payment["pay_url"]
    # Wallets refuse http, so there is nothing to show.
    assert alone.shop().create()["pay_request_url"] is None


def test_who_asks_is_named_with_an_icon(api: ApiServer, shop: Shop) -> None:
    payment = shop.create()
    answer = httpx.get(f"{api.base_url}/order/{payment['id']}/pay")
    assert answer.json() == {"label": "Phở Thìn", "icon": f"{PUBLIC_URL}/checkout/icon.svg"}
    assert answer.headers["access-control-allow-origin"] == "*"
    assert answer.headers["cache-control"] == "no-store"
    # By asking, the payer has seen it.
    assert shop.payment(payment["id"])["status"] == "pending"
    icon = httpx.get(f"{api.base_url}/checkout/icon.svg")
    assert icon.headers["content-type"].startswith("image/svg+xml")
    assert b"<svg" in icon.content


def test_a_transaction_pays_exactly_what_is_due(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000")
    whole = made(ask(api, payment["id"]))
    assert amount_of(whole) == 9_560_230
    assert whole.message.account_keys[0] == Pubkey.from_string(ACCOUNT)
    assert [bytes(signature) for signature in whole.signatures] == [bytes(64)]
    assert Pubkey.from_string(payment["reference"]) in whole.message.account_keys
    assert bytes(whole.message.instructions[-2].data).decode() == memo_of(payment["reference"])
    part = replace(receipt_for(api, payment), amount_minor=9_000_001)
    as_the_watcher_does(ledger_database, lambda unit: settlement.settle(unit, part, grace_s=5))
    assert shop.payment(payment["id"])["exception"] == "underpaid"
    assert amount_of(made(ask(api, payment["id"]))) == 560_229
    assert "amount=0.560229&" in shop.payment(payment["id"])["pay_url"]


def test_our_token_account_is_opened_only_while_it_is_missing(
    api: ApiServer, shop: Shop, network: LocalnetServer
) -> None:
    payment = shop.create("26150", asset="USDT")
    payer = PayerWallet(network.rpc_url)
    account = str(payer.key.pubkey())
    pays = [MEMO_PROGRAM_ID, TOKEN_PROGRAM_ID]
    assert programs(made(ask(api, payment["id"], account))) == [ASSOCIATED_TOKEN_PROGRAM_ID, *pays]

    async def pay() -> None:
        await payer.fund(USDT_MINT)
        transaction = made(await asyncio.to_thread(ask, api, payment["id"], account))
        async with AsyncClient(network.rpc_url, http2=False) as rpc:
            transaction.sign([payer.key], transaction.message.recent_blockhash)
            sent = await rpc.send_raw_transaction(bytes(transaction))
            await rpc.confirm_transaction(sent.value, sleep_seconds=0.05)
            held = await rpc.get_token_account_balance(
                Pubkey.from_string(token_account(api.collection_wallet, USDT_MINT))
            )
            assert held.value.amount == payment["asset_amount"].replace(".", "")

    asyncio.run(pay())
    assert programs(made(ask(api, payment["id"], account))) == pays


@pytest.mark.parametrize("account", ["", "x", "0" * 44, ACCOUNT + "1", 7, None, "1" * 44])
def test_what_is_no_wallet_is_refused(api: ApiServer, shop: Shop, account: Any) -> None:
    answer = ask(api, shop.create()["id"], account)
    refused(answer, 422, "invalid_request", "wallet's address is not valid")
    assert answer.json()["errors"][0]["pointer"] == "/account"


def test_a_token_account_is_no_wallet(api: ApiServer, shop: Shop) -> None:
    owned = token_account(ACCOUNT, USDC_MINT)
    refused(ask(api, shop.create()["id"], owned), 422, "invalid_request", "not valid")


def test_what_a_later_version_of_the_protocol_adds_is_let_pass(api: ApiServer, shop: Shop) -> None:
    assert ask(api, shop.create()["id"], redirect="https://example.com").status_code == 200


def test_a_body_that_is_none_is_refused(api: ApiServer, shop: Shop) -> None:
    url = f"{api.base_url}/order/{shop.create()['id']}/pay"
    headers = {"Content-Type": "application/json", **ENGLISH}
    broken = httpx.post(url, content=b'{"account": ', headers=headers)
    refused(broken, 400, "malformed_request", "did not work")
    large = json.dumps({"account": "1" * 70_000})
    refused(httpx.post(url, content=large, headers=headers), 413, "body_too_large", "did not work")
    refused(httpx.post(url, headers=headers), 422, "invalid_request", "not valid")


def test_an_unknown_payment_is_refused(api: ApiServer) -> None:
    refused(ask(api, new_id("pay")), 404, "not_found", "no such payment")
    refused(ask(api, "pay_x"), 422, "invalid_request", "not valid")


def test_money_that_would_come_too_late_is_not_asked_for(api: ApiServer, shop: Shop) -> None:
    # No watcher runs here, so the payment is past its end and not yet expired.
    payment = shop.create(expires_in_s=10)
    assert ask(api, payment["id"]).status_code == 200
    end = time.monotonic() + 60
    while (answer := ask(api, payment["id"])).status_code == 200:
        assert time.monotonic() < end
        time.sleep(0.2)
    refused(answer, 409, "not_payable", "has expired")
    assert shop.payment(payment["id"])["status"] == "pending"
    assert qr(api, payment["id"]).status_code == 409


def test_a_payment_is_not_paid_twice(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    seen, paid = shop.create(), shop.create()
    show(api, ledger_database, seen, "5" * 87)
    settle(api, ledger_database, paid)
    refused(ask(api, seen["id"]), 409, "not_payable", "was seen")
    refused(ask(api, paid["id"]), 409, "not_payable", "has been paid")
    # Its page shows no code any more, and neither does the code's own address.
    assert qr(api, paid["id"]).json()["code"] == "not_payable"
    assert httpx.get(f"{api.base_url}/order/{paid['id']}/pay").status_code == 200


def test_wallets_are_told_in_their_language(api: ApiServer) -> None:
    url = f"{api.base_url}/order/{new_id('pay')}/pay"
    told = {
        lang: httpx.get(url, headers={"Accept-Language": lang}).json()["message"]
        for lang in ("vi", "en", "fr")
    }
    assert told == {
        "vi": "Không có thanh toán này.",
        "en": "There is no such payment.",
        "fr": "Không có thanh toán này.",
    }


def test_web_pages_of_any_origin_may_ask_here_and_nowhere_else(api: ApiServer, shop: Shop) -> None:
    payment_id = shop.create()["id"]
    origin = {"Origin": "https://wallet.example"}
    preflight = httpx.options(
        f"{api.base_url}/order/{payment_id}/pay",
        headers={**origin, "Access-Control-Request-Method": "POST"},
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "*"
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert "content-type" in preflight.headers["access-control-allow-headers"].lower()
    for path in (f"/order/{payment_id}", f"/order/{payment_id}/qr.svg", "/api/v1/payments"):
        answer = httpx.get(f"{api.base_url}{path}", headers=origin)
        assert "access-control-allow-origin" not in answer.headers, path


def test_a_chain_that_is_away_is_said_and_ends_in_time(alone: ApiServer) -> None:
    payment = alone.shop().create()
    began = time.monotonic()
    answer = ask(alone, payment["id"])
    assert time.monotonic() - began < 25
    refused(answer, 503, "chain_unavailable", "did not answer")
    assert answer.headers["retry-after"] == "2"


def qr(api: ApiServer, payment_id: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{api.base_url}/order/{payment_id}/qr.svg", headers={**ENGLISH, **headers})


def path_of(picture: str) -> str:
    """Return the last path of an SVG: of a QR code, its dark modules."""
    return picture.rpartition(' d="')[2].partition('"')[0]


def test_codes_carry_the_links(api: ApiServer, shop: Shop) -> None:
    payment = shop.create()
    transfer = qr(api, payment["id"])
    request = httpx.get(f"{api.base_url}/order/{payment['id']}/qr.svg?kind=request")
    for answer, link in ((transfer, "pay_url"), (request, "pay_request_url")):
        assert answer.headers["content-type"].startswith("image/svg+xml")
        assert path_of(answer.text) == path_of(
            segno.make(payment[link], error="m", micro=False).svg_inline(omitsize=True)
        )
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<title>QR code: 9.560230 USDC to Phở Thìn</title>" in transfer.text
    assert qr(api, new_id("pay")).status_code == 404
    unknown = httpx.get(f"{api.base_url}/order/{payment['id']}/qr.svg?kind=both")
    assert unknown.status_code == 422


def test_a_kept_code_is_used_until_what_is_due_changes(
    api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    payment = shop.create()
    tag = qr(api, payment["id"]).headers["etag"]
    same = qr(api, payment["id"], **{"If-None-Match": tag})
    assert (same.status_code, same.content) == (304, b"")
    part = replace(receipt_for(api, payment), amount_minor=1)
    as_the_watcher_does(ledger_database, lambda unit: settlement.settle(unit, part, grace_s=5))
    assert qr(api, payment["id"], **{"If-None-Match": tag}).status_code == 200


def test_without_https_there_is_no_code_for_a_request(alone: ApiServer) -> None:
    payment = alone.shop().create()
    assert qr(alone, payment["id"]).status_code == 200
    answer = httpx.get(f"{alone.base_url}/order/{payment['id']}/qr.svg?kind=request")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_an_address_may_ask_only_so_often(
    ledger_database: DatabaseServer, redis_server: BrokerServer, tmp_path: Path
) -> None:
    server = make_api(
        tmp_path / "limited",
        ledger_database,
        redis_server.url,
        rpc_url=NO_CHAIN,
        rate_limit_per_minute="6",
    )
    redis_server.stop()
    redis_server.start()
    server.start()
    try:
        url = f"{server.base_url}/order/{new_id('pay')}/pay"

        def limited() -> httpx.Response | None:
            answer = httpx.get(url, headers=ENGLISH)
            return answer if answer.status_code == 429 else None

        answer = until(limited, what="the limit", pause_s=0)
        refused(answer, 429, "too_many_requests", "Too many requests")
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["ratelimit"].startswith('"default";r=0')
    finally:
        server.stop()
