"""Hop: the local network to its journal, under a clock that the test moves."""

import asyncio
import json
import sqlite3
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from solders.hash import Hash
from solders.keypair import Keypair
from solders.message import Message
from solders.pubkey import Pubkey
from solders.signature import Signature
from solders.system_program import TransferParams, transfer
from solders.transaction import VersionedTransaction
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError
from websockets.frames import CloseCode

from infra.localnet import network as network_module
from infra.localnet.errors import NetworkBrokenError, RpcError, StateError
from infra.localnet.faucet import USDC_MINT, USDT_MINT, Faucet, found
from infra.localnet.journal import Journal, Landed
from infra.localnet.network import Commitment, LandedEvent, Network, Refused
from infra.localnet.runtime import Runtime
from infra.localnet.server import MAX_OUTBOX, websocket_door
from infra.localnet.settings import LocalnetSettings
from infra.localnet.submission import Submission, decode_wire
from infra.localnet.subscriptions import Hub
from infra.localnet.tokens import associated_address, read_holding, read_mint
from tests.fixtures.services import free_port

SLOT_MS = 400
SOL = 10**9


@dataclass
class HandClock:
    """A wall clock moved by hand."""

    now_ms: int = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now_ms


class Ledger:
    """One run of the network over a state folder."""

    def __init__(self, folder: Path, clock: HandClock) -> None:
        self.clock = clock
        self.journal = Journal(folder)
        self.runtime = Runtime()
        self.key = found(folder, self.journal, self.runtime)
        settings = LocalnetSettings(state_dir=folder, slot_ms=SLOT_MS)
        self.network = Network(settings, self.journal, self.runtime, clock)
        self.faucet = Faucet(self.network, self.key)

    def pass_slots(self, count: int) -> None:
        self.clock.now_ms += count * SLOT_MS
        self.network.advance()

    def give(self, lamports: int) -> Keypair:
        wallet = Keypair()
        self.faucet.airdrop(wallet.pubkey(), lamports)
        return wallet

    def transfer(
        self, sender: Keypair, target: Pubkey, lamports: int, blockhash: Hash | None = None
    ) -> Submission:
        sending = TransferParams(from_pubkey=sender.pubkey(), to_pubkey=target, lamports=lamports)
        used = self.network.blockhash(self.network.tip) if blockhash is None else blockhash
        message = Message.new_with_blockhash([transfer(sending)], sender.pubkey(), used)
        return decode_wire(bytes(VersionedTransaction(message, [sender])))

    def lamports(self, address: Pubkey, commitment: Commitment) -> int:
        account = self.network.view(commitment).account(address)
        return 0 if account is None else account.lamports


class Witness:
    """An observer that writes everything down."""

    def __init__(self) -> None:
        self.landed: list[int] = []
        self.settled: list[tuple[Commitment, bytes, int]] = []
        self.slots: list[tuple[int, int]] = []

    def has_landed(self, event: LandedEvent) -> None:
        self.landed.append(event.slot)

    def has_settled(self, commitment: Commitment, events: list[LandedEvent], slot: int) -> None:
        self.settled += [(commitment, event.signature, slot) for event in events]

    def has_advanced(self, slot: int, parent: int, root: int) -> None:
        assert root < slot
        self.slots.append((parent, slot))


@pytest_asyncio.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = Ledger(tmp_path / "state", HandClock())
    yield opened
    opened.journal.close()


async def test_genesis_has_a_private_key_and_two_mints(ledger: Ledger, tmp_path: Path) -> None:
    key_file = tmp_path / "state" / "faucet.json"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert Keypair.from_bytes(bytes(json.loads(key_file.read_text()))) == ledger.key
    view = ledger.network.view(Commitment.finalized)
    for address in (USDC_MINT, USDT_MINT):
        mint = read_mint(view.account(address))
        assert mint is not None
        assert (mint.decimals, mint.mint_authority, mint.supply) == (6, ledger.key.pubkey(), 0)


async def test_each_commitment_sees_its_own_slot(ledger: Ledger) -> None:
    wallet, levels = Pubkey.new_unique(), list(Commitment)
    ledger.faucet.airdrop(wallet, 1 * SOL)
    landed_in = ledger.network.tip
    assert [ledger.lamports(wallet, level) for level in levels] == [SOL, 0, 0]
    assert ledger.network.commitment_of(landed_in) is Commitment.processed
    ledger.pass_slots(1)
    assert [ledger.lamports(wallet, level) for level in levels] == [SOL, SOL, 0]
    assert ledger.network.commitment_of(landed_in) is Commitment.confirmed
    ledger.faucet.airdrop(wallet, 2 * SOL)
    ledger.pass_slots(6)
    assert [ledger.lamports(wallet, level) for level in levels] == [3 * SOL, 3 * SOL, 0]
    ledger.pass_slots(1)
    assert [ledger.lamports(wallet, level) for level in levels] == [3 * SOL, 3 * SOL, SOL]
    assert ledger.network.commitment_of(landed_in) is Commitment.finalized
    ledger.pass_slots(1)
    assert [ledger.lamports(wallet, level) for level in levels] == [3 * SOL, 3 * SOL, 3 * SOL]


