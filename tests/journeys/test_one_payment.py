"""The walk of one payment, from an HTTP request to pixels in a merchant's browser.

Everything is real: the stack as `./giovang up` starts it, the stock Solana client as the payer, and
headless Chromium as the merchant. The time of each hop is printed at the end.
"""

import asyncio
import os
import secrets
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from playwright.sync_api import Page, expect, sync_playwright
from solana.rpc.async_api import AsyncClient
from solana.rpc.commitment import Confirmed
from solana.rpc.jsonrpc import JsonRpcRequest
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.transaction import VersionedTransaction
from spl.token.constants import TOKEN_PROGRAM_ID
from spl.token.instructions import (
    create_idempotent_associated_token_account,
    get_associated_token_address,
    transfer_checked,
)
from spl.token.models import TransferCheckedParams

from tests.fixtures.marts import noon_zone
from tests.fixtures.services import Stack

# With the start of the stack.
pytestmark = pytest.mark.timeout(900)

AMOUNT_VND = 250_000
FEE_VND = 2_500  # 1 %, the default of a merchant
HOP_TIMEOUT_S = 120.0
CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
PASSWORD = secrets.token_urlsafe(12)
TOKENS_FOR_THE_PAYER = "50000000"
ZERO_SUMS = """
SELECT asset, sum(amount_minor)::bigint FROM ledger_postings GROUP BY asset ORDER BY asset
"""
ENTRY = """
SELECT a.kind, p.asset, p.amount_minor
FROM ledger_entries AS e
JOIN ledger_postings AS p ON p.entry_id = e.id
JOIN ledger_accounts AS a ON a.id = p.account_id
WHERE e.payment_id = %s AND e.kind = 'payment_completed' ORDER BY p.seq
"""
STATES = """
SELECT status FROM raw.payment_analytics WHERE payment_id = %s ORDER BY position, ordinal
"""
MART = "SELECT total_volume::bigint, tx_count FROM marts.hourly_volume WHERE merchant_id = %s"


@dataclass
class Hops:
    """A stopwatch over the hops of the walk."""

    started_at: float = field(default_factory=time.monotonic)
    laps: list[tuple[str, float]] = field(default_factory=list)

    def reached(self, what: str) -> None:
        self.laps.append((what, time.monotonic() - self.started_at))

    def report(self) -> str:
        lines, before = ["the walk of one payment:"], 0.0
        for what, at in self.laps:
            lines.append(f"  {at:7.2f} s  (+{at - before:5.2f} s)  {what}")
            before = at
        return "\n".join(lines)


@dataclass(frozen=True)
class Shop:
    """A merchant made for this journey."""

    merchant_id: str
    key: str
    email: str


@pytest.fixture(scope="module")
def shop(stack: Stack) -> Shop:
    """A new merchant with an API key and a login, made as an operator makes one."""
    merchant_id = "mer_" + "".join(secrets.choice(CROCKFORD) for _ in range(26))
    email = f"owner-{merchant_id[-8:]}@example.vn"
    admin = {"Authorization": f"Bearer {stack.secrets['admin_key']}"}
    with httpx.Client(base_url=stack.endpoints["api"], headers=admin, timeout=60) as client:
        path = f"/api/v1/merchants/{merchant_id}"
        # Paid today, it is looked at today.
        about = {"name": "Quán Journey", "trade": "coffee", "timezone": noon_zone()}
        made = client.put(path, json=about)
        assert made.status_code in {200, 201}, made.text
        key = client.post(f"{path}/api-keys", json={"mode": "test"})
        assert key.status_code == 201, key.text
        staff = client.put(
            f"{path}/staff", json={"email": email, "password": PASSWORD, "role": "owner"}
        )
        assert staff.status_code in {200, 201}, staff.text
    return Shop(merchant_id, key.json()["key"], email)


def database_url(stack: Stack, endpoint: str, role: str, secret: str | None = None) -> str:
    """Return a stack's database address with the credentials of `role`."""
    place = stack.endpoints[endpoint].removeprefix("postgresql://")
    return f"postgresql://{role}:{stack.secrets[secret or role]}@{place}"


