"""A finalized transfer is being booked, and the process is killed at each step: one effect.

The steps are messages to PostgreSQL, as in test_api_killed_at_each_step; after each death the
receipt comes again, as the chain's history does to the next watcher.
"""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import pytest

from api.chain.model import Receipt
from api.contract import USDC_MINT
from api.database import new_id
from api.payments import service
from api.payments.model import CreatePayment, Payment
from tests.fixtures.core import Core, receipt
from tests.fixtures.core_auditor import broken_laws
from tests.fixtures.ledgers import LedgerDatabase, ledger_of_its_own
from tests.fixtures.pgproxy import PostgresProxy, Side
from tests.fixtures.services import CHECKOUT, BrokerServer, DatabaseServer
from tests.fixtures.settle_once import as_json

DEADLINE_S = 90.0


@pytest.fixture(scope="module")
def ledger(ledger_cluster: DatabaseServer) -> Iterator[LedgerDatabase]:
    with ledger_of_its_own(ledger_cluster) as database:
        database.migrate()
        yield database


@pytest.fixture(scope="module")
def core(ledger: LedgerDatabase, redis_server: BrokerServer) -> Iterator[Core]:
    with Core(ledger.url, redis_server.url) as core:
        yield core


@pytest.fixture(scope="module")
def proxy(ledger: LedgerDatabase) -> Iterator[PostgresProxy]:
    with PostgresProxy(ledger.server.port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def merchant(ledger: LedgerDatabase) -> str:
    merchant_id = new_id("mer")
    with ledger.superuser() as sql:
        sql.execute(
            "INSERT INTO merchants (id, name, trade, timezone, country)"
            " VALUES (%s, 'M', 'cafe', 'Asia/Ho_Chi_Minh', 'VN')",
            (merchant_id,),
        )
    return merchant_id


def a_paid_payment(
    core: Core, merchant: str, slot: int, *, escrow: bool
) -> tuple[Payment, Receipt]:
    """Create a payment; return it with the receipt that covers it and a little more."""
    quote = core.wait(core.quote("USDC"))
    made = core.attempt(
        "api",
        lambda unit: service.create(
            unit,
            CreatePayment(amount="250000", asset="USDC", escrow=escrow),
            mode="test",
            quote=quote,
            chain=core.chain,
        ),
        merchant_id=merchant,
    )
    assert isinstance(made, Payment)
    came = receipt(
        made,
        made.asset_amount_minor + 7,
        asset="USDC",
        late=False,
        payer=0,
        slot=slot,
        mint=USDC_MINT,
    )
    return made, came


def settling(url: str, came: Receipt) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fixtures.settle_once", url],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(as_json(came))
    process.stdin.close()
    return process


def settle_whole(url: str, came: Receipt) -> None:
    with settling(url, came) as process:
        assert process.wait(DEADLINE_S) == 0, process.stdout and process.stdout.read()


def kill_at(proxy: PostgresProxy, url: str, came: Receipt, step: int, side: Side) -> None:
    proxy.arm(step, side)
    with settling(url, came) as process:
        frozen = proxy.frozen.wait(DEADLINE_S)
        process.kill()
        proxy.release()
    assert frozen, f"step {step} was never reached"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("escrow", [False, True], ids=["at once", "into escrow"])
def test_a_settlement_killed_at_any_step_books_once(
    ledger: LedgerDatabase, core: Core, proxy: PostgresProxy, merchant: str, escrow: bool
) -> None:
    url = proxy.url(ledger.url("giovang_watcher"))
    slot = 1 if not escrow else 1_000
    _, came = a_paid_payment(core, merchant, slot, escrow=escrow)
    proxy.arm(None)
    settle_whole(url, came)
    steps = proxy.count
    assert steps >= 8

    # Every step before PostgreSQL has it; the last two, COMMIT and its Sync, also after.
    deaths: list[tuple[int, Side]] = [(step, "before") for step in range(1, steps + 1)]
    deaths += [(step, "after") for step in range(max(1, steps - 3), steps + 1)]
    if escrow:
        # Only the hold is new in this way of settling: every second death is enough.
        deaths = deaths[::2]
    for number, (step, side) in enumerate(deaths, start=1):
        payment, came = a_paid_payment(core, merchant, slot + number, escrow=escrow)
        kill_at(proxy, url, came, step, side)
        settle_whole(url, came)
        found = core.attempt("watcher", partial(service.get, payment_id=payment.id))
        assert isinstance(found, Payment)
        assert found.status == ("escrow_held" if escrow else "completed"), (step, side)
        assert found.received_minor == came.amount_minor, (step, side)

    with ledger.superuser() as sql:
        assert broken_laws(sql) == {}
        booked = sql.execute(
            "SELECT count(*), count(DISTINCT payment_id) FROM ledger_entries WHERE kind = %s",
            ("escrow_held" if escrow else "payment_completed",),
        ).fetchone()
    assert booked == (len(deaths) + 1, len(deaths) + 1)
