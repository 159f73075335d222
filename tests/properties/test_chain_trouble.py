"""Payers through forks, failing nodes and restarts: the books equal what the chain finalized.

Each life has a network's worth of trouble (infra.localnet.trouble) between the real watcher and the
real local network, and ends in calm. Then SQL that shares no code with the core compares every
receipt, payment and account with what the simulator finalized. A failure names its seed, and
GIOVANG_TEST_TROUBLE_SEED lives that life again: the same payers, forks and faults; only where in a
sweep the watcher is killed, and which calls time out, falls by the clock.
CI lives the same few lives each time; GIOVANG_TEST_TROUBLE_LIVES sets how many, and then they are
new ones.
"""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from random import Random
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from solana.rpc.async_api import AsyncClient
from solana.rpc.commitment import Confirmed
from solders.keypair import Keypair

from api.database import Database, new_id
from api.errors import ChainUnavailable, DatabaseUnavailable
from api.settings import WatcherSettings
from api.watcher import Watcher, providers_of
from infra.localnet.trouble_doors import doors
from infra.localnet.trouble_faults import Faults
from infra.localnet.trouble_forks import Forks
from infra.localnet.trouble_node import TroubledNode
from tests.fixtures.chain_auditor import differences
from tests.fixtures.ledgers import LedgerDatabase, ledger_of_its_own
from tests.fixtures.localnet import make_localnet
from tests.fixtures.services import DatabaseServer, LocalnetServer, free_port
from tests.fixtures.trouble import Payers, funded

GIVEN_LIVES: Final = os.environ.get("GIOVANG_TEST_TROUBLE_LIVES")
LIVES: Final = int(GIVEN_LIVES or "4")
SEED: Final = os.environ.get("GIOVANG_TEST_TROUBLE_SEED")
SLOTS: Final = 40
SLOT_MS: Final = 400
# The network makes chain transactions final on its own, long before the simulator does.
NETWORK_SLOT_MS: Final = "40"
LIVES_TO_MEET_ALL: Final = 20
MOST_CALM_SLOTS: Final = 150
# Sweeps in which nothing more may happen once the chain has decided and one was complete.
SETTLED_SWEEPS: Final = 3
RPC_TIMEOUT_S: Final = 0.3
# When all is calm an answer that takes its time is the machine's doing, and waited for.
CALM_RPC_TIMEOUT_S: Final = 30.0
HASTE: Final = "UPDATE chain_set_aside SET next_at = now() WHERE outcome IS NULL"
LIVES_DEADLINE_S: Final = 120 + LIVES * 120


@pytest.fixture(scope="module")
def template(ledger_cluster: DatabaseServer) -> Iterator[LedgerDatabase]:
    with ledger_of_its_own(ledger_cluster) as database:
        database.migrate()
        yield database


@pytest.fixture(scope="module")
def network(tmp_path_factory: Any) -> Iterator[LocalnetServer]:
    server = make_localnet(tmp_path_factory.mktemp("trouble"), slot_ms=NETWORK_SLOT_MS)
    server.start()
    yield server
    server.stop()


