"""What carries a payment's reference and brings us nothing we take: found, shown, never booked."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from solana.rpc.async_api import AsyncClient
from solders.instruction import AccountMeta, Instruction
from solders.keypair import Keypair
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.system_program import (
    CreateAccountParams,
    TransferParams,
    create_account,
    transfer,
)
from spl.token.constants import TOKEN_2022_PROGRAM_ID, TOKEN_PROGRAM_ID
from spl.token.instructions import (
    create_idempotent_associated_token_account,
    get_associated_token_address,
    initialize_mint,
    mint_to,
)
from spl.token.models import InitializeMintParams, MintToParams

from api.contract import USDC_MINT
from tests.fixtures import localnet
from tests.fixtures.api import ApiServer, PayerWallet, itself, make_api, superuser
from tests.fixtures.services import BrokerServer, DatabaseServer, LocalnetServer
from tests.fixtures.watching import PRICE, Desk, desk_of

_MINT_BYTES = 82
_MINT_RENT = 1_461_600


@pytest.fixture(scope="module")
def network(tmp_path_factory: Any) -> Iterator[LocalnetServer]:
    server = localnet.make_localnet(tmp_path_factory.mktemp("localnet"), slot_ms="50")
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
def payer(network: LocalnetServer) -> PayerWallet:
    wallet = PayerWallet(network.rpc_url)
    asyncio.run(wallet.fund(USDC_MINT))
    return wallet


@pytest.fixture
async def desk(
    api: ApiServer, payer: PayerWallet, network: LocalnetServer, ledger_database: DatabaseServer
) -> AsyncIterator[Desk]:
    async for desk in desk_of(api, api.shop(), payer, ledger_database, network.rpc_url):
        yield desk


async def send(payer: PayerWallet, *instructions: Instruction, failing: bool = False) -> str:
    """Send instructions as one chain transaction and wait until it is final."""
    async with AsyncClient(payer.rpc_url, http2=False) as client:
        signed = await localnet.sign(client, list(instructions), payer.key)
        options = localnet.UNCHECKED if failing else None
        sent = (await client.send_transaction(signed, options)).value
        await localnet.finalize(client, sent)
        return str(sent)


def mark(instruction: Instruction, reference: str) -> Instruction:
    """Return the instruction with a reference among its accounts."""
    key = AccountMeta(Pubkey.from_string(reference), is_signer=False, is_writable=False)
    return Instruction(instruction.program_id, instruction.data, [*instruction.accounts, key])


async def strays_of(desk: Desk, payment: dict[str, Any]) -> list[dict[str, Any]]:
    """Look until something is found, and return it as the merchant reads it."""

    def found() -> list[dict[str, Any]] | None:
        answer = desk.shop.client.get(
            f"/api/v1/payments/{payment['id']}", params={"expand[]": "strays"}
        )
        strays: list[dict[str, Any]] = answer.json()["strays"]
        return strays or None

    # A whole round: payments of other tests are open as well.
    await desk.watcher.references.look(5_000)
    return await desk.sweep_until(found, what="the stray is shown")


def nothing_is_booked(desk: Desk, payment: dict[str, Any]) -> bool:
    return (
        desk.entries(payment) == [] and desk.shop.payment(payment["id"])["received"] == "0.000000"
    )


async def test_the_right_tokens_for_another_recipient(desk: Desk, api: ApiServer) -> None:
    payment, other = desk.shop.create(), str(Keypair().pubkey())
    signature = await desk.payer.pay(other, PRICE, payment["reference"])
    async with AsyncClient(desk.payer.rpc_url, http2=False) as client:
        await localnet.finalize(client, Signature.from_string(signature))
    (stray,) = await strays_of(desk, payment)
    assert stray["signature"] == signature
    assert (stray["kind"], stray["mint"]) == ("wrong_recipient", USDC_MINT)
    assert (stray["recipient"], stray["amount_units"]) == (other, str(PRICE))
    assert nothing_is_booked(desk, payment)
    with superuser(desk.database) as database:
        told = database.execute(
            """SELECT merchant_id, after ->> 'kind' FROM audit_logs
               WHERE action = 'stray.found' AND subject_id = %s""",
            (payment["id"],),
        ).fetchall()
    assert told == [(desk.shop.merchant_id, "wrong_recipient")]
    # Looked at again it is not news, and nobody else's to see.
    # A whole round: payments of other tests are open as well.
    await desk.watcher.references.look(5_000)
    assert len(await strays_of(desk, payment)) == 1
    stranger = api.shop()
    path = f"/api/v1/payments/{payment['id']}"
    assert stranger.client.get(path, params={"expand[]": "strays"}).status_code == 404
    # And the payment can still be paid.
    await desk.payer.pay(api.collection_wallet, PRICE, payment["reference"])
    await desk.until(payment, "completed")


@pytest.mark.parametrize("program", [TOKEN_PROGRAM_ID, TOKEN_2022_PROGRAM_ID])
async def test_a_mint_that_only_looks_like_ours(
    desk: Desk, api: ApiServer, program: Pubkey
) -> None:
    payment, mint, me = desk.shop.create(), Keypair(), desk.payer.key.pubkey()
    wallet = Pubkey.from_string(api.collection_wallet)
    account = get_associated_token_address(wallet, mint.pubkey(), program)
    making = create_account(
        CreateAccountParams(
            from_pubkey=me,
            to_pubkey=mint.pubkey(),
            lamports=_MINT_RENT,
            space=_MINT_BYTES,
            owner=program,
        )
    )
    initializing = initialize_mint(
        InitializeMintParams(decimals=6, program_id=program, mint=mint.pubkey(), mint_authority=me)
    )
    minting = mint_to(
        MintToParams(
            program_id=program,
            mint=mint.pubkey(),
            dest=account,
            mint_authority=me,
            amount=PRICE,
        )
    )
    async with AsyncClient(desk.payer.rpc_url, http2=False) as client:
        instructions = [
            making,
            initializing,
            create_idempotent_associated_token_account(me, wallet, mint.pubkey(), program),
            mark(minting, payment["reference"]),
        ]
        signed = await localnet.sign(client, instructions, desk.payer.key, mint)
        sent = (await client.send_transaction(signed)).value
        await localnet.finalize(client, sent)
    (stray,) = await strays_of(desk, payment)
    assert (stray["kind"], stray["signature"]) == ("wrong_token", str(sent))
    assert stray["mint"].endswith(str(mint.pubkey()))
    assert (program == TOKEN_2022_PROGRAM_ID) == stray["mint"].startswith(str(program))
    assert nothing_is_booked(desk, payment)


async def test_dust_and_failures_with_the_reference_hide_nothing(
    desk: Desk, api: ApiServer
) -> None:
    payment = desk.shop.create()
    me = desk.payer.key.pubkey()
    grain = transfer(TransferParams(from_pubkey=me, to_pubkey=me, lamports=1))
    dust = await send(desk.payer, mark(grain, payment["reference"]))
    wanting = localnet.pay(
        localnet.Payer(
            desk.payer.key, get_associated_token_address(desk.payer.key.pubkey(), localnet.USDC)
        ),
        Pubkey.from_string(api.collection_wallet),
        10**15,
        Pubkey.from_string(payment["reference"]),
    )
    failed = await send(desk.payer, *wanting, failing=True)
    found = {stray["signature"]: stray["kind"] for stray in await strays_of(desk, payment)}
    assert found == {dust: "nothing", failed: "failed"}
    assert nothing_is_booked(desk, payment)
    await desk.payer.pay(api.collection_wallet, PRICE, payment["reference"])
    await desk.until(payment, "completed")


async def test_a_reference_that_is_no_address_stops_nobody(desk: Desk) -> None:
    broken, payment = desk.shop.create(), desk.shop.create()
    with superuser(desk.database) as database:
        database.execute("SET session_replication_role = replica")
        database.execute(
            "UPDATE payments SET reference = 'no address ' || id WHERE id = %s", (broken["id"],)
        )
    me = desk.payer.key.pubkey()
    grain = transfer(TransferParams(from_pubkey=me, to_pubkey=me, lamports=1))
    await send(desk.payer, mark(grain, payment["reference"]))
    (stray,) = await strays_of(desk, payment)
    assert stray["kind"] == "nothing"


@pytest.fixture
def only_payments(desk: Desk) -> Iterator[None]:
    """Have no open payments but the test's own: others are laid away, and put back as they were."""
    with superuser(desk.database) as database:
        database.execute("SET session_replication_role = replica")
        database.execute(
            """CREATE TEMPORARY TABLE laid_away AS
               SELECT id, status FROM payments
               WHERE status IN ('created', 'pending', 'confirming', 'expired')"""
        )
        database.execute(
            """UPDATE payments AS p SET status = 'failed' FROM laid_away AS l WHERE l.id = p.id"""
        )
        yield
        database.execute(
            """UPDATE payments AS p SET status = l.status FROM laid_away AS l WHERE l.id = p.id"""
        )


@pytest.mark.usefixtures("only_payments")
async def test_many_open_payments_share_a_bounded_number_of_calls(desk: Desk) -> None:
    references = desk.watcher.references
    payments = [desk.shop.create() for _ in range(12)]
    # One is being looked at by its payer just now.
    with superuser(desk.database) as database:
        database.execute(
            "UPDATE payments SET status = 'pending' WHERE id = %s", (payments[9]["id"],)
        )
    asked: list[str] = []
    page = desk.watcher.providers.page

    async def noted(account: str, **more: Any) -> Any:
        asked.append(account)
        return await page(account, **more)

    desk.watcher.providers.page = noted  # type: ignore[method-assign]
    before = desk.watcher.providers.calls
    assert await references.look(4) == 4
    assert asked[0] == payments[9]["reference"]
    for _ in range(2):
        await references.look(4)
    assert desk.watcher.providers.calls - before == len(asked) <= 12
    # Round and round: everybody has had a turn once the round is through.
    await references.look(4)
    assert set(asked) == {payment["reference"] for payment in payments}
