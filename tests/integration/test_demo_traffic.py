"""Live demo customers against the real API, watcher, ledger and local Solana network."""

import asyncio
import base64
import os
import secrets
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from solders.keypair import Keypair

from infra.demo.gateway import Gateway, GatewayAwayError
from infra.demo.merchants import PROFILES
from infra.demo.traffic import Traffic
from infra.demo.wallet import Wallets
from infra.stack import probes
from infra.stack.notify import NotifySocket
from infra.stack.process import base_environment
from tests.fixtures.services import (
    CHECKOUT,
    BrokerServer,
    DatabaseServer,
    LocalnetServer,
    Server,
    free_port,
)

SEED = 5
VISITS = 14
SETTLE_TIMEOUT_S = 120.0


@dataclass
class Product:
    """The API and the watcher, with what a demo needs to know of them."""

    api: Server
    api_url: str
    rpc_url: str
    ledger_url: str
    admin_key: str
    state_dir: Path

    def gateway(self) -> Gateway:
        return Gateway(self.api_url, admin_key=self.admin_key)

    def environment(self) -> dict[str, str]:
        return {
            **base_environment(self.state_dir),
            "GIOVANG_DEMO_API_URL": self.api_url,
            "GIOVANG_DEMO_RPC_URL": self.rpc_url,
            "GIOVANG_DEMO_ADMIN_KEY": self.admin_key,
            "GIOVANG_DEMO_LEDGER_URL": self.ledger_url,
            "GIOVANG_DEMO_STATE_DIR": str(self.state_dir),
            "GIOVANG_DEMO_SEED": str(SEED),
            "GIOVANG_DEMO_PASSWORD": "a demo password",
        }

    def query(self, statement: LiteralString, *values: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.ledger_url, autocommit=True) as database:
            return database.execute(statement, values or None).fetchall()


@pytest.fixture(scope="module")
def product(
    ledger_database: DatabaseServer,
    redis_server: BrokerServer,
    localnet: LocalnetServer,
    service_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Product]:
    port, admin_key = free_port(), secrets.token_hex(16)
    api_url = f"http://127.0.0.1:{port}"
    common = {
        "GIOVANG_API_REDIS_URL": redis_server.url,
        "GIOVANG_API_PUBLIC_URL": api_url,
        "GIOVANG_API_SOLANA_RPC_URL": localnet.rpc_url,
        "GIOVANG_API_COLLECTION_WALLET": str(Keypair().pubkey()),
    }
    api = Server(
        name="demo-api",
        command=(sys.executable, "-m", "api.app"),
        folder=service_folder,
        cwd=CHECKOUT,
        probe=probes.http(f"{api_url}/healthz"),
        env={
            **common,
            "GIOVANG_API_DATABASE_URL": ledger_database.url("giovang_api"),
            "GIOVANG_API_OPERATOR_URL": ledger_database.url("giovang_operator"),
            "GIOVANG_API_PORT": str(port),
            "GIOVANG_API_ADMIN_KEY": admin_key,
            "GIOVANG_API_SESSION_PRIVATE_KEY": base64.b64encode(os.urandom(32)).decode(),
            "GIOVANG_API_SEALING_KEY": base64.b64encode(os.urandom(32)).decode(),
        },
    )
    notices = NotifySocket(service_folder / "demo-watcher.notify", None)
    watcher = Server(
        name="demo-watcher",
        command=(sys.executable, "-m", "api.watcher"),
        folder=service_folder,
        cwd=CHECKOUT,
        probe=lambda: any(notice.ready for notice in notices.drain()),
        env={
            **common,
            "GIOVANG_API_WATCHER_DATABASE_URL": ledger_database.url("giovang_watcher"),
            "NOTIFY_SOCKET": str(notices.path),
        },
    )
    api.start()
    watcher.start()
    yield Product(
        api=api,
        api_url=api_url,
        rpc_url=localnet.rpc_url,
        ledger_url=ledger_database.superuser_url("giovang"),
        admin_key=admin_key,
        state_dir=tmp_path_factory.mktemp("demo"),
    )
    watcher.stop()
    api.stop()
    notices.close()
    # Other suites share this ledger and know nothing of the demo's own record.
    with psycopg.connect(ledger_database.superuser_url("giovang"), autocommit=True) as database:
        database.execute("DROP SCHEMA IF EXISTS demo CASCADE")


async def test_registering_twice_keeps_merchants_and_keys(product: Product) -> None:
    async with product.gateway() as gateway:
        first, second = [
            await gateway.register(
                seed=SEED, password="a demo password", state_dir=product.state_dir
            )
            for _ in range(2)
        ]
    assert first == second
    assert [shop.merchant_id for shop in first] == [p.merchant_id(SEED) for p in PROFILES]
    keys_file = product.state_dir / "api-keys.json"
    assert stat.S_IMODE(keys_file.stat().st_mode) == 0o600
    staff = product.query("SELECT email FROM merchant_staff WHERE email LIKE '%demo.giovang.vn'")
    assert ("coffee@demo.giovang.vn",) in staff