class Life:
    """One life: a merchant, payers, nodes in trouble, and a watcher that is often restarted."""

    def __init__(self, seed: int, database: LedgerDatabase, network: LocalnetServer) -> None:
        self.draw = Random(f"{seed}:life")
        self.database = database
        self.network = network
        self.forks = Forks(seed, 1_000)
        self.wallet = str(Keypair().pubkey())
        # Two providers of one chain, each with troubles of its own, in every other life.
        self.faults = [Faults(seed + number) for number in range(self.draw.choice([1, 2]))]
        self.nodes = [
            TroubledNode(network.rpc_url, self.forks, faults, slot_ms=SLOT_MS)
            for faults in self.faults
        ]
        self.urls: list[str] = []
        self.outcomes: Counter[str] = Counter()

    async def live(self, payer: Keypair) -> dict[str, list[tuple[Any, ...]]]:
        """Live it to its end; return what the books say that the chain does not."""
        async with AsyncExitStack() as parts:
            for node, faults in zip(self.nodes, self.faults, strict=True):
                parts.push_async_callback(node.close)
                port = free_port(span=2)
                self.urls.append(f"http://127.0.0.1:{port}")
                await parts.enter_async_context(
                    doors("127.0.0.1", port, node, faults, self.network.ws_url, silence_s=1)
                )
            client = await parts.enter_async_context(
                AsyncClient(self.network.rpc_url, commitment=Confirmed, http2=False)
            )
            self.pool = await parts.enter_async_context(
                Database(self.database.url("giovang_watcher"), application_name="w", pool_size=2)
            )
            sql = parts.enter_context(self.database.superuser())
            payers = Payers(client, payer, self._merchant(sql), self.wallet, self.draw, sql)
            self._start_watcher()
            parts.push_async_callback(self._stop_watcher)
            await self._trouble(payers)
            await self._calm()
            final = self.forks.truth()
            truth = [one for one in payers.sent if one.signature in final and not one.fails]
            self.outcomes.update(final=len(truth), gone=len(payers.sent) - len(truth))
            return differences(sql, truth)

    def _merchant(self, sql: Any) -> str:
        merchant_id = new_id("mer")
        sql.execute(
            "INSERT INTO merchants (id, name, trade, timezone, country, fee_bps)"
            " VALUES (%s, 'M', 'cafe', 'Asia/Ho_Chi_Minh', 'VN', 100)",
            (merchant_id,),
        )
        if self.draw.random() < 0.5:
            sql.execute(
                "INSERT INTO confirmation_policies (id, merchant_id, up_to_minor, commitment,"
                " reason, set_by) VALUES (%s, %s, 1500000, 'confirmed', 'a test', 'test')",
                (new_id("cfp"), merchant_id),
            )
        return merchant_id

    async def _trouble(self, payers: Payers) -> None:
        for _ in range(SLOTS):
            if self.draw.random() < 0.3:
                await payers.act()
            self._next_slot()
            if self.draw.random() < 0.15:
                await self._restart_watcher()
            if self.draw.random() < 0.7:
                await self._sweep(kill_after_s=self.draw.choice([None, None, None, 0.02, 0.1]))

    async def _calm(self) -> None:
        """End all trouble; return once the chain has decided and the watcher has caught up."""
        for faults in self.faults:
            faults.is_calm = True
        await self._restart_watcher(page_limit=1000, rpc_timeout_s=CALM_RPC_TIMEOUT_S)
        quiet = 0
        for _ in range(MOST_CALM_SLOTS):
            self._next_slot()
            complete = await self._sweep(kill_after_s=None)
            quiet = quiet + 1 if complete and self.forks.is_decided() else 0
            if quiet == SETTLED_SWEEPS:
                return
        raise AssertionError("the watcher did not catch up")

    def _next_slot(self) -> None:
        self.forks.advance(chance=self.faults[0].fork_chance())
        for node in self.nodes:
            node.enter()

    async def _sweep(self, *, kill_after_s: float | None) -> bool:
        """Sweep once; killed, or without an answer, it must leave nothing half-done behind."""
        with self.database.superuser() as sql:
            sql.execute(HASTE)
        sweep = asyncio.create_task(self.watcher.sweep())
        if kill_after_s is not None:
            await asyncio.wait((sweep,), timeout=kill_after_s)
            sweep.cancel()
        try:
            done = await sweep
        except (ChainUnavailable, DatabaseUnavailable):
            self.outcomes["refused"] += 1
            return False
        except asyncio.CancelledError:
            self.outcomes["killed"] += 1
            await self._restart_watcher()
            return False
        self.outcomes["swept"] += 1
        return done.complete

    def _start_watcher(
        self, *, page_limit: int | None = None, rpc_timeout_s: float = RPC_TIMEOUT_S
    ) -> None:
        watching = WatcherSettings(
            watcher_database_url=self.database.url("giovang_watcher"),
            solana_rpc_url=self.urls[0],
            solana_more_rpc_urls=tuple(self.urls[1:]),
            collection_wallet=self.wallet,
            rpc_timeout_s=rpc_timeout_s,
            page_limit=page_limit or self.draw.choice([3, 1000]),
        )
        # A slot of a life lasts some milliseconds, so what is done by the minute is done each time.
        watching = watching.model_copy(update={"second_look_s": 0})
        self.providers = providers_of(watching)
        self.watcher = Watcher(self.pool, self.providers, watching, lambda _: None)

    async def _stop_watcher(self) -> None:
        await self.providers.close()

    async def _restart_watcher(
        self, *, page_limit: int | None = None, rpc_timeout_s: float = RPC_TIMEOUT_S
    ) -> None:
        await self._stop_watcher()
        self._start_watcher(page_limit=page_limit, rpc_timeout_s=rpc_timeout_s)
        self.outcomes["restarts"] += 1


@pytest.fixture(scope="module")
def payer(network: LocalnetServer) -> Keypair:
    async def fund() -> Keypair:
        async with AsyncClient(network.rpc_url, commitment=Confirmed, http2=False) as client:
            return await funded(client)

    return asyncio.run(fund())


@pytest.mark.timeout(LIVES_DEADLINE_S)
def test_the_books_equal_what_the_chain_finalized(
    ledger_cluster: DatabaseServer,
    template: LedgerDatabase,
    network: LocalnetServer,
    payer: Keypair,
) -> None:
    def live(seed: int) -> None:
        with ledger_of_its_own(ledger_cluster, copied_from=template) as database:
            life = Life(seed, database, network)
            try:
                assert asyncio.run(life.live(payer)) == {}
            except Exception as failure:
                failure.add_note(f"live it again with GIOVANG_TEST_TROUBLE_SEED={seed}")
                raise
            sys.stderr.write(f"seed {seed}: {dict(life.outcomes)}\n")
            reached.update(life.outcomes)
            reached["rolled back"] += life.forks.rolled_back

    reached: Counter[str] = Counter()
    if SEED is not None:
        live(int(SEED))
        return
    settings(
        max_examples=LIVES,
        deadline=None,
        database=None,
        derandomize=GIVEN_LIVES is None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )(given(seed=st.integers(0, 2**32 - 1))(live))()
    # A run without trouble would prove nothing; a few lives may be spared some of it.
    wanted = ("rolled back", "gone", "refused", "killed", "restarts", "final")
    for trouble in wanted if LIVES >= LIVES_TO_MEET_ALL else ("restarts", "final"):
        assert reached[trouble] > 0, reached
    sys.stderr.write(f"{LIVES} lives: {dict(reached)}\n")
