"""Two providers of one chain, of which one misbehaves: nothing wrong is booked, nothing is lost.

The network is real, and so is the watcher's work, driven sweep by sweep. The second provider is a
proxy before the same network that lags, lies, drops, fails or hangs.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from solders.signature import Signature

from api.chain.rpc import ChainReader
from api.contract import USDC_MINT
from api.errors import ChainUnavailable
from tests.fixtures.api import ApiServer, PayerWallet, Shop, itself, make_api, superuser
from tests.fixtures.chainproxy import ChainProxy, chain_proxy
from tests.fixtures.localnet import make_localnet
from tests.fixtures.services import BrokerServer, DatabaseServer, LocalnetServer
from tests.fixtures.watching import Desk, desk_of


@pytest.fixture(scope="module")
def network(tmp_path_factory: Any) -> Iterator[LocalnetServer]:
    server = make_localnet(tmp_path_factory.mktemp("localnet"), slot_ms="50")
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
    server = make_api(
        folder, ledger_database, redis_server.url, rpc_url=network.rpc_url, expiry_grace_s="1"
    )
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
def proxy(network: LocalnetServer) -> Iterator[ChainProxy]:
    with chain_proxy(network.rpc_url) as proxy:
        yield proxy


@pytest.fixture
async def desk(
    *,
    api: ApiServer,
    shop: Shop,
    payer: PayerWallet,
    network: LocalnetServer,
    proxy: ChainProxy,
    ledger_database: DatabaseServer,
) -> AsyncIterator[Desk]:
    """Two providers: the network itself, and the proxy."""
    async for desk in desk_of(api, shop, payer, ledger_database, network.rpc_url, proxy.url):
        yield desk


@pytest.fixture
async def alone(
    *,
    api: ApiServer,
    shop: Shop,
    payer: PayerWallet,
    proxy: ChainProxy,
    ledger_database: DatabaseServer,
) -> AsyncIterator[Desk]:
    """One provider: the proxy."""
    async for desk in desk_of(api, shop, payer, ledger_database, proxy.url):
        yield desk


async def test_two_that_agree_book(desk: Desk, proxy: ChainProxy) -> None:
    payment, signature = await desk.paid()
    await desk.until(payment, "completed")
    assert desk.entries(payment) == ["payment_completed"]
    assert proxy.asked["getTransaction"] >= 2
    assert desk.aside(signature) is None
    await desk.sweep_until(
        lambda: (desk.state(1), desk.state(2)) == ("well", "well") or None, what="both are well"
    )


def more_of_it(result: dict[str, Any]) -> dict[str, Any]:
    for balance in result["meta"]["postTokenBalances"]:
        balance["uiTokenAmount"]["amount"] = str(int(balance["uiTokenAmount"]["amount"]) + 10**6)
    return result


def for_another(result: dict[str, Any]) -> dict[str, Any]:
    for key in result["transaction"]["message"]["accountKeys"]:
        if not key["signer"] and not key["writable"]:
            key["pubkey"] = str(PayerWallet("").key.pubkey())
    return result


def failed_of_it(result: dict[str, Any]) -> dict[str, Any]:
    result["meta"]["err"] = {"InstructionError": [0, {"Custom": 1}]}
    result["meta"]["status"] = {"Err": {"InstructionError": [0, {"Custom": 1}]}}
    return result


@pytest.mark.parametrize("lie", [more_of_it, for_another, failed_of_it])
async def test_one_that_lies_keeps_that_from_being_booked_and_nothing_else(
    desk: Desk, proxy: ChainProxy, lie: Callable[[Any], Any]
) -> None:
    lied_about, signature = await desk.paid()
    proxy.lies = lambda result: (
        lie(result) if result["transaction"]["signatures"] == [signature] else result
    )
    honest, _ = await desk.paid()
    await desk.until(honest, "completed")
    found = await desk.sweep_until(lambda: desk.aside(signature), what="it is set aside")
    assert found == ("contradicted", None)
    assert desk.entries(lied_about) == []
    assert desk.shop.payment(lied_about["id"])["status"] in {"created", "pending", "confirming"}
    assert desk.state() == "disagreeing"
    proxy.behave()
    done = await desk.until(lied_about, "completed")
    assert (done["received"], done["exception"]) == ("9.560230", None)
    assert desk.entries(lied_about) == ["payment_completed"]
    assert desk.aside(signature) == ("contradicted", "settled")


async def test_one_that_drops_a_signature_holds_up_that_one_alone(
    desk: Desk, proxy: ChainProxy
) -> None:
    dropped, signature = await desk.paid()
    proxy.drops = lambda each: each == signature
    other, _ = await desk.paid()
    await desk.until(other, "completed")
    assert desk.entries(dropped) == []
    found = await desk.sweep_until(lambda: desk.aside(signature), what="it is set aside")
    assert found == ("missing", None)
    # Seen by one provider: shown, and kept from expiring, but not booked.
    assert desk.shop.payment(dropped["id"])["status"] == "confirming"
    proxy.behave()
    await desk.until(dropped, "completed")
    assert desk.entries(dropped) == ["payment_completed"]


async def test_a_line_that_one_leaves_out_is_listed_by_the_other(
    desk: Desk, proxy: ChainProxy
) -> None:
    proxy.hides = lambda _signature: True
    payment, signature = await desk.paid()
    await desk.until(payment, "completed")
    assert desk.aside(signature) is None


async def test_one_that_lags_delays_and_is_reported(desk: Desk, proxy: ChainProxy) -> None:
    proxy.lag_slots = 200
    payment, signature = await desk.paid()
    await desk.until(payment, "confirming")
    assert desk.state() == "lagging"
    await desk.until(payment, "completed")
    # It is some slots behind, and so are we: never ahead of the slower one.
    with superuser(desk.database) as database:
        landed = database.execute(
            "SELECT slot FROM chain_transfers WHERE signature = %s", (signature,)
        ).fetchone()
    assert landed is not None
    assert landed[0] <= proxy.last_final
    assert desk.aside(signature) is None


@pytest.mark.parametrize("trouble", ["hangs", "fails", "talks nonsense"])
async def test_without_one_nothing_is_booked_nothing_expires_and_what_comes_is_shown(
    desk: Desk, proxy: ChainProxy, trouble: str
) -> None:
    proxy.hangs = trouble == "hangs"
    proxy.fails = {"fails": 503, "talks nonsense": 200}.get(trouble)
    payment, signature = await desk.paid()
    waiting = desk.shop.create()
    with superuser(desk.database) as database:
        database.execute("SET session_replication_role = replica")
        database.execute(
            """UPDATE payments SET created_at = now() - interval '1 day',
                   expires_at = now() - interval '1 hour' WHERE id = %s""",
            (waiting["id"],),
        )
    await desk.until(payment, "confirming")
    await desk.sweep_until(lambda: desk.state() == "failing" or None, what="it is known to be down")
    for _ in range(5):
        await desk.sweep()
    assert desk.shop.payment(waiting["id"])["status"] == "created"
    assert desk.entries(payment) == []
    proxy.behave()
    await desk.until(payment, "completed")
    await desk.until(waiting, "expired")
    await desk.sweep_until(lambda: desk.state() == "well" or None, what="it is well again")
    assert desk.aside(signature) is None


async def test_answers_lost_now_and_then_only_delay(desk: Desk, proxy: ChainProxy) -> None:
    calls = iter(range(10**6))

    def every_third_is_lost(result: Any) -> Any:
        return {"no": "form"} if next(calls) % 3 == 0 else result

    proxy.lies = every_third_is_lost
    payments = [(await desk.paid())[0] for _ in range(2)]
    for payment in payments:
        await desk.until(payment, "completed")
        assert desk.entries(payment) == ["payment_completed"]


async def test_one_that_makes_signatures_up_stops_nobody(desk: Desk, proxy: ChainProxy) -> None:
    first, _ = await desk.paid()
    await desk.until(first, "completed")
    slot = await desk.watcher.providers.finalized_slot()
    invented = str(Signature.new_unique())
    line = {"signature": invented, "slot": slot, "err": None, "memo": None, "blockTime": None}
    proxy.invents = [{**line, "confirmationStatus": "finalized"}]
    payment, _ = await desk.paid()
    await desk.until(payment, "completed")
    assert desk.aside(invented) == ("missing", None)


async def test_what_a_single_provider_dropped_in_its_turn_is_found_by_the_second_look(
    alone: Desk, proxy: ChainProxy
) -> None:
    dropped, signature = await alone.paid()
    proxy.drops = lambda each: each == signature
    later, _ = await alone.paid()
    await alone.until(later, "completed")
    proxy.behave()
    await alone.until(dropped, "completed")
    assert alone.aside(signature) == ("passed over", "settled")
    assert alone.entries(dropped) == ["payment_completed"]


async def test_what_was_dropped_is_found_by_its_reference_too(
    alone: Desk, proxy: ChainProxy
) -> None:
    dropped, signature = await alone.paid()
    proxy.drops = lambda each: each == signature
    later, _ = await alone.paid()
    await alone.until(later, "completed")
    proxy.behave()
    await alone.watcher.references.look(5_000)
    assert alone.aside(signature) == ("passed over", None)
    await alone.until(dropped, "completed")


async def test_a_restart_goes_on_with_what_was_set_aside(
    desk: Desk, proxy: ChainProxy, network: LocalnetServer, ledger_database: DatabaseServer
) -> None:
    payment, signature = await desk.paid()
    proxy.drops = lambda each: each == signature
    await desk.sweep_until(lambda: desk.aside(signature), what="it is set aside")
    proxy.behave()
    async for again in desk_of(
        desk.api, desk.shop, desk.payer, ledger_database, network.rpc_url, proxy.url
    ):
        await again.until(payment, "completed")
    assert desk.entries(payment) == ["payment_completed"]


async def test_one_network_alone_is_asked_with_a_deadline(proxy: ChainProxy) -> None:
    proxy.hangs = True
    reader = ChainReader(proxy.url, timeout_s=0.2)
    began = time.monotonic()
    with pytest.raises(ChainUnavailable):
        await reader.finalized_slot()
    assert time.monotonic() - began < 30
    await reader.close()
