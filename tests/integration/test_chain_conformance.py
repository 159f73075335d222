"""The rules of `api.chain.interface.Chain`, attacked on a real network: one parameter a chain.

A second chain brings a network and a `World` of its own: a reader of it, and a wallet that does the
few things below. What passes here can be put under the watcher.
"""

import asyncio
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
from solana.rpc.async_api import AsyncClient
from solders.address_lookup_table_account import AddressLookupTableAccount
from solders.keypair import Keypair
from solders.message import MessageV0
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.transaction import VersionedTransaction

from api.chain.interface import Chain, Heard
from api.chain.model import Commitment, SignatureInfo, TokenAccount
from api.chain.receipts import receipt_of
from api.chain.rpc import ChainReader
from api.chain.solana_pay import token_account
from api.contract import USDC_MINT, Asset
from api.errors import ChainUnavailable
from tests.fixtures import localnet
from tests.fixtures.api import itself
from tests.fixtures.services import LocalnetServer

T = TypeVar("T")
DEADLINE_S = 60.0
TIMEOUT_S = 5.0


class World(Protocol):
    """A reader of a network, an account of ours that nobody used, and a wallet with tokens."""

    chain: Chain
    ours: TokenAccount
    payer_address: str

    async def open(self) -> None:
        """Connect; the payer has at least 50 tokens."""

    async def close(self) -> None:
        """Disconnect."""

    def new_reference(self) -> str:
        """Return an address that nobody ever named."""

    async def pay(self, amount_minor: int, *references: str) -> str:
        """Send to our account, naming these addresses as well; return the signature."""

    async def pay_twice_at_once(self, first: int, second: int, reference: str) -> str:
        """Send twice in one chain transaction."""

    async def pay_with_folded_addresses(self, amount_minor: int, reference: str) -> str:
        """Send in the chain's most compressed form, where it has several."""

    async def fail(self, reference: str) -> str:
        """Have a chain transaction land that names an address and fails."""

    def hang(self) -> None:
        """Have the network hang: it accepts questions and does not answer."""

    def resume(self) -> None:
        """Have it answer again."""

    def stop(self) -> None:
        """End the network's process; nobody listens any more."""

    def start(self) -> None:
        """Start it again, with what it had."""


class Solana:
    """Solana on the local network."""

    def __init__(self, server: LocalnetServer) -> None:
        self._server = server
        self._wallet = Keypair().pubkey()
        wallet = str(self._wallet)
        self.ours = TokenAccount(token_account(wallet, USDC_MINT), wallet, USDC_MINT, Asset.USDC)

    async def open(self) -> None:
        self.chain: Chain = ChainReader(self._server.rpc_url, timeout_s=TIMEOUT_S)
        self._client = AsyncClient(self._server.rpc_url, http2=False)
        self._payer = await localnet.make_payer(self._client)
        self.payer_address = str(self._payer.key.pubkey())

    async def close(self) -> None:
        await self.chain.close()
        await self._client.close()

    def new_reference(self) -> str:
        return str(Keypair.from_seed(secrets.token_bytes(32)).pubkey())

    async def pay(self, amount_minor: int, *references: str) -> str:
        keys = [Pubkey.from_string(reference) for reference in references]
        return await self._send(localnet.pay(self._payer, self._wallet, amount_minor, *keys))

    async def pay_twice_at_once(self, first: int, second: int, reference: str) -> str:
        key = Pubkey.from_string(reference)
        return await self._send(
            [
                *localnet.pay(self._payer, self._wallet, first, key, memo="one"),
                *localnet.pay(self._payer, self._wallet, second, key)[1:],
            ]
        )

    async def pay_with_folded_addresses(self, amount_minor: int, reference: str) -> str:
        key = Pubkey.from_string(reference)
        slot = (await self._client.get_slot(localnet.CONFIRMED)).value
        ours = Pubkey.from_string(self.ours.address)
        folded = [ours, key]
        table, making = localnet.address_table(self._payer.key.pubkey(), slot, folded)
        made = await self._send(making)
        await self._client.confirm_transaction(
            Signature.from_string(made), localnet.CONFIRMED, sleep_seconds=0.02
        )
        # A table serves from the slot after its last change on.
        changed = (await self._client.get_slot(localnet.PROCESSED)).value
        await localnet.until(lambda: self._is_past(changed))
        latest = (await self._client.get_latest_blockhash(localnet.PROCESSED)).value.blockhash
        message = MessageV0.try_compile(
            self._payer.key.pubkey(),
            localnet.pay(self._payer, self._wallet, amount_minor, key),
            [AddressLookupTableAccount(table, folded)],
            latest,
        )
        assert len(message.address_table_lookups) == 1
        sent = await self._client.send_transaction(VersionedTransaction(message, [self._payer.key]))
        return str(sent.value)

    async def _is_past(self, slot: int) -> bool | None:
        return (await self._client.get_slot(localnet.PROCESSED)).value > slot or None

    async def fail(self, reference: str) -> str:
        key = Pubkey.from_string(reference)
        much = localnet.pay(self._payer, self._wallet, 10**15, key)
        signed = await localnet.sign(self._client, much, self._payer.key)
        return str((await self._client.send_transaction(signed, localnet.UNCHECKED)).value)

    async def _send(self, instructions: list[Any]) -> str:
        signed = await localnet.sign(self._client, instructions, self._payer.key)
        return str((await self._client.send_transaction(signed)).value)

    def hang(self) -> None:
        assert self._server.pid
        os.kill(self._server.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._server.pid
        os.kill(self._server.pid, signal.SIGCONT)

    def stop(self) -> None:
        self._server.stop()

    def start(self) -> None:
        self._server.start()


@contextmanager
def solana(folder: Path) -> Iterator[Callable[[], World]]:
    server = localnet.make_localnet(folder, slot_ms="50")
    server.probe = itself(server, '"serving"', server.probe)
    server.start()
    yield lambda: Solana(server)
    server.stop()


CHAINS = {"solana": solana}


@pytest.fixture(scope="module", params=CHAINS)
def network(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], World]]:
    with CHAINS[request.param](tmp_path_factory.mktemp(request.param)) as make_world:
        yield make_world


