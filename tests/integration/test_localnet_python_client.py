"""Hop: the stock Python Solana client reads the local network, over HTTP and WebSocket."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest
import pytest_asyncio
from solana.rpc.async_api import AsyncClient
from solana.rpc.commitment import Commitment
from solana.rpc.core import RPCException
from solana.rpc.models import MemcmpOpts, TokenAccountOpts
from solana.rpc.websocket_api import SolanaWsClient
from solders.address_lookup_table_account import AddressLookupTableAccount
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.rpc.config import RpcTransactionLogsFilterMentions
from solders.rpc.responses import (
    AccountNotification,
    LogsNotification,
    SignatureNotification,
    SlotNotification,
)
from solders.signature import Signature
from solders.transaction import VersionedTransaction
from solders.transaction_status import (
    TransactionConfirmationStatus,
)
from spl.token.instructions import (
    create_idempotent_associated_token_account,
    get_associated_token_address,
)

from tests.fixtures.localnet import (
    CONFIRMED,
    DEADLINE_S,
    FINALIZED,
    PROCESSED,
    SOL,
    TOKEN_PROGRAM,
    UNCHECKED,
    USDC,
    USDT,
    address_table,
    finalize,
    landed,
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


async def test_the_node_describes_itself(client: AsyncClient) -> None:
    assert await client.is_connected()
    assert (await client.get_version()).value.solana_core
    assert (await client.get_genesis_hash()).value
    assert (await client.get_minimum_balance_for_rent_exemption(165)).value == 2_039_280
    assert (await client.get_recent_prioritization_fees()).value == []
    epoch = (await client.get_epoch_info()).value
    assert epoch.absolute_slot == epoch.epoch * epoch.slots_in_epoch + epoch.slot_index


async def test_slots_pass_and_commitments_lag(client: AsyncClient) -> None:
    first = (await client.get_slot(PROCESSED)).value
    newer = await until(lambda: _greater(client.get_slot(PROCESSED), first + 3))
    assert (await client.get_block_height(PROCESSED)).value >= newer
    finalized = (await client.get_slot(FINALIZED)).value
    confirmed = (await client.get_slot(CONFIRMED)).value
    processed = (await client.get_slot(PROCESSED)).value
    assert finalized < confirmed <= processed
    now = time.time()
    block_time = (await client.get_block_time(confirmed)).value
    assert block_time is not None
    assert abs(now - block_time) < 30


async def _greater(asked: Awaitable[Any], than: int) -> int | None:
    value: int = (await asked).value
    return value if value > than else None


async def test_airdrop_moves_through_the_commitments(client: AsyncClient) -> None:
    owner = Pubkey.new_unique()
    signature = (await client.request_airdrop(owner, 3 * SOL)).value
    assert (await client.get_balance(owner, PROCESSED)).value == 3 * SOL
    ranks: list[int] = []

    async def finalized() -> bool | None:
        balance = (await client.get_balance(owner, FINALIZED)).value
        shown = (await client.get_transaction(signature, commitment=FINALIZED)).value
        status = (await client.get_signature_statuses([signature])).value[0]
        assert status is not None
        assert status.err is None
        assert status.confirmation_status is not None
        ranks.append(int(status.confirmation_status))
        done = status.confirmation_status == TransactionConfirmationStatus.Finalized
        assert (status.confirmations is None) == done
        # What was asked before the status cannot know more than the status does.
        assert done or (balance == 0 and shown is None)
        return done or None

    await until(finalized)
    assert ranks == sorted(ranks)
    assert (await client.get_balance(owner, FINALIZED)).value == 3 * SOL
    found = (await client.get_transaction(signature, commitment=FINALIZED)).value
    assert found is not None
    assert found.transaction.meta is not None
    assert found.transaction.meta.err is None


async def test_same_airdrop_twice_is_two_airdrops(client: AsyncClient) -> None:
    owner = Pubkey.new_unique()
    signatures = [(await client.request_airdrop(owner, SOL)).value for _ in range(3)]
    assert len(set(signatures)) == 3
    assert (await client.get_balance(owner, PROCESSED)).value == 3 * SOL


async def test_transfer_is_found_by_its_reference_and_read(client: AsyncClient) -> None:
    payer, shop, reference = await make_payer(client), Pubkey.new_unique(), Pubkey.new_unique()
    sent = await sign(client, pay(payer, shop, 9_560_230, reference, memo="đơn 42"), payer.key)
    signature = (await client.send_transaction(sent)).value
    await finalize(client, signature)

    (line,) = (await client.get_signatures_for_address(reference, commitment=FINALIZED)).value
    assert line.signature == signature
    assert line.err is None
    assert line.memo == "[8] đơn 42"
    assert line.confirmation_status == TransactionConfirmationStatus.Finalized

    found = await landed(client, signature, "jsonParsed")
    assert found.slot == line.slot
    assert found.block_time == line.block_time
    meta, message = found.transaction.meta, found.transaction.transaction.message
    keys = [account.pubkey for account in message.account_keys]
    assert reference in keys
    target = get_associated_token_address(shop, USDC)
    (received,) = [balance for balance in meta.post_token_balances if balance.owner == shop]
    assert keys[received.account_index] == target
    assert received.mint == USDC
    assert received.program_id == TOKEN_PROGRAM
    assert received.ui_token_amount.amount == "9560230"
    assert received.ui_token_amount.ui_amount_string == "9.56023"
    assert [balance.owner for balance in meta.pre_token_balances] == [payer.key.pubkey()]
    assert meta.fee == 5000
    assert meta.pre_balances[0] - meta.post_balances[0] == 5000 + 2_039_280
    kinds = [instruction.parsed for instruction in message.instructions]
    assert kinds[0]["type"] == "createIdempotent"
    assert kinds[1] == "đơn 42"
    assert kinds[2]["type"] == "transferChecked"
    # As on a real node: an account behind the authority is taken for a signer of a multisig.
    assert kinds[2]["info"]["multisigAuthority"] == str(payer.key.pubkey())
    assert kinds[2]["info"]["signers"] == [str(reference)]
    inner = meta.inner_instructions
    assert [group.index for group in inner] == [0]
    assert [each.parsed["type"] for each in inner[0].instructions] == [
        "getAccountDataSize",
        "createAccount",
        "initializeImmutableOwner",
        "initializeAccount3",
    ]


async def test_all_encodings_of_what_landed(client: AsyncClient) -> None:
    payer, shop = await make_payer(client), Pubkey.new_unique()
    sent = await sign(client, pay(payer, shop, 1), payer.key)
    signature = (await client.send_transaction(sent)).value
    await client.confirm_transaction(signature, CONFIRMED, sleep_seconds=0.02)
    plain = await landed(client, signature, "json", None)
    assert plain.transaction.version is None
    assert plain.transaction.transaction.message.account_keys == sent.message.account_keys
    for encoding in ("base64", "base58"):
        raw = await landed(client, signature, encoding, None)
        assert raw.transaction.transaction == sent


async def test_token_accounts_are_listed_and_read(client: AsyncClient) -> None:
    payer = await make_payer(client, 5_500_000)
    owner = payer.key.pubkey()
    balance = (await client.get_token_account_balance(payer.token_account)).value
    assert (balance.amount, balance.decimals, balance.ui_amount_string) == ("5500000", 6, "5.5")
    for opts in (TokenAccountOpts(mint=USDC), TokenAccountOpts(program_id=TOKEN_PROGRAM)):
        (listed,) = (await client.get_token_accounts_by_owner(owner, opts)).value
        assert listed.pubkey == payer.token_account
        assert len(listed.account.data) == 165
    assert (
        await client.get_token_accounts_by_owner(owner, TokenAccountOpts(mint=USDT))
    ).value == []
    opts = TokenAccountOpts(mint=USDC)
    shown: Any
    (shown,) = (await client.get_token_accounts_by_owner_json_parsed(owner, opts)).value
    assert shown.account.data.parsed["info"]["tokenAmount"]["uiAmountString"] == "5.5"
    mint: Any = (await client.get_account_info_json_parsed(USDC)).value
    assert mint.data.parsed["info"]["decimals"] == 6
    supply = int((await client.get_token_supply(USDC)).value.amount)
    assert supply >= 5_500_000
    owned = (
        await client.get_program_accounts(
            TOKEN_PROGRAM, encoding="base64", filters=[165, MemcmpOpts(offset=32, bytes=str(owner))]
        )
    ).value
    assert [keyed.pubkey for keyed in owned] == [payer.token_account]
    several = (await client.get_multiple_accounts([owner, Pubkey.new_unique()])).value
    assert several[0] is not None
    assert several[1] is None


async def test_reads_at_a_commitment_show_the_ledger_of_its_slot(client: AsyncClient) -> None:
    payer, shop = await make_payer(client), Pubkey.new_unique()
    first = (
        await client.send_transaction(await sign(client, pay(payer, shop, 10), payer.key))
    ).value
    await finalize(client, first)
    target = get_associated_token_address(shop, USDC)
    second = (
        await client.send_transaction(await sign(client, pay(payer, shop, 7), payer.key))
    ).value
    assert (await client.get_token_account_balance(target, PROCESSED)).value.amount == "17"

    async def finalized() -> bool | None:
        balance = (await client.get_token_account_balance(target, FINALIZED)).value
        (listed,) = (
            await client.get_token_accounts_by_owner(shop, TokenAccountOpts(mint=USDC), FINALIZED)
        ).value
        status = (await client.get_signature_statuses([second])).value[0]
        assert status is not None
        if status.confirmation_status == TransactionConfirmationStatus.Finalized:
            return True
        assert balance.amount == "10"
        assert int.from_bytes(listed.account.data[64:72], "little") == 10
        return None

    await until(finalized)
    assert (await client.get_token_account_balance(target, FINALIZED)).value.amount == "17"


async def test_history_is_paged(client: AsyncClient) -> None:
    payer, reference = await make_payer(client), Pubkey.new_unique()
    shop = Pubkey.new_unique()
    sent = []
    for amount in range(1, 26):
        signed = await sign(client, pay(payer, shop, amount, reference), payer.key)
        sent.append((await client.send_transaction(signed, UNCHECKED)).value)
    await finalize(client, sent[-1])
    pages: list[list[Signature]] = []
    before: Signature | None = None
    while True:
        page = (
            await client.get_signatures_for_address(
                reference, before=before, limit=10, commitment=FINALIZED
            )
        ).value
        if not page:
            break
        pages.append([line.signature for line in page])
        before = page[-1].signature
    assert [len(page) for page in pages] == [10, 10, 5]
    assert [signature for page in pages for signature in page] == sent[::-1]
    newer = (await client.get_signatures_for_address(reference, until=sent[19])).value
    assert [line.signature for line in newer] == sent[:19:-1]


async def test_versioned_message_with_an_address_table(client: AsyncClient) -> None:
    payer, shop, reference = await make_payer(client), Pubkey.new_unique(), Pubkey.new_unique()
    target = get_associated_token_address(shop, USDC)
    slot = (await client.get_slot(CONFIRMED)).value
    addresses = [target, reference, USDC]
    table, make_table = address_table(payer.key.pubkey(), slot, addresses)
    make_target = create_idempotent_associated_token_account(payer.key.pubkey(), shop, USDC)
    made = await sign(client, [*make_table, make_target], payer.key)
    signature = (await client.send_transaction(made)).value
    # New addresses of a table can be used from the next slot on.
    await client.confirm_transaction(signature, CONFIRMED, sleep_seconds=0.02)
    blockhash = (await client.get_latest_blockhash()).value.blockhash
    message = MessageV0.try_compile(
        payer.key.pubkey(),
        pay(payer, shop, 1_000_000, reference)[1:],
        [AddressLookupTableAccount(table, addresses)],
        blockhash,
    )
    assert reference not in message.account_keys
    signature = (await client.send_transaction(VersionedTransaction(message, [payer.key]))).value
    await finalize(client, signature)

    (line,) = (await client.get_signatures_for_address(reference)).value
    assert line.signature == signature
    with pytest.raises(RPCException, match="maxSupportedTransactionVersion"):
        await client.get_transaction(signature, "json", FINALIZED)
    found = await landed(client, signature, "json")
    assert found.transaction.version == 0
    meta = found.transaction.meta
    assert meta.loaded_addresses.writable == [target]
    assert set(meta.loaded_addresses.readonly) == {reference, USDC}
    keys = [
        *found.transaction.transaction.message.account_keys,
        *meta.loaded_addresses.writable,
        *meta.loaded_addresses.readonly,
    ]
    (received,) = [balance for balance in meta.post_token_balances if balance.owner == shop]
    assert keys[received.account_index] == target
    parsed = await landed(client, signature, "jsonParsed")
    shown = {each.pubkey: each for each in parsed.transaction.transaction.message.account_keys}
    assert shown[target].writable
    assert not shown[reference].writable
    assert not shown[reference].signer


async def test_subscriptions_tell_in_order(network: LocalnetServer, client: AsyncClient) -> None:
    payer, shop, reference = await make_payer(client), Pubkey.new_unique(), Pubkey.new_unique()
    first = (
        await client.send_transaction(await sign(client, pay(payer, shop, 1), payer.key))
    ).value
    await finalize(client, first)
    signed = await sign(client, pay(payer, shop, 2, reference), payer.key)
    target = get_associated_token_address(shop, USDC)
    async with SolanaWsClient(network.ws_url) as socket:
        by_commitment = {
            (
                await socket.signature_subscribe(
                    signature=signed.signatures[0], commitment=commitment
                )
            ).subscription_id: commitment
            for commitment in (FINALIZED, CONFIRMED, PROCESSED)
        }
        account = await socket.account_subscribe(
            pubkey=target, commitment=CONFIRMED, encoding="base64"
        )
        await socket.logs_subscribe(
            filter_=RpcTransactionLogsFilterMentions(reference), commitment=CONFIRMED
        )
        slots = await socket.slot_subscribe()
        await client.send_transaction(signed)
        reached: list[Commitment] = []
        amounts: list[int] = []
        logs: list[Signature] = []
        passed: list[int] = []
        landed_in = 0
        async with asyncio.timeout(DEADLINE_S):
            async for news in socket:
                if isinstance(news, SignatureNotification):
                    assert news.result.value.err is None
                    reached.append(by_commitment[news.subscription])
                    landed_in = landed_in or news.result.context.slot
                elif isinstance(news, AccountNotification):
                    amounts.append(int.from_bytes(news.result.value.data[64:72], "little"))
                elif isinstance(news, LogsNotification):
                    logs.append(news.result.value.signature)
                elif isinstance(news, SlotNotification):
                    assert news.result.slot > news.result.root
                    passed.append(news.result.slot)
                if FINALIZED in reached:
                    break
        assert reached == [PROCESSED, CONFIRMED, FINALIZED]
        assert amounts == [3]
        assert logs == [signed.signatures[0]]
        assert passed[-1] >= landed_in + 8
        assert passed == sorted(set(passed))
        await socket.unsubscribe(slots)
        await socket.unsubscribe(account)
        # A signature that is there already is told at once.
        again = await socket.signature_subscribe(signature=first, commitment=FINALIZED)
        async with asyncio.timeout(DEADLINE_S):
            news = await socket.recv()
            while not isinstance(news, SignatureNotification):
                news = await socket.recv()
        assert news.subscription == again.subscription_id