async def until(what: str, probe: Callable[[], Awaitable[Any]]) -> Any:
    """Return the first true answer of `probe`; fail when it takes longer than the deadline."""
    deadline = time.monotonic() + HOP_TIMEOUT_S
    while time.monotonic() < deadline:
        if answer := await probe():
            return answer
        await asyncio.sleep(0.05)
    pytest.fail(f"not within {HOP_TIMEOUT_S:.0f} s: {what}")


async def pay(rpc_url: str, payment: dict[str, Any]) -> None:
    """Pay as a wallet does: one TransferChecked that carries the payment's reference."""
    payer, mint = Keypair(), Pubkey.from_string(payment["mint"])
    recipient = Pubkey.from_string(payment["recipient"])
    async with AsyncClient(rpc_url, commitment=Confirmed, http2=False) as rpc:
        await rpc.confirm_transaction(
            (await rpc.request_airdrop(payer.pubkey(), 1_000_000_000)).value, Confirmed
        )
        faucet = JsonRpcRequest(
            method="giovang_faucet", params=[str(payer.pubkey()), str(mint), TOKENS_FOR_THE_PAYER]
        )
        await rpc.send_rpc_request(faucet, str)
        await until(
            "the payer's tokens",
            lambda: _token_account(rpc, get_associated_token_address(payer.pubkey(), mint)),
        )
        transfer = transfer_checked(
            TransferCheckedParams(
                program_id=TOKEN_PROGRAM_ID,
                source=get_associated_token_address(payer.pubkey(), mint),
                mint=mint,
                dest=get_associated_token_address(recipient, mint),
                owner=payer.pubkey(),
                amount=int(payment["asset_amount"].replace(".", "")),
                decimals=6,
            )
        )
        reference = AccountMeta(
            Pubkey.from_string(payment["reference"]), is_signer=False, is_writable=False
        )
        instructions = [
            create_idempotent_associated_token_account(payer.pubkey(), recipient, mint),
            Instruction(transfer.program_id, transfer.data, [*transfer.accounts, reference]),
        ]
        blockhash = (await rpc.get_latest_blockhash()).value.blockhash
        message = MessageV0.try_compile(payer.pubkey(), instructions, [], blockhash)
        await rpc.send_transaction(VersionedTransaction(message, [payer]))


async def _token_account(rpc: AsyncClient, address: Pubkey) -> bool:
    return (await rpc.get_account_info(address, Confirmed)).value is not None


@pytest.fixture(scope="module")
def hops(pytestconfig: pytest.Config) -> Iterator[Hops]:
    stopwatch = Hops()
    yield stopwatch
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():
        print("\n" + stopwatch.report())  # noqa: T201


async def test_a_payment_walks_from_request_to_mart(stack: Stack, shop: Shop, hops: Hops) -> None:
    headers = {"Authorization": f"Bearer {shop.key}", "Idempotency-Key": secrets.token_hex(8)}
    request = {"amount": str(AMOUNT_VND), "currency": "VND", "asset": "USDC", "payer_country": "VN"}
    async with httpx.AsyncClient(base_url=stack.endpoints["api"], timeout=60) as client:
        hops.started_at = time.monotonic()
        first = await client.post("/api/v1/payments", json=request, headers=headers)
        assert first.status_code == 201, first.text
        hops.reached("created over HTTP")
        again = await client.post("/api/v1/payments", json=request, headers=headers)
        assert again.json() == first.json()
        assert again.headers["Idempotent-Replayed"] == "true"
        payment = first.json()
        assert payment["pay_url"].startswith(f"solana:{payment['recipient']}?")

        await pay(stack.endpoints["rpc"], payment)
        hops.reached("paid on Solana (airdrop, faucet and transfer)")

        async def status_is(wanted: set[str]) -> bool:
            answer = await client.get(f"/api/v1/payments/{payment['id']}", headers=headers)
            return answer.json()["status"] in wanted

        await until("confirming", lambda: status_is({"confirming", "completed"}))
        hops.reached("seen by the watcher: confirming")
        await until("completed", lambda: status_is({"completed"}))
        hops.reached("final and booked: completed")
        balance = await client.get("/api/v1/balance", headers=headers)
        assert str(AMOUNT_VND - FEE_VND) in balance.text

    await _the_ledger_balances(stack, payment)
    await _the_warehouse_knows_every_state(stack, payment["id"], hops)
    await _the_mart_shows_it(stack, shop.merchant_id, hops)