@pytest.fixture
async def world(network: Callable[[], World]) -> AsyncIterator[World]:
    made = network()
    await made.open()
    yield made
    await made.close()


async def until(ask: Callable[[], Awaitable[T | None]], *, what: str) -> T:
    end = time.monotonic() + DEADLINE_S
    while True:
        found = await ask()
        if found is not None:
            return found
        assert time.monotonic() < end, f"{what} did not happen"
        await asyncio.sleep(0.02)


async def landed(world: World, signature: str, commitment: Commitment) -> Any:
    return await until(
        lambda: world.chain.transaction(signature, commitment),
        what=f"{signature} {commitment.value}",
    )


async def history(world: World, account: str) -> list[SignatureInfo]:
    return await world.chain.signatures(account, before=None, until=None, limit=1000)


async def test_a_transfer_from_confirmed_to_finalized(world: World) -> None:
    reference = world.new_reference()
    assert await history(world, reference) == []
    signature = await world.pay(9_560_230, reference)
    seen = await landed(world, signature, Commitment.CONFIRMED)
    said = await world.chain.finalized_slot()
    if await world.chain.transaction(signature, Commitment.FINALIZED) is None:
        # What is not final yet lies beyond what was said to be before.
        assert said <= seen.slot
    final = await landed(world, signature, Commitment.FINALIZED)
    assert final == seen
    assert await world.chain.finalized_slot() >= final.slot
    receipt = receipt_of(final, world.ours)
    assert receipt is not None
    assert (receipt.amount_minor, receipt.payer_address) == (9_560_230, world.payer_address)
    assert reference in receipt.keys
    for account in (reference, world.ours.address):
        (line,) = await history(world, account)
        assert (line.signature, line.slot, line.failed) == (signature, final.slot, False)
        assert line.finalized
    assert await world.chain.still_known([signature]) == {signature}
    # Asking changes nothing, and what is final is told the same for ever.
    again = await asyncio.gather(
        *(world.chain.transaction(signature, Commitment.FINALIZED) for _ in range(5))
    )
    assert again == [final] * 5


async def test_amounts_are_what_the_account_gained(world: World) -> None:
    reference = world.new_reference()
    first = await landed(world, await world.pay(1, reference), Commitment.CONFIRMED)
    twice = await landed(
        world, await world.pay_twice_at_once(2_000_000, 3, reference), Commitment.CONFIRMED
    )
    found = [receipt_of(one, world.ours) for one in (first, twice)]
    assert [one and one.amount_minor for one in found] == [1, 2_000_003]
    ours = next(one for one in twice.movements if one.account == world.ours.address)
    assert (ours.before_minor, ours.after_minor, ours.owner) == (1, 2_000_004, world.ours.owner)


