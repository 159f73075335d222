"""Hop: the demo's wallet pays on a real local network, many payments at once and each once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable

import pytest
import pytest_asyncio
from solana.rpc.async_api import AsyncClient
from solders.hash import Hash
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from spl.token.instructions import get_associated_token_address

from api.chain.transfers import TokenTransfer
from api.checkout.wallet import DemoWallet
from api.errors import ChainUnavailable
from infra.demo.wallet import Invoice, Wallets
from tests.fixtures.localnet import CONFIRMED, PROCESSED, USDC, faucet, until
from tests.fixtures.services import LocalnetServer

PRICE = 2_500_000


@pytest_asyncio.fixture
async def client(network: LocalnetServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(network.rpc_url, http2=False) as connected:
        yield connected


@pytest_asyncio.fixture
async def wallet(network: LocalnetServer, key: Keypair) -> AsyncIterator[DemoWallet]:
    made = DemoWallet(network.rpc_url, str(key))
    yield made
    await made.close()


@pytest.fixture
def key() -> Keypair:
    return Keypair()


@pytest.fixture
def shop() -> Pubkey:
    return Keypair().pubkey()


def order(shop: Pubkey, amount_minor: int = PRICE) -> TokenTransfer:
    reference = str(Keypair().pubkey())
    return TokenTransfer(str(shop), str(USDC), amount_minor, 6, (reference,), reference[:8])


async def received(client: AsyncClient, shop: Pubkey) -> int:
    account = get_associated_token_address(shop, USDC)
    return int((await client.get_token_account_balance(account, PROCESSED)).value.amount)


async def hold_enough_for_one(client: AsyncClient, key: Keypair) -> None:
    """Give the wallet what serves each of several payments alone, and not two of them."""
    await faucet(client, key.pubkey(), USDC, PRICE + 50_000)
    account = get_associated_token_address(key.pubkey(), USDC)
    await until(lambda: _exists(client, account))


@pytest.mark.parametrize("step", [0, 1_000], ids=["equal", "different"])
async def test_payments_at_once_never_spend_each_others_money(
    client: AsyncClient, wallet: DemoWallet, key: Keypair, shop: Pubkey, step: int
) -> None:
    await hold_enough_for_one(client, key)
    orders = [order(shop, PRICE + number * step) for number in range(12)]
    await asyncio.gather(*(wallet.pay(one) for one in orders))
    assert await received(client, shop) == sum(one.amount_minor for one in orders)


async def test_the_demos_customers_share_the_wallet_with_its_counter(
    network: LocalnetServer, client: AsyncClient, wallet: DemoWallet, key: Keypair, shop: Pubkey
) -> None:
    await hold_enough_for_one(client, key)
    invoices = [Invoice(shop, USDC, Keypair().pubkey()) for _ in range(6)]
    async with Wallets(network.rpc_url) as customers:
        paying: list[Awaitable[object]] = [customers.pay(key, one, PRICE) for one in invoices]
        await asyncio.gather(*paying, *(wallet.pay(order(shop)) for _ in range(6)))
    assert await received(client, shop) == 12 * PRICE


async def test_one_payment_asked_for_at_once_is_paid_once(
    client: AsyncClient, wallet: DemoWallet, shop: Pubkey
) -> None:
    clicked = order(shop)
    await asyncio.gather(*(wallet.pay(clicked) for _ in range(8)))
    assert await received(client, shop) == PRICE


async def test_one_payment_asked_for_in_other_slots_is_paid_once(
    network: LocalnetServer, client: AsyncClient, wallet: DemoWallet, key: Keypair, shop: Pubkey
) -> None:
    clicked = order(shop)
    await wallet.pay(clicked)
    for _ in range(2):
        before = (await client.get_latest_blockhash(CONFIRMED)).value.blockhash
        await until(lambda before=before: _newer(client, before))  # type: ignore[misc]
        await wallet.pay(clicked)
    # Another process with the same key knows nothing of the first one.
    other = DemoWallet(network.rpc_url, str(key))
    await other.pay(clicked)
    await other.close()
    assert await received(client, shop) == PRICE
    # What is due changes when part of it came otherwise; then it is another amount to pay.
    rest = TokenTransfer(
        clicked.recipient, clicked.mint, PRICE // 2, 6, clicked.references, clicked.memo
    )
    await wallet.pay(rest)
    assert await received(client, shop) == PRICE + PRICE // 2


async def test_a_refusal_of_another_kind_is_told_and_pays_nothing(
    client: AsyncClient, wallet: DemoWallet, shop: Pubkey
) -> None:
    await wallet.pay(order(shop))
    wrong = TokenTransfer(str(shop), str(USDC), PRICE, 9, (str(Keypair().pubkey()),))
    with pytest.raises(ChainUnavailable):
        await wallet.pay(wrong)
    assert await received(client, shop) == PRICE


async def _exists(client: AsyncClient, account: Pubkey) -> bool | None:
    return (await client.get_account_info(account, CONFIRMED)).value is not None or None


async def _newer(client: AsyncClient, before: Hash) -> bool | None:
    return (await client.get_latest_blockhash(CONFIRMED)).value.blockhash != before or None