async def test_lists_at_a_commitment_see_its_own_slot(ledger: Ledger) -> None:
    owner = Pubkey.new_unique()
    ledger.faucet.mint(owner, USDC_MINT, 5)
    finalized, processed = Commitment.finalized, Commitment.processed
    token_program = read_holding_program(ledger, owner)
    assert [key for key, _ in ledger.network.view(processed).token_accounts(owner)] == [
        associated_address(owner, USDC_MINT)
    ]
    assert list(ledger.network.view(finalized).token_accounts(owner)) == []
    before = len(list(ledger.network.view(finalized).program_accounts(token_program)))
    assert len(list(ledger.network.view(processed).program_accounts(token_program))) == before + 1
    ledger.pass_slots(8)
    ((_, account),) = ledger.network.view(finalized).token_accounts(owner)
    holding = read_holding(account)
    assert holding is not None
    assert holding.amount_minor == 5


def read_holding_program(ledger: Ledger, owner: Pubkey) -> Pubkey:
    account = ledger.network.view(Commitment.processed).account(
        associated_address(owner, USDC_MINT)
    )
    assert account is not None
    return account.owner


async def test_observers_hear_each_step_once_and_in_order(ledger: Ledger) -> None:
    witness = Witness()
    ledger.network.observe(witness)
    first = ledger.faucet.airdrop(Pubkey.new_unique(), SOL)
    landed_in = ledger.network.tip
    ledger.pass_slots(1)
    second = ledger.faucet.airdrop(Pubkey.new_unique(), SOL)
    for _ in range(3):
        ledger.pass_slots(5)  # The wall clock can jump over slots; none is forgotten.
    assert witness.landed == [landed_in, landed_in + 1]
    assert [(level, signature) for level, signature, _ in witness.settled] == [
        (Commitment.confirmed, first),
        (Commitment.confirmed, second),
        (Commitment.finalized, first),
        (Commitment.finalized, second),
    ]
    assert [slot for _, slot in witness.slots] == [landed_in + step for step in (1, 6, 11, 16)]


async def test_clock_sysvar_follows_the_wall_clock(ledger: Ledger) -> None:
    address = Pubkey.from_string("SysvarC1ock11111111111111111111111111111111")
    ledger.pass_slots(10_000)
    sysvar = ledger.runtime.account(address)
    assert sysvar is not None
    assert int.from_bytes(sysvar.data[:8], "little") == ledger.network.tip
    assert int.from_bytes(sysvar.data[32:40], "little") == ledger.clock.now_ms // 1000
    assert ledger.network.unix_time(ledger.network.tip) == ledger.clock.now_ms // 1000


async def test_blockhash_serves_150_slots(ledger: Ledger) -> None:
    wallet, target = ledger.give(10 * SOL), Pubkey.new_unique()
    blockhash = ledger.network.blockhash(ledger.network.tip)
    ledger.pass_slots(150)
    assert isinstance(
        ledger.network.submit(ledger.transfer(wallet, target, SOL, blockhash)), Landed
    )
    ledger.pass_slots(1)
    refused = ledger.network.submit(ledger.transfer(wallet, target, 2 * SOL, blockhash))
    assert refused == Refused("BlockhashNotFound", [])


async def test_a_repeat_is_refused_in_every_form(ledger: Ledger) -> None:
    wallet, target = ledger.give(10 * SOL), Pubkey.new_unique()
    submission = ledger.transfer(wallet, target, SOL)
    assert isinstance(ledger.network.submit(submission), Landed)
    assert ledger.network.submit(submission) == Refused("AlreadyProcessed", [])
    # The same message under another signature is the same submission to the runtime.
    resigned = VersionedTransaction.populate(submission.message, [Signature.new_unique()])
    assert ledger.network.submit(decode_wire(bytes(resigned))) == Refused("AlreadyProcessed", [])
    assert ledger.lamports(target, Commitment.processed) == SOL


async def test_what_the_runtime_refuses_leaves_no_trace(ledger: Ledger) -> None:
    pauper, target = Keypair(), Pubkey.new_unique()
    count = ledger.network.landed_count
    outcome = ledger.network.submit(ledger.transfer(pauper, target, SOL))
    assert isinstance(outcome, Refused)
    assert outcome.err == "AccountNotFound"
    assert ledger.network.landed_count == count
    assert ledger.journal.mentions(pauper.pubkey(), 0, 2**62, 10) == []


