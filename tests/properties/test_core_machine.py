"""Random lives of payments, refunds, escrow, holds and payouts: no law of the books is ever broken.

Hypothesis drives the product's own services against PostgreSQL, each step as the role that makes
it. A step is made or refused; any other error fails the run. At the end of each life the auditor's
laws, SQL that shares no code with the core, must hold for every row. CI lives some dozens of lives,
the same ones each time; GIOVANG_TEST_CORE_LIVES sets how many, and then they are new ones. A
failure names its seed, and GIOVANG_TEST_CORE_SEED with as many lives lives those again: the same
steps in the same order.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar, Final, LiteralString

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test as live

from api.database import Unit, new_id
from api.errors import RefundExceedsPayment
from api.payments import exceptions, refunds
from api.payments.model import (
    AcceptMoney,
    AssignTransfer,
    CreateRefund,
    Refund,
    ReturnTransfer,
)
from api.payouts import service as payouts
from api.payouts.model import AmendPayout, CreatePayout, Payout
from tests.fixtures.core import Core
from tests.fixtures.core_life import (
    MOST_ROWS,
    NEWEST,
    OPEN,
    Fits,
    Life,
    Paid,
    Pick,
    Standing,
    a_signature,
    is_lost,
    is_open,
    numbers,
    picks,
    step,
)
from tests.fixtures.ledgers import LedgerDatabase, ledger_of_its_own
from tests.fixtures.services import BrokerServer, DatabaseServer

GIVEN_LIVES = os.environ.get("GIOVANG_TEST_CORE_LIVES")
LIVES = int(GIVEN_LIVES or "30")
DEFAULT_SEED = secrets.randbits(32) if GIVEN_LIVES else 20260121
SEED = int(os.environ.get("GIOVANG_TEST_CORE_SEED") or DEFAULT_SEED)
LIVES_A_DATABASE = 50
# Of more at a time, Hypothesis makes most as small changes of the one before.
LIVES_AT_A_TIME = 10
STEPS = 40

# A step of a payout, and the statuses that it fits.
MERCHANTS_STEPS = {
    "amend": {"requested"},
    "approve": {"requested"},
    "cancel": {"requested", "approved"},
}
DESKS_STEPS = {"send": {"approved"}, "settle": {"sent"}, "fail": {"sent"}}
PAYOUT_STEPS = (
    *("ask", "ask", "ask", "ask, approve and send", "expire"),
    *("amend", "approve", "approve", "approve", "cancel"),
    *("send", "send", "settle", "settle", "fail"),
)
A_PERSON, ANOTHER = "stf_00000000000000000000000001", "stf_00000000000000000000000002"
people = st.sampled_from([A_PERSON, A_PERSON, ANOTHER, ANOTHER, "key_00000000000000000000000003"])

REFUNDS_AT: LiteralString = "SELECT id FROM refunds WHERE id = ANY (%s) AND status = ANY (%s)"
PAYOUTS_AT: LiteralString = "SELECT id FROM payouts WHERE id = ANY (%s) AND status = ANY (%s)"
FREE: LiteralString = """
    SELECT -posted_minor - held_minor FROM ledger_accounts
    WHERE merchant_id = %s AND mode = %s AND kind = 'merchant_available'
"""
HOLD_IS_OVER: LiteralString = """
    UPDATE ledger_holds SET expires_at = now() - interval '1 s'
    WHERE payout_id = %s AND status = 'pending' AND expires_at IS NOT NULL
"""

# What kind of thing got how far, over all lives.
REACHED: LiteralString = """
    SELECT DISTINCT 'payment', status || coalesce(' ' || exception, '')
        || coalesce(' ' || exception_outcome, '') FROM payments
    UNION SELECT DISTINCT 'refund of ' || source, status FROM refunds
    UNION SELECT DISTINCT 'payout', status FROM payouts
    UNION SELECT DISTINCT 'hold', status FROM ledger_holds
    UNION SELECT DISTINCT 'entry', kind FROM ledger_entries
