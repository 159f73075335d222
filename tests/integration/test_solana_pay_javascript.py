"""Wallet to ledger: the stock Solana Pay library pays by our links, and the watcher books it.

The product is reached by https, as the library demands of a transaction request.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api.chain.solana_pay import memo_of
from api.contract import USDT_MINT
from tests.fixtures.api import ApiServer, Shop, itself, make_api, make_watcher
from tests.fixtures.localnet import make_localnet
from tests.fixtures.node import NEEDS_NODE, run_scenario
from tests.fixtures.services import BrokerServer, DatabaseServer, LocalnetServer, Server
from tests.fixtures.tls import HttpsFront

pytestmark = NEEDS_NODE
NAME = "Phở Thìn & bạn"


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalnetServer]:
    server = make_localnet(tmp_path_factory.mktemp("localnet"), slot_ms="200")
    server.probe = itself(server, '"serving"', server.probe)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpsFront]:
    with HttpsFront(tmp_path_factory.mktemp("https")) as https:
        yield https


@pytest.fixture(scope="module")
def api(
    ledger_database: DatabaseServer,
    redis_server: BrokerServer,
    network: LocalnetServer,
    front: HttpsFront,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ApiServer]:
    server = make_api(
        tmp_path_factory.mktemp("api"),
        ledger_database,
        redis_server.url,
        rpc_url=network.rpc_url,
        public_url=front.url,
    )
    front.target_port = int(server.env["GIOVANG_API_PORT"])
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def watcher(api: ApiServer) -> Iterator[Server]:
    server = make_watcher(api)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def shop(api: ApiServer, watcher: Server) -> Shop:
    assert watcher.pid
    return api.shop(name=NAME)


@pytest.fixture
def wallet(
    libraries: Path, tmp_path: Path, network: LocalnetServer, front: HttpsFront
) -> Callable[[dict[str, Any]], list[dict[str, str]]]:
    """The scenario, which pays what it is given and says by which chain transactions."""

    def pay(given: dict[str, Any]) -> list[dict[str, str]]:
        urls = (network.rpc_url, network.ws_url)
        trusted = {"NODE_EXTRA_CA_CERTS": str(front.certificate)}
        lines = run_scenario("solana_pay", libraries, tmp_path, *urls, json.dumps(given), **trusted)
        return [json.loads(line) for line in lines]

    return pay


def expected_of(payment: dict[str, Any], message: str) -> dict[str, Any]:
    """Return a payment with what the scenario must find of it."""
    return {
        **payment,
        "address": f"{payment['checkout_url']}/pay",
        "label": NAME,
        "message": message,
        "amount": payment["asset_amount"],
        "amount_minor": payment["asset_amount"].replace(".", ""),
        "memo": memo_of(payment["reference"]),
    }


def test_a_stock_wallet_pays_by_both_links(
    api: ApiServer, shop: Shop, wallet: Callable[[dict[str, Any]], list[dict[str, str]]]
) -> None:
    # Node names no language, and then we speak Vietnamese.
    unnamed, named, in_usdt = (
        shop.create("50000"),
        shop.create("26150", description="Cà phê sữa đá, 100% đá & ít đường"),
        shop.create("23001", asset="USDT"),
    )
    requests = [
        expected_of(unnamed, f"{unnamed['asset_amount']} USDC cho {NAME}"),
        expected_of(named, named["description"]),
        expected_of(in_usdt, f"{in_usdt['asset_amount']} USDT cho {NAME}"),
    ]
    transfers = [
        expected_of(payment, payment["description"])
        for payment in (
            shop.create("77777", description="hai cà phê #2"),
            shop.create("31000", asset="USDT", description="100% đúng"),
        )
    ]
    given = {
        "collection": api.collection_wallet,
        "usdt": USDT_MINT,
        # The account for each token is opened by the first payment in it.
        "requests": [
            {**payment, "opens_account": payment is not requests[1]} for payment in requests
        ],
        "transfers": transfers,
    }
    made = {line["id"]: line["signature"] for line in wallet(given)}
    assert list(made) == [payment["id"] for payment in (*requests, *transfers)]
    for payment in (*requests, *transfers):
        completed = shop.wait(payment["id"], "completed")
        assert completed["received"] == payment["asset_amount"]
        expanded = shop.client.get(f"/api/v1/payments/{payment['id']}?expand[]=transfers").json()
        assert [line["signature"] for line in expanded["transfers"]] == [made[payment["id"]]]