async def _the_ledger_balances(stack: Stack, payment: dict[str, Any]) -> None:
    async with await psycopg.AsyncConnection.connect(
        database_url(stack, "ledger_db", "postgres", "ledger_superuser")
    ) as ledger:
        entry = await (await ledger.execute(ENTRY, [payment["id"]])).fetchall()
        tokens = int(payment["asset_amount"].replace(".", ""))
        assert sorted(entry) == sorted(
            [
                ("crypto_pool", "USDC", tokens),
                ("liquidity", "USDC", -tokens),
                ("liquidity", "VND", AMOUNT_VND),
                ("merchant_available", "VND", -(AMOUNT_VND - FEE_VND)),
                ("fee_revenue", "VND", -FEE_VND),
            ]
        )
        assert {row[1] for row in await (await ledger.execute(ZERO_SUMS)).fetchall()} == {0}


async def _the_warehouse_knows_every_state(stack: Stack, payment_id: str, hops: Hops) -> None:
    warehouse_url = database_url(stack, "analytics_db", "giovang_streams")
    async with await psycopg.AsyncConnection.connect(warehouse_url, autocommit=True) as warehouse:

        async def states() -> list[str]:
            rows = await (await warehouse.execute(STATES, [payment_id])).fetchall()
            return [row[0] for row in rows] if rows and rows[-1][0] == "completed" else []

        reached = await until("the hypertable", states)
        hops.reached("captured, streamed, in the hypertable")
        assert reached == ["created", "pending", "confirming", "completed"]


async def _the_mart_shows_it(stack: Stack, merchant_id: str, hops: Hops) -> None:
    # As the dashboards' own role, which sees a merchant's rows only when it says which merchant.
    url = database_url(stack, "analytics_db", "giovang_dashboards")
    async with await psycopg.AsyncConnection.connect(url) as marts:

        async def volume() -> tuple[Any, ...] | None:
            async with marts.transaction():
                await marts.execute(
                    "SELECT set_config('giovang.merchant_id', %s, true)", [merchant_id]
                )
                return await (await marts.execute(MART, [merchant_id])).fetchone()

        assert await until("the mart", volume) == (AMOUNT_VND, 1)
        hops.reached("modelled, in the mart that the dashboard reads")
        async with marts.transaction():
            assert await (await marts.execute(MART, [merchant_id])).fetchall() == []


@pytest.fixture(scope="module")
def browser_page() -> Iterator[Page]:
    chromium = shutil.which("chromium")
    assert chromium, "the distribution's chromium is missing: run ./giovang doctor"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser.new_page(
            locale="vi-VN",
            timezone_id="Asia/Ho_Chi_Minh",
            viewport={"width": 1280, "height": 1400},
        )
        browser.close()


def test_the_merchant_sees_it_in_a_browser(
    stack: Stack, shop: Shop, hops: Hops, browser_page: Page, tmp_path: Path
) -> None:
    browser_page.goto(stack.endpoints["dashboards"])
    browser_page.get_by_label("Email").fill(shop.email)
    browser_page.locator("input[type=password]").fill(PASSWORD)
    browser_page.locator("input[type=password]").press("Enter")
    expect(browser_page.get_by_text("Quán Journey").first).to_be_visible(timeout=60_000)
    expect(browser_page.get_by_text("250.000").first).to_be_visible(timeout=60_000)
    hops.reached("on the merchant's screen")
    expect(browser_page.get_by_text("Traceback")).to_have_count(0)
    folder = Path(os.environ.get("GIOVANG_TEST_SCREENSHOTS", tmp_path))
    browser_page.screenshot(path=folder / "journey.png", full_page=True)
