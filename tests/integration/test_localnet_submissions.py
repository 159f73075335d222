"""Hop: submissions of the stock Python Solana client, refused, failed, repeated and remembered."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from solana.rpc.async_api import AsyncClient
from solana.rpc.core import RPCException
from solana.rpc.jsonrpc import JsonRpcRequest, SolanaJsonRpcError
from solders.message import Message
from solders.pubkey import Pubkey
from solders.rpc.errors import SendTransactionPreflightFailureMessage
from solders.signature import Signature
from solders.transaction import VersionedTransaction
from solders.transaction_status import (
    InstructionErrorCustom,
    TransactionConfirmationStatus,
    TransactionErrorFieldless,
    TransactionErrorInstructionError,
)
from spl.token.instructions import (
    get_associated_token_address,
)

from tests.fixtures.localnet import (
    CONFIRMED,
    FINALIZED,
    PROCESSED,
    UNCHECKED,
    USDC,
    USDT,
    finalize,
    landed,
    make_localnet,
    make_payer,
    pay,
    sign,
    until,
)
from tests.fixtures.services import LocalnetServer


@pytest_asyncio.fixture
async def client(network: LocalnetServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(network.rpc_url, commitment=CONFIRMED) as connected:
        yield connected


@pytest.fixture
def own_network(tmp_path: Path) -> Iterator[LocalnetServer]:
    # Slots long enough for a block hash to outlive the restart on a busy machine.
    server = make_localnet(tmp_path / "own", slot_ms="250")
    server.start()
    yield server
    server.stop()


async def test_preflight_tells_why_and_leaves_nothing(client: AsyncClient) -> None:
    payer, shop = await make_payer(client, 1_000), Pubkey.new_unique()
    lamports = (await client.get_balance(payer.key.pubkey(), PROCESSED)).value
    too_much = await sign(client, pay(payer, shop, 1_001), payer.key)
    with pytest.raises(RPCException) as caught:
        await client.send_transaction(too_much)
    (failure,) = caught.value.args
    assert isinstance(failure, SendTransactionPreflightFailureMessage)
    assert failure.message == (
        "Transaction simulation failed: Error processing Instruction 1: custom program error: 0x1"
    )
    assert failure.data.err == TransactionErrorInstructionError(1, InstructionErrorCustom(1))
    assert any("failed: custom program error: 0x1" in line for line in failure.data.logs or [])
    assert (await client.get_balance(payer.key.pubkey(), PROCESSED)).value == lamports
    assert (await client.get_signature_statuses([too_much.signatures[0]])).value == [None]


async def test_failed_submission_lands_with_its_error(client: AsyncClient) -> None:
    payer, shop, reference = (
        await make_payer(client, 1_000),
        Pubkey.new_unique(),
        Pubkey.new_unique(),
    )
    failing = await sign(client, pay(payer, shop, 1_001, reference), payer.key)
    signature = (await client.send_transaction(failing, UNCHECKED)).value
    await finalize(client, signature)
    expected = TransactionErrorInstructionError(1, InstructionErrorCustom(1))
    (line,) = (await client.get_signatures_for_address(reference)).value
    assert line.err == expected
    meta = (await landed(client, signature, "jsonParsed")).transaction.meta
    assert meta.err == expected
    assert meta.pre_balances[0] - meta.post_balances[0] == 5000
    assert meta.pre_token_balances == meta.post_token_balances
    assert (await client.get_account_info(get_associated_token_address(shop, USDC))).value is None


async def test_bad_submissions_are_refused(client: AsyncClient) -> None:
    payer = await make_payer(client)
    good = await sign(client, pay(payer, Pubkey.new_unique(), 1), payer.key)
    forged = VersionedTransaction.populate(good.message, [Signature.new_unique()])
    with pytest.raises(RPCException, match="SignatureVerificationFailure"):
        await client.send_transaction(forged)
    stale = Message.new_with_blockhash(
        pay(payer, Pubkey.new_unique(), 1), payer.key.pubkey(), good.message.recent_blockhash
    )
    unknown = VersionedTransaction(
        Message.new_with_compiled_instructions(
            stale.header.num_required_signatures,
            stale.header.num_readonly_signed_accounts,
            stale.header.num_readonly_unsigned_accounts,
            stale.account_keys,
            (await client.get_genesis_hash()).value,
            stale.instructions,
        ),
        [payer.key],
    )
    with pytest.raises(RPCException, match="Blockhash not found"):
        await client.send_transaction(unknown)
    await client.send_transaction(unknown, UNCHECKED)
    await client.send_transaction(good)
    with pytest.raises(RPCException, match="already been processed"):
        await client.send_transaction(good)
    await client.send_transaction(good, UNCHECKED)
    statuses = (await client.get_signature_statuses([unknown.signatures[0]])).value
    assert statuses == [None]
    target = payer.token_account
    assert (await client.get_token_account_balance(target, PROCESSED)).value.amount == "99999999"


async def test_simulation_changes_nothing(client: AsyncClient) -> None:
    payer, shop = await make_payer(client), Pubkey.new_unique()
    target = get_associated_token_address(shop, USDC)
    signed = await sign(client, pay(payer, shop, 5), payer.key)
    unsigned = VersionedTransaction.populate(signed.message, [Signature.default()])
    result = (
        await client.simulate_transaction(
            unsigned, inner_instructions=True, accounts_addresses=[target]
        )
    ).value
    assert result.err is None
    assert result.units_consumed is not None
    assert result.accounts is not None
    assert result.accounts[0] is not None
    assert int.from_bytes(result.accounts[0].data[64:72], "little") == 5
    assert (await client.get_account_info(target, PROCESSED)).value is None
    with pytest.raises(RPCException, match="SignatureVerificationFailure"):
        await client.simulate_transaction(unsigned, sig_verify=True)
    failing = await sign(client, pay(payer, shop, 10**12), payer.key)
    failed = (await client.simulate_transaction(failing)).value
    assert failed.err == TransactionErrorInstructionError(1, InstructionErrorCustom(1))


async def test_fee_is_the_one_that_is_paid(client: AsyncClient) -> None:
    payer = await make_payer(client)
    signed = await sign(client, pay(payer, Pubkey.new_unique(), 5), payer.key)
    message: Any = signed.message
    assert (await client.get_fee_for_message(message, PROCESSED)).value == 5000


async def test_expired_blockhash_is_refused(tmp_path: Path) -> None:
    server = make_localnet(tmp_path / "fast", slot_ms="20")
    server.start()
    try:
        async with AsyncClient(server.rpc_url, commitment=CONFIRMED) as client:
            payer = await make_payer(client)
            signed = await sign(client, pay(payer, Pubkey.new_unique(), 5), payer.key)
            blockhash = signed.message.recent_blockhash

            async def expired() -> bool | None:
                request = JsonRpcRequest(
                    method="isBlockhashValid", params=[str(blockhash), {"commitment": "processed"}]
                )
                answer = await client.send_rpc_request(request, dict[str, Any])
                return None if answer["value"] else True

            await until(expired)
            with pytest.raises(RPCException, match="Blockhash not found") as caught:
                await client.send_transaction(signed)
            (failure,) = caught.value.args
            assert failure.data.err == TransactionErrorFieldless.BlockhashNotFound
    finally:
        server.stop()


async def test_faucet_refuses_what_it_cannot_give(client: AsyncClient) -> None:
    owner = Pubkey.new_unique()
    for mint, amount in ((owner, "1"), (USDC, "0"), (USDC, "-1"), (USDC, "1.5"), (USDC, "9" * 30)):
        request = JsonRpcRequest(method="giovang_faucet", params=[str(owner), str(mint), amount])
        with pytest.raises(SolanaJsonRpcError) as caught:
            await client.send_rpc_request(request, str)
        assert caught.value.code == -32602


async def test_killed_network_forgets_nothing_it_answered(own_network: LocalnetServer) -> None:
    async with AsyncClient(own_network.rpc_url, commitment=CONFIRMED) as client:
        payer, shop, reference = await make_payer(client), Pubkey.new_unique(), Pubkey.new_unique()
        blockhash = (await client.get_latest_blockhash(PROCESSED)).value.blockhash
        signed = [
            VersionedTransaction(
                Message.new_with_blockhash(
                    pay(payer, shop, amount, reference), payer.key.pubkey(), blockhash
                ),
                [payer.key],
            )
            for amount in range(1, 21)
        ]
        answered = [(await client.send_transaction(each)).value for each in signed[:-1]]
        genesis = (await client.get_genesis_hash()).value
        slot = (await client.get_slot(PROCESSED)).value
        own_network.kill()
        own_network.start()
        assert (await client.get_genesis_hash()).value == genesis
        assert (await client.get_slot(PROCESSED)).value > slot
        history = (await client.get_signatures_for_address(reference, commitment=FINALIZED)).value
        assert [line.signature for line in history] == answered[::-1]
        target = get_associated_token_address(shop, USDC)
        balance = (await client.get_token_account_balance(target, FINALIZED)).value
        assert balance.amount == str(sum(range(1, 20)))
        # The block hash is still good, so only the journal can tell repeats from news.
        for repeated in signed[:-1]:
            with pytest.raises(RPCException, match="already been processed"):
                await client.send_transaction(repeated)
        last = (await client.send_transaction(signed[-1])).value
        await finalize(client, last)
        balance = (await client.get_token_account_balance(target, FINALIZED)).value
        assert balance.amount == str(sum(range(1, 21)))
        status = (
            await client.get_signature_statuses([answered[0]], search_transaction_history=True)
        ).value[0]
        assert status is not None
        assert status.confirmation_status == TransactionConfirmationStatus.Finalized


async def test_wallets_of_the_settings_have_token_accounts(tmp_path: Path) -> None:
    wallets = [Pubkey.new_unique() for _ in range(8)]
    addresses = "[" + ",".join(f'"{wallet}"' for wallet in wallets) + "]"
    server = make_localnet(tmp_path / "funded", funded=addresses)
    server.start()
    try:
        async with AsyncClient(server.rpc_url) as client:
            for wallet in wallets:
                for mint in (USDC, USDT):
                    token_account = get_associated_token_address(wallet, mint)
                    balance = await client.get_token_account_balance(token_account, PROCESSED)
                    assert balance.value.amount == "0"
    finally:
        server.stop()