"""
MUST_BE_REACHED = {
    *(("payment", status) for status in ("completed", "resolved", "disputed", "expired", "failed")),
    *(("payment", f"expired {exception}") for exception in ("late", "wrong_asset", "underpaid")),
    ("payment", "completed overpaid"),
    ("payment", "completed late accepted"),
    ("payment", "completed overpaid refunded"),
    *(("refund of payment", status) for status in ("requested", "completed", "failed")),
    ("refund of excess", "completed"),
    ("refund of suspense", "completed"),
    *(("payout", status) for status in ("requested", "approved", "sent", "settled", "failed")),
    ("payout", "cancelled"),
    *(("hold", status) for status in ("pending", "posted", "voided", "expired")),
    *(("entry", kind) for kind in ("escrow_released", "transfer_assigned", "transfer_returned")),
    *(("entry", kind) for kind in ("reversal", "loss_covered", "loss_recovered")),
}
LIVES_TO_REACH_ALL = 300


def has_money_in_suspense(payment: Standing) -> bool:
    """Say whether money that came for a payment, and is not its own, may wait for a decision."""
    return payment.waits and payment.exception != "overpaid"


def may_be_accepted(payment: Standing) -> bool:
    """Say whether a payment can still take what waits for it."""
    return has_money_in_suspense(payment) and payment.status in {"expired", "failed", "pending"}


REFUNDABLE: Final[dict[str, tuple[Fits, ...]]] = {
    "payment": (lambda it: it.status in {"completed", "resolved"},),
    "excess": (
        lambda it: it.waits and it.exception == "overpaid",
        lambda it: it.status == "resolved",
    ),
    "suspense": (lambda it: has_money_in_suspense(it) and it.status not in OPEN,),
}
PAID_FOR_REFUND: Final = {
    "payment": Paid(),
    "excess": Paid(share=1.4),
    "suspense": Paid(late=True),
}


class CoreMachine(Life):
    """A life with all that follows a payment: exceptions, refunds and payouts."""

    reached: ClassVar[set[tuple[Any, ...]]] = set()

    def __init__(self) -> None:
        super().__init__()
        self.refunds: list[str] = []
        self.payouts: dict[str, Payout] = {}

    def asked_for(
        self, pick: Pick, ids: list[str], query: LiteralString, statuses: set[str]
    ) -> str:
        """Return one of the requests, of those in a status that fits if any is."""
        if pick.aims:
            found = {row[0] for row in self.sql.execute(query, (ids, list(statuses)))}
            ids = [one for one in ids if one in found] or ids
        return ids[pick.number % len(ids)]

    def payout(self, pick: Pick, statuses: set[str]) -> Payout:
        """Return one of the payouts as it was asked for."""
        return self.payouts[self.asked_for(pick, list(self.payouts), PAYOUTS_AT, statuses)]

    @step(pick=picks, asset=st.sampled_from([None, "USDC", "USDT"]))
    def accept(self, pick: Pick, asset: Any) -> None:
        payment = self.payment(pick, may_be_accepted, otherwise=Paid(late=True))
        self.core.attempt(
            "operator",
            lambda unit: exceptions.accept(
                unit,
                payment.id,
                AcceptMoney(asset=asset),
                mode=payment.mode,
                rates=self.core.rates,
            ),
            merchant_id=payment.merchant_id,
        )

    @step(number=numbers, to=picks, goes_back=st.booleans())
    def deal_with_nobodys(self, number: int, to: Pick, goes_back: bool) -> None:
        if not self.nobodys:
            self.pay(pick=to, share=1.0, other_token=False, late=False, named=False, settles=True)
            return
        came = self.nobodys[number % len(self.nobodys)]
        transfer_id = f"{came.signature}:{came.account.address}"
        if goes_back:
            back = ReturnTransfer(signature=a_signature(), reason="sent by mistake")
            work: Any = lambda unit: exceptions.give_back(  # noqa: E731
                unit, transfer_id, back, settings=self.core.chain
            )
        else:
            payment = self.payment(to, is_lost, is_open)
            body = AssignTransfer(payment_id=payment.id, reason="it matches")
            work = lambda unit: exceptions.assign(  # noqa: E731
                unit, transfer_id, body, settings=self.core.chain
            )
        self.core.attempt("operator", work, actor=new_id("adm"))

    @step(
        weight=3,
        pick=picks,
        step=st.sampled_from(["ask", "ask", "complete", "complete", "fail"]),
        source=st.sampled_from(["payment", "excess", "suspense"]),
        share=st.sampled_from([None, None, None, 0.25, 0.5, 1.5]),
    )
    def refunds_move(self, pick: Pick, step: str, source: Any, share: float | None) -> None:
        if step == "ask" or not self.refunds:
            self.ask_for_a_refund(pick, source, share)
        else:
            self.end_a_refund(pick, succeeds=step == "complete")

    def ask_for_a_refund(self, pick: Pick, source: Any, share: float | None) -> None:
        """Ask for a part of what a payment brought, or for all."""
        payment = self.payment(pick, *REFUNDABLE[source], otherwise=PAID_FOR_REFUND[source])
        whole = payment.amount_minor if source == "payment" else payment.asset_amount_minor
        amount = None
        if share is not None:
            part = max(1, int(whole * share))
            amount = str(part) if source == "payment" else f"{part / 10**6:.6f}"
        body = CreateRefund(source=source, amount=amount)
        made = self.core.attempt(
            "operator" if source == "suspense" else "api",
            lambda unit: refunds.request_refund(unit, payment.id, body, mode=payment.mode),
            merchant_id=payment.merchant_id,
        )
        if isinstance(made, Refund):
            self.refunds.append(made.id)
        elif share == 1.5 and source == "payment" and payment.status == "completed":
            assert isinstance(made.error, RefundExceedsPayment), made

    def end_a_refund(self, pick: Pick, *, succeeds: bool) -> None:
        """Send a refund, or give it up."""
        refund_id = self.asked_for(pick, self.refunds, REFUNDS_AT, {"requested"})

        async def end(unit: Unit) -> Refund:
            if succeeds:
                return await refunds.complete(unit, refund_id, a_signature())
            return await refunds.fail(unit, refund_id, "the account is closed")

        self.core.attempt("operator", end, actor=new_id("adm"))

    @step(
        weight=3,
        pick=picks,
        step=st.sampled_from(PAYOUT_STEPS),
        actor=people,
        amount=st.one_of(st.none(), st.integers(1, 3_000_000)),
        mode=st.sampled_from(["test", "test", "test", "live"]),
        part=st.integers(1, 200),
    )
    def payouts_move(
        self, *, pick: Pick, step: str, actor: str, amount: int | None, mode: Any, part: int
    ) -> None:
        if step == "ask" or not self.payouts:
            self.ask_for_a_payout(pick.number, amount, mode, actor)
        elif step == "ask, approve and send":
            self.ask_approve_and_send_a_payout(pick.number, amount)
        elif step in MERCHANTS_STEPS:
            self.merchant_moves_a_payout(pick, step, actor, part)
        elif step in DESKS_STEPS:
            self.desk_moves_a_payout(pick, step)
        else:
            self.a_request_expires(pick)

    def spend_all(self, merchant_id: str, mode: str) -> None:
        """Ask for all that a merchant has, so that what is lost now is lost to us."""
        self.ask_for_a_payout(self.merchants.index(merchant_id), None, mode, A_PERSON)

    def ask_for_a_payout(self, number: int, amount: int | None, mode: Any, asker: str) -> None:
        """Ask for a part of what a merchant has, or for all."""
        merchant_id = self.merchants[number % 2]
        if amount is None:
            # All that there is: whatever of it the chain takes back is a loss of ours.
            free = self.sql.execute(FREE, (merchant_id, mode)).fetchone()
            amount = max(1, free[0]) if free else 1
        body = CreatePayout(amount=str(amount), destination="VCB 0071000123456")
        made = self.core.attempt(
            "api",
            lambda unit: payouts.request_payout(unit, body, mode=mode, request_days=7),
            merchant_id=merchant_id,
            actor=asker,
        )
        if isinstance(made, Payout):
            self.payouts[made.id] = made

    def merchant_moves_a_payout(self, pick: Pick, step: str, actor: str, part: int) -> None:
        """Make a step that is the merchant's own people's."""
        payout = self.payout(pick, MERCHANTS_STEPS[step])
        mode: Any = payout.mode
        amended = AmendPayout(amount=str(max(1, payout.amount_minor * part // 100)))
        works: dict[str, Any] = {
            "amend": lambda unit: payouts.amend(
                unit, payout.id, amended, mode=mode, request_days=7
            ),
            "approve": lambda unit: payouts.approve(
                unit, payout.id, mode=mode, revision=2 if part > 150 else 1
            ),
            "cancel": lambda unit: payouts.cancel(unit, payout.id, mode=mode),
        }
        done = self.core.attempt("api", works[step], merchant_id=payout.merchant_id, actor=actor)
        if step == "approve" and isinstance(done, Payout):
            assert done.approved_by == actor != done.requested_by

    def ask_approve_and_send_a_payout(self, number: int, amount: int | None) -> None:
        """Bring a new payout as far as the bank."""
        had = len(self.payouts)
        self.ask_for_a_payout(number, amount, "test", A_PERSON)
        if len(self.payouts) > had:
            self.merchant_moves_a_payout(NEWEST, "approve", ANOTHER, 1)
            self.desk_moves_a_payout(NEWEST, "send")

    def desk_moves_a_payout(self, pick: Pick, step: str) -> None:
        """Make a step that is the platform's, after the bank."""
        payout = self.payout(pick, DESKS_STEPS[step])
        works: dict[str, Any] = {
            "send": lambda unit: payouts.send(unit, payout.id, bank_reference="FT2632"),
            "settle": lambda unit: payouts.settle(unit, payout.id),
            "fail": lambda unit: payouts.fail(unit, payout.id, reason="no such account"),
        }
        self.core.attempt("operator", works[step], actor=new_id("adm"))

    def a_request_expires(self, pick: Pick) -> None:
        """Let nobody approve a payout in time."""
        self.sql.execute(HOLD_IS_OVER, (self.payout(pick, {"requested"}).id,))
        self.as_watcher(lambda unit: payouts.expire_payouts(unit, MOST_ROWS))

    def teardown(self) -> None:
        super().teardown()
        self.reached.update(self.sql.execute(REACHED).fetchall())


