"""Subscriptions make the watcher quick, and losing them loses nothing but time."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from api.contract import USDC_MINT
from tests.fixtures.api import ApiServer, PayerWallet, Shop, itself, make_api, make_watcher, until
from tests.fixtures.lifeline import Lifeline, lifeline
from tests.fixtures.localnet import make_localnet
from tests.fixtures.services import BrokerServer, DatabaseServer, LocalnetServer, Server

PRICE = 9_560_230
# So long that within a test only a hint can have it look, as long as it trusts its subscription.
QUIET_MS = 60_000


@pytest.fixture(scope="module")
def network(tmp_path_factory: Any) -> Iterator[LocalnetServer]:
    server = make_localnet(tmp_path_factory.mktemp("localnet"))
    server.probe = itself(server, '"serving"', server.probe)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def api(
    ledger_database: DatabaseServer,
    redis_server: BrokerServer,
    network: LocalnetServer,
    tmp_path_factory: Any,
) -> Iterator[ApiServer]:
    folder: Path = tmp_path_factory.mktemp("api")
    server = make_api(folder, ledger_database, redis_server.url, rpc_url=network.rpc_url)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def shop(api: ApiServer) -> Shop:
    return api.shop()


@pytest.fixture(scope="module")
def payer(network: LocalnetServer) -> PayerWallet:
    wallet = PayerWallet(network.rpc_url)
    asyncio.run(wallet.fund(USDC_MINT))
    return wallet


@pytest.fixture
def line(network: LocalnetServer) -> Iterator[Lifeline]:
    port = urlsplit(network.ws_url).port
    assert port
    with lifeline(port) as line:
        yield line


@pytest.fixture
def watcher(api: ApiServer, line: Lifeline, tmp_path: Path) -> Iterator[Server]:
    folder, api.folder = api.folder, tmp_path
    server = make_watcher(api)
    api.folder = folder
    server.env = {
        **api.env,
        "GIOVANG_API_SOLANA_WS_URLS": f'["ws://127.0.0.1:{line.port}"]',
        "GIOVANG_API_QUIET_POLL_INTERVAL_MS": str(QUIET_MS),
    }
    server.start()
    until(lambda: '"listening"' in server.log.read_text() or None, what="it listens")
    yield server
    server.stop()


def paid(api: ApiServer, shop: Shop, payer: PayerWallet) -> str:
    payment = shop.create()
    asyncio.run(payer.pay(api.collection_wallet, PRICE, payment["reference"]))
    payment_id: str = payment["id"]
    return payment_id


def test_a_hint_is_enough(api: ApiServer, shop: Shop, payer: PayerWallet, watcher: Server) -> None:
    assert watcher.pid
    # The first makes our token account, and with it the catching up of a first start ends.
    shop.wait(paid(api, shop, payer), "completed")
    began = time.monotonic()
    for _ in range(2):
        shop.wait(paid(api, shop, payer), "completed")
    assert time.monotonic() - began < QUIET_MS / 1000 / 2


def test_a_line_that_is_cut_again_and_again_loses_nothing(
    api: ApiServer, shop: Shop, payer: PayerWallet, watcher: Server, line: Lifeline
) -> None:
    assert watcher.pid
    payments = []
    for cut in range(1, 4):
        line.cut()
        payments.append(paid(api, shop, payer))
        until(lambda: line.opened > cut or None, what="it connected again")  # noqa: B023
        until(
            lambda: watcher.log.read_text().count('"listening"') > cut or None,  # noqa: B023
            what="it listens again",
        )
    for payment_id in payments:
        shop.wait(payment_id, "completed")
    # Connected again, it is quick again.
    shop.wait(paid(api, shop, payer), "completed")


def test_a_silent_line_is_given_up_and_the_chain_asked_instead(
    api: ApiServer, shop: Shop, payer: PayerWallet, watcher: Server, line: Lifeline
) -> None:
    shop.wait(paid(api, shop, payer), "completed")
    line.fall_silent()
    payment_id = paid(api, shop, payer)
    began = time.monotonic()
    shop.wait(payment_id, "completed")
    assert time.monotonic() - began < QUIET_MS / 1000 / 2
    assert '"not listening"' in watcher.log.read_text()
