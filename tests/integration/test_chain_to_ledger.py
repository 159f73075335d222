"""Chain to ledger: what payers do on a real Solana runtime, and what the watcher books for it."""

import asyncio
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from solders.signature import Signature

from api.chain.solana_pay import token_account
from api.contract import USDC_MINT, USDT_MINT
from tests.fixtures.api import (
    ApiServer,
    PayerWallet,
    Shop,
    itself,
    make_api,
    make_watcher,
    show,
    superuser,
    until,
)
from tests.fixtures.localnet import make_localnet
from tests.fixtures.services import BrokerServer, DatabaseServer, LocalnetServer, Server

PRICE = 9_560_230
FEE = 2_500
SHOWN_FIRST = """SELECT seen.created_at < booked.created_at
FROM merchant_events AS seen JOIN ledger_entries AS booked USING (payment_id)
WHERE payment_id = %s AND seen.type = 'payment.confirming'"""


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
    server = make_api(
        folder, ledger_database, redis_server.url, rpc_url=network.rpc_url, expiry_grace_s="2"
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def watcher(api: ApiServer) -> Iterator[Server]:
    server = make_watcher(api)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def payer(network: LocalnetServer) -> PayerWallet:
    wallet = PayerWallet(network.rpc_url)
    asyncio.run(wallet.fund(USDC_MINT))
    asyncio.run(wallet.fund(USDT_MINT))
    return wallet


@pytest.fixture
def shop(api: ApiServer, watcher: Server) -> Shop:
    assert watcher.pid
    return api.shop()


def pay(
    payer: PayerWallet, api: ApiServer, amount: int, *references: str, mint: str = USDC_MINT
) -> str:
    return asyncio.run(payer.pay(api.collection_wallet, amount, *references, mint=mint))


def entries_of(database: DatabaseServer, payment_id: str) -> list[tuple[str, dict[str, int]]]:
    """Return a payment's entries in order, each with its legs by account kind and asset."""
    with superuser(database) as connection:
        return connection.execute(
            """SELECT e.kind, jsonb_object_agg(a.kind || ' ' || a.asset, p.amount_minor)
               FROM ledger_entries AS e
                   JOIN ledger_postings AS p ON p.entry_id = e.id
                   JOIN ledger_accounts AS a ON a.id = p.account_id
               WHERE e.payment_id = %s
               GROUP BY e.id, e.kind
               ORDER BY e.id""",
            (payment_id,),
        ).fetchall()


def transfer_of(database: DatabaseServer, signature: str) -> tuple[str | None, str, int] | None:
    with superuser(database) as connection:
        return connection.execute(
            """SELECT payment_id, commitment, amount_minor FROM chain_transfers
               WHERE signature = %s""",
            (signature,),
        ).fetchone()


def events_of(database: DatabaseServer, payment_id: str) -> list[str]:
    with superuser(database) as connection:
        rows = connection.execute(
            "SELECT type FROM merchant_events WHERE payment_id = %s ORDER BY seq", (payment_id,)
        )
        return [kind for (kind,) in rows]


def assert_books_equal_chain(
    database: DatabaseServer, network: LocalnetServer, api: ApiServer
) -> None:
    """Whatever happened: entries sum to zero, and what we booked is what the chain says we hold."""
    with superuser(database) as connection:
        unbalanced = connection.execute(
            """SELECT entry_id FROM ledger_postings GROUP BY entry_id, asset
               HAVING sum(amount_minor) <> 0"""
        ).fetchall()
        assert unbalanced == []
        for mint in (USDC_MINT, USDT_MINT):
            account = token_account(api.collection_wallet, mint)
            row = connection.execute(
                """SELECT coalesce(sum(t.amount_minor), 0)::bigint,
                          (SELECT coalesce(sum(p.amount_minor), 0)::bigint
                           FROM ledger_postings AS p
                               JOIN ledger_accounts AS a ON a.id = p.account_id
                               JOIN ledger_entries AS e ON e.id = p.entry_id
                           WHERE a.kind = 'crypto_pool' AND e.description IN (
                               SELECT signature FROM chain_transfers
                               WHERE token_account = %(account)s))
                   FROM chain_transfers AS t
                   WHERE t.token_account = %(account)s AND t.commitment = 'finalized'""",
                {"account": account},
            ).fetchone()
            held = held_on_chain(network, account)
            assert row == (held, held), mint


def held_on_chain(network: LocalnetServer, account: str) -> int:
    question = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "getTokenAccountBalance",
        "params": [account, {"commitment": "finalized"}],
    }
    answer = httpx.post(network.rpc_url, json=question).json()
    return int(answer["result"]["value"]["amount"]) if "result" in answer else 0