@pytest.fixture(scope="module")
def template(ledger_cluster: DatabaseServer) -> Iterator[LedgerDatabase]:
    with ledger_of_its_own(ledger_cluster) as database:
        database.migrate()
        yield database


# Five seconds for a life, and as long as Hypothesis may take to shorten one that fails.
@pytest.mark.timeout(360 + LIVES * 5)
def test_no_life_breaks_a_law(
    ledger_cluster: DatabaseServer, template: LedgerDatabase, redis_server: BrokerServer
) -> None:
    with ExitStack() as books:

        def open_books() -> None:
            books.close()
            database = books.enter_context(ledger_of_its_own(ledger_cluster, copied_from=template))
            CoreMachine.sql = books.enter_context(database.superuser())
            CoreMachine.core = books.enter_context(Core(database.url, redis_server.url))

        CoreMachine.open_books = open_books
        for first in range(0, LIVES, LIVES_AT_A_TIME):
            # New books now and then, or the laws would read ever more rows of ended lives.
            if first % LIVES_A_DATABASE == 0:
                open_books()
            live_some(first, min(LIVES_AT_A_TIME, LIVES - first))
    if LIVES >= LIVES_TO_REACH_ALL:
        missed = MUST_BE_REACHED - CoreMachine.reached
        assert not missed, f"no life of seed {SEED} reached {sorted(missed)}"


def live_some(first: int, lives: int) -> None:
    """Live some lives, other ones for each number that the first may have."""
    try:
        live(
            seed(f"{SEED}:{first}")(CoreMachine),
            settings=settings(
                max_examples=lives,
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
            ),
        )
    except BaseException as failure:
        failure.add_note(f"GIOVANG_TEST_CORE_SEED={SEED} GIOVANG_TEST_CORE_LIVES={LIVES} live it")
        raise