async def test_folded_addresses_are_among_the_keys(world: World) -> None:
    reference = world.new_reference()
    await landed(world, await world.pay(5), Commitment.CONFIRMED)
    signature = await world.pay_with_folded_addresses(7_000_000, reference)
    receipt = receipt_of(await landed(world, signature, Commitment.CONFIRMED), world.ours)
    assert receipt is not None
    assert receipt.amount_minor == 7_000_000
    assert {reference, world.ours.address} <= set(receipt.keys)
    assert [line.signature for line in await history(world, reference)] == [signature]


async def test_one_that_failed_is_a_line_and_moves_nothing(world: World) -> None:
    reference = world.new_reference()
    await landed(world, await world.pay(5), Commitment.CONFIRMED)
    signature = await world.fail(reference)
    found = await landed(world, signature, Commitment.CONFIRMED)
    assert found.failed
    assert receipt_of(found, world.ours) is None
    (line,) = await history(world, reference)
    assert (line.signature, line.failed) == (signature, True)
    assert await world.chain.still_known([signature]) == set()


async def test_a_history_is_paged_newest_first_without_a_gap(world: World) -> None:
    reference = world.new_reference()
    sent = [await world.pay(number + 1, reference) for number in range(5)]
    for signature in sent:
        await landed(world, signature, Commitment.CONFIRMED)
    whole = await history(world, reference)
    assert [line.signature for line in whole] == sent[::-1]
    assert [line.slot for line in whole] == sorted((line.slot for line in whole), reverse=True)

    async def page(before: str | None, until: str | None, limit: int) -> list[str]:
        lines = await world.chain.signatures(reference, before=before, until=until, limit=limit)
        return [line.signature for line in lines]

    assert await page(None, None, 2) == [sent[4], sent[3]]
    assert await page(sent[3], None, 2) == [sent[2], sent[1]]
    assert await page(sent[1], None, 2) == [sent[0]]
    assert await page(None, sent[1], 1000) == [sent[4], sent[3], sent[2]]
    assert await page(sent[3], sent[1], 1000) == [sent[2]]
    assert await page(sent[0], None, 1000) == []


async def test_the_finalized_position_grows(world: World) -> None:
    first = await world.chain.finalized_slot()

    async def more() -> int | None:
        now = await world.chain.finalized_slot()
        assert now >= first
        return now if now > first else None

    await until(more, what="growth")


async def test_news_comes_for_what_was_asked_and_signs_of_life_always(world: World) -> None:
    # The account is made by its first transfer; before that it can be heard of all the same.
    async with world.chain.listen([world.ours.address]) as news:
        reference = world.new_reference()
        signature = await world.pay(1_000_000, reference)
        told: dict[str, int] = {}
        async with asyncio.timeout(DEADLINE_S):
            while len(told) < 3:
                heard = await anext(news)
                if heard.account is None:
                    told.setdefault("alive", heard.slot)
                else:
                    assert heard.account == world.ours.address
                    told.setdefault("final" if heard.is_final else "seen", heard.slot)
    final = await landed(world, signature, Commitment.FINALIZED)
    assert told["seen"] == final.slot
    assert told["final"] >= final.slot


async def to_the_end(news: AsyncIterator[Heard]) -> None:
    async for heard in news:
        assert heard.slot >= 0


async def test_silence_is_never_an_answer(world: World) -> None:
    signature = await world.pay(1_000_000)
    await landed(world, signature, Commitment.CONFIRMED)
    questions: list[Callable[[], Awaitable[object]]] = [
        world.chain.finalized_slot,
        lambda: history(world, world.ours.address),
        lambda: world.chain.transaction(signature, Commitment.CONFIRMED),
        lambda: world.chain.still_known([signature]),
    ]

    async def refused(question: Callable[[], Awaitable[object]]) -> None:
        began = time.monotonic()
        with pytest.raises(ChainUnavailable):
            await question()
        assert time.monotonic() - began < 20 * TIMEOUT_S

    world.hang()
    try:
        await asyncio.gather(*(refused(question) for question in questions))
    finally:
        world.resume()
    assert await world.chain.still_known([signature]) == {signature}
    async with world.chain.listen([world.ours.address]) as news:
        await asyncio.to_thread(world.stop)
        with pytest.raises(ChainUnavailable):
            await asyncio.wait_for(to_the_end(news), DEADLINE_S)
    try:
        await asyncio.gather(*(refused(question) for question in questions))
        with pytest.raises(ChainUnavailable):
            async with world.chain.listen([world.ours.address]):
                pass
    finally:
        await asyncio.to_thread(world.start)