def test_the_exact_amount_completes_and_is_booked(
    api: ApiServer, shop: Shop, payer: PayerWallet, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000")
    signature = pay(payer, api, PRICE, payment["reference"])
    done = shop.wait(payment["id"], "completed")
    assert (done["received"], done["fee"]) == ("9.560230", str(FEE))
    assert done["payer_address"] == str(payer.key.pubkey())
    assert done["completed_at"] == done["status_at"]
    assert entries_of(ledger_database, payment["id"]) == [
        (
            "payment_completed",
            {
                "crypto_pool USDC": PRICE,
                "liquidity USDC": -PRICE,
                "liquidity VND": 250_000,
                "merchant_available VND": -(250_000 - FEE),
                "fee_revenue VND": -FEE,
            },
        )
    ]
    assert events_of(ledger_database, payment["id"]) == [
        "payment.created",
        "payment.pending",
        "payment.confirming",
        "payment.completed",
    ]
    assert transfer_of(ledger_database, signature) == (payment["id"], "finalized", PRICE)
    assert shop.available() == 250_000 - FEE


def test_confirming_is_shown_before_anything_is_booked(
    api: ApiServer, shop: Shop, payer: PayerWallet, ledger_database: DatabaseServer
) -> None:
    def is_shown_first() -> bool | None:
        payment = shop.create("250000")
        pay(payer, api, PRICE, payment["reference"])
        shop.wait(payment["id"], "completed")
        with superuser(ledger_database) as connection:
            row = connection.execute(SHOWN_FIRST, (payment["id"],)).fetchone()
        return row == (True,) or None

    until(is_shown_first, what="a payment seen before it is final, and so shown before booked")


def test_parts_add_up(
    api: ApiServer, shop: Shop, payer: PayerWallet, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000")
    pay(payer, api, 4_000_000, payment["reference"])
    part = shop.wait(payment["id"], "pending", "underpaid")
    assert part["received"] == "4.000000"
    pay(payer, api, PRICE - 4_000_000, payment["reference"])
    done = shop.wait(payment["id"], "completed")
    assert done["received"] == "9.560230"
    kinds = [kind for kind, _ in entries_of(ledger_database, payment["id"])]
    assert kinds == ["transfer_suspended", "payment_completed"]
    assert shop.available() == 250_000 - FEE


def test_too_much_completes_and_the_rest_is_kept_for_the_payer(
    api: ApiServer, shop: Shop, payer: PayerWallet, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000")
    pay(payer, api, PRICE + 1_000_000, payment["reference"])
    shop.wait(payment["id"], "completed", "overpaid")
    _, excess = entries_of(ledger_database, payment["id"])
    assert excess == (
        "payment_overpaid",
        {"crypto_pool USDC": 1_000_000, "payer_excess USDC": -1_000_000},
    )
    pay(payer, api, 5, payment["reference"])
    until(
        lambda: len(entries_of(ledger_database, payment["id"])) == 3 or None,
        what="the second transfer is booked",
    )
    balances = shop.client.get("/api/v1/balance").json()["balances"]
    assert {b["asset"]: b["payer_excess"] for b in balances} == {"USDC": "1.000005", "VND": "0"}


def test_late_money_is_booked_and_the_payment_stays_expired(
    api: ApiServer, shop: Shop, payer: PayerWallet, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000", expires_in_s=5)
    shop.wait(payment["id"], "expired")
    pay(payer, api, PRICE, payment["reference"])
    shop.wait(payment["id"], "expired", "late")
    assert entries_of(ledger_database, payment["id"]) == [
        ("transfer_suspended", {"crypto_pool USDC": PRICE, "suspense USDC": -PRICE})
    ]
    assert shop.available() == 0


def test_another_token_waits_in_suspense(
    api: ApiServer, shop: Shop, payer: PayerWallet, ledger_database: DatabaseServer
) -> None:
    payment = shop.create("250000")
    pay(payer, api, PRICE, payment["reference"], mint=USDT_MINT)
    shop.wait(payment["id"], "created", "wrong_asset")
    assert entries_of(ledger_database, payment["id"]) == [
        ("transfer_suspended", {"crypto_pool USDT": PRICE, "suspense USDT": -PRICE})
    ]


def test_money_that_names_nobody_or_two_waits_in_suspense(
    api: ApiServer, shop: Shop, payer: PayerWallet, ledger_database: DatabaseServer
) -> None:
    first, second = shop.create("250000"), shop.create("250000")
    both = pay(payer, api, 2 * PRICE, first["reference"], second["reference"])
    nobody = pay(payer, api, 777)
    for signature, amount in ((both, 2 * PRICE), (nobody, 777)):
        found = until(
            lambda signature=signature: (  # type: ignore[misc]
                row
                if (row := transfer_of(ledger_database, signature)) and row[1] == "finalized"
                else None
            ),
            what="the receipt is final",
        )
        assert found == (None, "finalized", amount)
    assert shop.payment(first["id"])["status"] == "created"
    assert entries_of(ledger_database, first["id"]) == []


def test_a_watcher_killed_at_any_moment_books_each_receipt_once(
    *,
    api: ApiServer,
    shop: Shop,
    payer: PayerWallet,
    watcher: Server,
    network: LocalnetServer,
    ledger_database: DatabaseServer,
) -> None:
    payments = [shop.create("250000") for _ in range(8)]
    for number, payment in enumerate(payments):
        pay(payer, api, PRICE, payment["reference"])
        if number % 3 == 2:
            watcher.kill()
            watcher.start()
    for payment in payments:
        shop.wait(payment["id"], "completed")
    assert shop.available() == 8 * (250_000 - FEE)
    for payment in payments:
        assert [kind for kind, _ in entries_of(ledger_database, payment["id"])] == [
            "payment_completed"
        ]
    assert_books_equal_chain(ledger_database, network, api)


def test_reading_everything_again_books_nothing(
    *,
    api: ApiServer,
    shop: Shop,
    payer: PayerWallet,
    watcher: Server,
    network: LocalnetServer,
    ledger_database: DatabaseServer,
) -> None:
    payment = shop.create("250000")
    pay(payer, api, PRICE, payment["reference"])
    shop.wait(payment["id"], "completed")
    account = token_account(api.collection_wallet, USDC_MINT)
    counts = """SELECT (SELECT count(*) FROM ledger_entries),
                       (SELECT count(*) FROM chain_transfers),
                       (SELECT sum(posted_minor) FROM ledger_accounts)"""
    cursor = "SELECT signature FROM chain_cursors WHERE token_account = %s"
    watcher.stop()
    with superuser(ledger_database) as database:
        before = database.execute(counts).fetchone()
        reached = database.execute(cursor, (account,)).fetchone()
        database.execute("DELETE FROM chain_cursors WHERE token_account = %s", (account,))
        watcher.start()
        until(
            lambda: database.execute(cursor, (account,)).fetchone() == reached or None,
            what="the cursor is back where it was",
        )
        assert database.execute(counts).fetchone() == before
    assert_books_equal_chain(ledger_database, network, api)


def test_while_the_network_is_away_nothing_expires_and_nothing_is_lost(
    api: ApiServer, shop: Shop, payer: PayerWallet, watcher: Server, network: LocalnetServer
) -> None:
    payment, unpaid = (shop.create("250000", expires_in_s=15) for _ in range(2))
    pay(payer, api, PRICE, payment["reference"])
    network.stop()
    paid_late_enough = time.monotonic() + 18
    until(lambda: time.monotonic() > paid_late_enough or None, what="the payments' end")
    assert shop.payment(payment["id"])["status"] != "expired"
    assert shop.payment(unpaid["id"])["status"] == "created"
    assert watcher.process is not None
    assert watcher.process.poll() is None
    network.start()
    assert shop.wait(payment["id"], "completed")["received"] == "9.560230"


def test_escrow_goes_to_the_shop_on_its_day_also_while_the_network_is_away(
    *,
    api: ApiServer,
    shop: Shop,
    payer: PayerWallet,
    network: LocalnetServer,
    ledger_database: DatabaseServer,
) -> None:
    payment = shop.create("250000", escrow=True)
    pay(payer, api, PRICE, payment["reference"])
    shop.wait(payment["id"], "escrow_held")
    delivered = shop.post(f"/api/v1/payments/{payment['id']}/deliver", {}).json()
    assert delivered["status"] == "awaiting_release"
    network.stop()
    with superuser(ledger_database) as database:
        database.execute("SET session_replication_role = replica")
        database.execute(
            "UPDATE payments SET escrow_release_due_at = now() WHERE id = %s", (payment["id"],)
        )
    done = shop.wait(payment["id"], "completed")
    network.start()
    assert (done["escrow_released_by"], done["fee"]) == ("timer", str(FEE))
    kinds = [kind for kind, _ in entries_of(ledger_database, payment["id"])]
    assert kinds == ["escrow_held", "escrow_released"]


def test_a_second_watcher_waits_for_the_seat(
    api: ApiServer, shop: Shop, payer: PayerWallet, watcher: Server, tmp_path: Path
) -> None:
    api_folder, api.folder = api.folder, tmp_path
    second = make_watcher(api)
    api.folder = api_folder
    second.start()
    payment = shop.create("250000")
    pay(payer, api, PRICE, payment["reference"])
    shop.wait(payment["id"], "completed")
    assert second.process is not None
    assert second.process.poll() is None
    assert '"settled"' not in second.log.read_text()
    watcher.kill()
    payment = shop.create("250000")
    pay(payer, api, PRICE, payment["reference"])
    shop.wait(payment["id"], "completed")
    until(lambda: '"settled"' in second.log.read_text() or None, what="it says that it works")
    second.process.send_signal(signal.SIGTERM)
    assert second.process.wait(timeout=60) == 0
    watcher.start()


def test_the_demo_counter_pays_on_chain(
    *,
    ledger_database: DatabaseServer,
    redis_server: BrokerServer,
    network: LocalnetServer,
    api: ApiServer,
    shop: Shop,
    payer: PayerWallet,
    tmp_path: Path,
) -> None:
    demo = make_api(
        tmp_path,
        ledger_database,
        redis_server.url,
        rpc_url=network.rpc_url,
        collection_wallet=api.collection_wallet,
        demo="true",
        demo_merchant_id=shop.merchant_id,
        demo_payer_key=str(payer.key),
    )
    demo.start()
    with httpx.Client(base_url=demo.base_url, timeout=30) as browser:
        opened = browser.get("/demo/checkout", follow_redirects=True)
        assert opened.status_code == 200
        path = opened.url.path
        assert f'action="{path}/demo-pay?lang=vi"' in opened.text
        with ThreadPoolExecutor(4) as hands:
            clicks = list(hands.map(lambda _: browser.post(f"{path}/demo-pay"), range(4)))
        for paid in clicks:
            assert (paid.status_code, paid.headers["location"]) == (303, f"{path}?lang=vi")
        done = shop.wait(path.removeprefix("/order/"), "completed")
        assert (done["received"], done["exception"]) == (done["asset_amount"], None)
        page = browser.get(path, headers={"Accept-Language": "en"}).text
        assert "Paid. Thank you!" in page
        assert browser.post(f"{path}/demo-pay").status_code == 409
    demo.stop()


def test_a_confirmed_transfer_that_vanishes_is_taken_back(
    api: ApiServer,
    shop: Shop,
    payer: PayerWallet,
    network: LocalnetServer,
    ledger_database: DatabaseServer,
) -> None:
    payment = shop.create("250000")
    # What a node shows of a fork that the network leaves: seen at confirmed, never heard of again.
    # Two seconds from now the network will have finalized past its slot.
    signature = str(Signature.new_unique())
    question = {"jsonrpc": "2.0", "id": 1, "method": "getSlot"}
    slot = httpx.post(network.rpc_url, json=question).json()["result"] + 20
    show(api, ledger_database, payment, signature, slot=slot)
    shop.wait(payment["id"], "pending")
    assert "payment.confirming" in events_of(ledger_database, payment["id"])
    assert transfer_of(ledger_database, signature) == (payment["id"], "dropped", PRICE)
    assert entries_of(ledger_database, payment["id"]) == []
    pay(payer, api, PRICE, payment["reference"])
    shop.wait(payment["id"], "completed")
    assert [kind for kind, _ in entries_of(ledger_database, payment["id"])] == ["payment_completed"]


def test_a_payment_that_cannot_take_its_money_stops_no_other(
    payer: PayerWallet, api: ApiServer, shop: Shop, ledger_database: DatabaseServer
) -> None:
    stuck, other = shop.create(), shop.create()
    # The key under which the payment would be booked is taken by something else.
    with superuser(ledger_database) as database:
        database.execute(
            """SELECT ledger_post_entry(
                   giovang_id('ent'), 'test', NULL, 'transfer_suspended',
                   'payment_completed:' || %s, '', NULL, NULL, NULL, NULL,
                   ARRAY[NULL, NULL]::text[], ARRAY['crypto_pool', 'liquidity'],
                   ARRAY['USDC', 'USDC'], ARRAY[1, -1]::bigint[])""",
            (stuck["id"],),
        )
    signature = pay(payer, api, PRICE, stuck["reference"])
    pay(payer, api, PRICE, other["reference"])
    shop.wait(other["id"], "completed")
    assert shop.payment(stuck["id"])["status"] in {"created", "confirming"}
    until(
        lambda: transfer_of(ledger_database, signature) == (None, "finalized", PRICE) or None,
        what="the money is nobody's, after some attempts",
    )
    with superuser(ledger_database) as database:
        booked = database.execute(
            "SELECT kind, payment_id FROM ledger_entries WHERE description = %s", (signature,)
        ).fetchall()
        told = database.execute(
            "SELECT action FROM audit_logs WHERE subject_id = %s", (signature,)
        ).fetchall()
    assert booked == [("transfer_suspended", None)]
    assert told == [("transfer.set_aside",)]