async def test_restart_continues_where_everything_is_final(tmp_path: Path) -> None:
    folder, clock = tmp_path / "state", HandClock()
    first = Ledger(folder, clock)
    wallet, target = first.give(10 * SOL), Pubkey.new_unique()
    first.faucet.mint(target, USDC_MINT, 7)
    submission = first.transfer(wallet, target, SOL)
    landed = first.network.submit(submission)
    assert isinstance(landed, Landed)
    fresh = first.transfer(wallet, target, 2 * SOL)
    first.journal.close()

    second = Ledger(folder, clock)
    assert second.key == first.key
    assert second.network.commitment_of(landed.slot) is Commitment.finalized
    assert second.lamports(target, Commitment.finalized) == SOL
    assert second.lamports(wallet.pubkey(), Commitment.finalized) == 9 * SOL - 5000
    assert second.network.submit(submission) == Refused("AlreadyProcessed", [])
    assert isinstance(second.network.submit(fresh), Landed)
    assert second.network.landed_count == first.network.landed_count + 1
    found_again = second.journal.find(submission.signature)
    assert found_again == landed
    second.journal.close()


async def test_emptied_account_is_gone_after_a_restart(tmp_path: Path) -> None:
    folder, clock = tmp_path / "state", HandClock()
    first = Ledger(folder, clock)
    wallet = first.give(SOL)
    out = first.transfer(wallet, Pubkey.new_unique(), SOL - 5000)
    assert isinstance(first.network.submit(out), Landed)
    assert first.lamports(wallet.pubkey(), Commitment.processed) == 0
    first.journal.close()
    second = Ledger(folder, clock)
    assert second.network.view(Commitment.processed).account(wallet.pubkey()) is None
    second.journal.close()


async def test_full_disk_breaks_the_network_and_a_restart_mends_it(tmp_path: Path) -> None:
    folder, clock = tmp_path / "state", HandClock()
    first = Ledger(folder, clock)
    wallet, target = first.give(100 * SOL), Pubkey.new_unique()
    database = first.journal._db
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    database.execute(f"PRAGMA max_page_count = {pages}")
    accepted = 0

    def fill() -> None:
        nonlocal accepted
        for lamports in range(SOL, SOL + 200):
            outcome = first.network.submit(first.transfer(wallet, target, lamports))
            assert isinstance(outcome, Landed)
            accepted += 1

    with pytest.raises(sqlite3.OperationalError, match="full"):
        fill()
    with pytest.raises(NetworkBrokenError):
        first.network.broken.result()
    with pytest.raises(NetworkBrokenError):
        first.network.submit(first.transfer(wallet, target, 5))
    first.journal.close()

    second = Ledger(folder, clock)
    sent = sum(range(SOL, SOL + accepted))
    assert second.lamports(target, Commitment.finalized) == sent
    assert second.lamports(wallet.pubkey(), Commitment.finalized) == (
        100 * SOL - sent - 5000 * accepted
    )
    again = second.network.submit(second.transfer(wallet, target, 5))
    assert isinstance(again, Landed)
    second.journal.close()


async def test_full_slot_asks_to_wait(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_module, "MAX_LANDED_PER_SLOT", 2)
    for _ in range(2):
        ledger.faucet.airdrop(Pubkey.new_unique(), SOL)
    with pytest.raises(RpcError, match="slot is full"):
        ledger.faucet.airdrop(Pubkey.new_unique(), SOL)
    assert not ledger.network.broken.done()
    ledger.pass_slots(1)
    ledger.faucet.airdrop(Pubkey.new_unique(), SOL)


@pytest.mark.usefixtures("ledger")
async def test_state_folder_belongs_to_one_network(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="in use by another local network"):
        Journal(tmp_path / "state")


async def test_ledger_without_its_key_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    Ledger(folder, HandClock()).journal.close()
    (folder / "faucet.json").unlink()
    journal = Journal(folder)
    try:
        with pytest.raises(StateError, match=r"faucet\.json cannot be read"):
            found(folder, journal, Runtime())
    finally:
        journal.close()


async def test_journal_of_another_schema_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    Ledger(folder, HandClock()).journal.close()
    with sqlite3.connect(folder / "journal.sqlite") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StateError, match="schema 99"):
        Journal(folder)


async def test_client_that_does_not_read_is_disconnected(ledger: Ledger) -> None:
    hub, port = Hub(ledger.network, ledger.journal), free_port()
    subscribe = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "slotSubscribe"})
    async with (
        asyncio.timeout(20),
        websocket_door("127.0.0.1", port, hub),
        connect(f"ws://127.0.0.1:{port}") as slow,
        connect(f"ws://127.0.0.1:{port}") as idle,
    ):
        await slow.send(subscribe)
        assert "result" in json.loads(await slow.recv())
        for slot in range(MAX_OUTBOX + 1):
            hub.has_advanced(slot + 1, slot, 0)

        async def read_on() -> None:
            async for _ in slow:
                pass

        with pytest.raises(ConnectionClosedError) as caught:
            await read_on()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == CloseCode.TRY_AGAIN_LATER
        await idle.send(subscribe)
        assert "result" in json.loads(await idle.recv())