async def test_a_key_that_the_api_no_longer_accepts_is_made_anew(product: Product) -> None:
    async with product.gateway() as gateway:
        await gateway.register(seed=SEED, password="a demo password", state_dir=product.state_dir)
        revoked = PROFILES[0].merchant_id(SEED)
        with psycopg.connect(product.ledger_url, autocommit=True) as database:
            database.execute(
                "UPDATE api_keys SET revoked_at = now() WHERE merchant_id = %s", (revoked,)
            )
        shops = await gateway.register(
            seed=SEED, password="a demo password", state_dir=product.state_dir
        )
        created = await gateway.create_payment(
            shops[0], {"amount": "50000", "currency": "VND", "asset": "USDC"}, idempotency_key="k"
        )
    assert created["status"] == "created"


async def test_customers_pay_and_the_ledger_books_what_they_paid(
    product: Product, tmp_path: Path
) -> None:
    async with product.gateway() as gateway, Wallets(product.rpc_url) as wallets:
        shops = await gateway.register(
            seed=SEED, password="a demo password", state_dir=product.state_dir
        )
        simulator = Traffic(
            gateway=gateway,
            wallets=wallets,
            shops=shops,
            seed=SEED,
            rate_per_minute=240,
            state_dir=tmp_path,
        )
        counts = await simulator.run(max_visits=VISITS)
    assert counts["came"] == VISITS
    assert counts["paid"] >= VISITS // 2
    assert not counts.keys() & {"gave up", "refused", "broken"}
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while (
        completed := product.query(
            "SELECT count(*) FROM payments WHERE order_id LIKE '%-live-%' AND status = 'completed'"
        )[0][0]
    ) < counts["paid"]:
        assert time.monotonic() < deadline, f"{completed} of {counts['paid']} completed"
        await asyncio.sleep(0.2)
    assert product.query(
        "SELECT count(*) FROM payments WHERE order_id LIKE '%-live-%' AND status = 'completed'"
        " AND exception IS NULL AND received_minor <> asset_amount_minor"
    ) == [(0,)]
    payers = product.query(
        "SELECT DISTINCT payer_address FROM payments"
        " WHERE order_id LIKE '%-live-%' AND status = 'completed'"
    )
    assert len(payers) > 3


def test_the_command_loads_a_history_once_and_refuses_another(product: Product) -> None:
    def history(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "infra.demo",
                "history",
                "--days",
                "2",
                "--pace",
                "0",
                *arguments,
            ],
            cwd=CHECKOUT,
            env=product.environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    first = history("--until", "2026-04-02T10:00+07:00")
    assert first.returncode == 0, first.stderr
    assert "the history is loaded" in first.stderr
    loaded = product.query("SELECT count(*) FROM payments WHERE rate_source = 'demo'")
    assert loaded[0][0] > 100

    again = history()
    assert again.returncode == 0, again.stderr
    assert "already there" in again.stderr
    assert product.query("SELECT count(*) FROM payments WHERE rate_source = 'demo'") == loaded

    other = history("--seed", str(SEED + 1))
    assert other.returncode == 1
    assert "another seed" in other.stderr
    assert product.query("SELECT count(*) FROM payments WHERE rate_source = 'demo'") == loaded


def test_missing_settings_are_named() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "infra.demo", "traffic"],
        cwd=CHECKOUT,
        env=base_environment(CHECKOUT),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 1
    assert "GIOVANG_DEMO_ADMIN_KEY" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_service_says_it_is_alive_and_ends_cleanly_on_sigterm(
    product: Product, service_folder: Path
) -> None:
    notices = NotifySocket(service_folder / "demo.notify", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "infra.demo", "traffic", "--rate", "60"],
        cwd=CHECKOUT,
        env={**product.environment(), "NOTIFY_SOCKET": str(notices.path)},
        stderr=subprocess.PIPE,
    )
    try:
        said: list[str] = []
        ready = False
        deadline = time.monotonic() + 120
        while not (ready and any("customers" in line for line in said)):
            assert time.monotonic() < deadline, said
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            for notice in notices.drain():
                ready = ready or notice.ready
                said += [notice.status] if notice.status else []
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        notices.close()
    assert process.returncode == 0, errors.decode()


async def test_an_api_that_went_away_stops_nobody_for_good(
    product: Product, tmp_path: Path
) -> None:
    async with product.gateway() as gateway, Wallets(product.rpc_url) as wallets:
        shops = await gateway.register(
            seed=SEED, password="a demo password", state_dir=product.state_dir
        )
        simulator = Traffic(
            gateway=gateway,
            wallets=wallets,
            shops=shops,
            seed=SEED + 1,
            rate_per_minute=600,
            state_dir=tmp_path,
        )
        product.api.stop()
        running = asyncio.create_task(simulator.run())
        try:
            await _eventually(lambda: "away" in simulator.status(), "the status names the trouble")
            await asyncio.to_thread(product.api.start)
            await _eventually(lambda: "away" not in simulator.status(), "customers come back")
        finally:
            simulator.stop()
            counts = await running
    assert counts["gave up"] >= 1
    assert not counts["broken"]


async def test_a_gateway_that_is_not_there_is_said_to_be_away() -> None:
    async with Gateway(f"http://127.0.0.1:{free_port()}", admin_key="none") as gateway:
        with pytest.raises(GatewayAwayError, match="not healthy"):
            await gateway.wait_until_healthy(timeout_s=0.6)


async def _eventually(question: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not question():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)
