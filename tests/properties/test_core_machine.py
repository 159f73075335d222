"""Random lives of payments, refunds, escrow, holds and payouts: no law of the books is ever broken.

Hypothesis drives the product's own services against PostgreSQL, each step as the role that makes
it. A step is made or refused; any other error fails the run. At the end of each life the auditor's
laws, SQL that shares no code with the core, must hold for every row. CI lives some dozens of lives;
GIOVANG_TEST_CORE_LIVES sets how many.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar, LiteralString

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as live

from api.chain.model import Commitment, Receipt
from api.contract import USDC_MINT, USDT_MINT, PaymentStatus
from api.database import Unit, new_id
from api.errors import RefundExceedsPayment
from api.payments import escrow, exceptions, refunds, service, settlement, store
from api.payments.model import (
    AcceptMoney,
    AssignTransfer,
    CreatePayment,
    CreateRefund,
    Payment,
    Refund,
    ResolveDispute,
    ReturnTransfer,
)
from api.payouts import service as payouts
from api.payouts.model import AmendPayout, CreatePayout, Payout
from tests.fixtures.core import GRACE_S, Core, Refusal, known, receipt
from tests.fixtures.core_auditor import broken_laws
from tests.fixtures.ledgers import LedgerDatabase, ledger_of_its_own
from tests.fixtures.services import BrokerServer, DatabaseServer

LIVES = int(os.environ.get("GIOVANG_TEST_CORE_LIVES", "40"))
LIVES_A_DATABASE = 50
STEPS = 40
MINTS = {"USDC": USDC_MINT, "USDT": USDT_MINT}
BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"

# The newest (-1) more often than the others, or few lives would follow one thing to its end.
picks = st.one_of(st.just(-1), st.just(-1), st.integers(0, 1_000))
amounts = st.one_of(st.integers(1, 50), st.integers(1_000, 5_000_000))
shares = st.sampled_from([0.3, 0.5, 0.995, 1.0, 1.0, 1.0, 1.4, 2.0])


MERCHANTS_STEPS = ("amend", "approve", "approve", "approve", "cancel")
DESKS_STEPS = ("send", "send", "settle", "settle", "fail")
A_PERSON, ANOTHER = "stf_00000000000000000000000001", "stf_00000000000000000000000002"
people = st.sampled_from([A_PERSON, ANOTHER, "key_00000000000000000000000003"])

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


def a_signature() -> str:
    return "".join(secrets.choice(BASE58) for _ in range(88))


class CoreMachine(RuleBasedStateMachine):
    """One life: two merchants, some payers, and everything that can happen to their money."""

    core: ClassVar[Core]
    database: ClassVar[LedgerDatabase]
    reached: ClassVar[set[tuple[Any, ...]]] = set()

    def __init__(self) -> None:
        super().__init__()
        self.merchants: list[str] = []
        self.payments: list[str] = []
        self.seen: list[tuple[Receipt, str | None]] = []
        self.settled: list[Receipt] = []
        self.nobodys: list[Receipt] = []
        self.refunds: list[str] = []
        self.payouts: list[Payout] = []
        self.slot = 1

    @initialize(fee_bps=st.sampled_from([0, 100, 250]), tolerance_bps=st.sampled_from([0, 100]))
    def two_merchants(self, fee_bps: int, tolerance_bps: int) -> None:
        with self.database.superuser() as sql:
            for _ in range(2):
                self.merchants.append(new_id("mer"))
                sql.execute(
                    "INSERT INTO merchants (id, name, trade, timezone, country, fee_bps,"
                    " tolerance_bps) VALUES (%s, 'M', 'cafe', 'Asia/Ho_Chi_Minh', 'VN', %s, %s)",
                    (self.merchants[-1], fee_bps, tolerance_bps),
                )
            # The first one's money is booked at confirmed, and may vanish after that.
            sql.execute(
                "INSERT INTO confirmation_policies (id, merchant_id, up_to_minor, commitment,"
                " reason, set_by) VALUES (%s, %s, 4000000, 'confirmed', 'a test', 'test')",
                (new_id("cfp"), self.merchants[0]),
            )
        # Each has earned something before, so that there is money to ask for.
        for number in range(2):
            self.create(pick=number, amount=4_000_000, asset="USDC", is_escrow=False, mode="test")
            self.pay(
                pick=number, share=1.0, other_token=False, late=False, named=True, settles=True
            )

    def payment(self, pick: int) -> Payment:
        """Return one of the payments as it stands."""
        payment_id = self.payments[pick % len(self.payments)]
        found = self.core.attempt("watcher", lambda unit: service.get(unit, payment_id))
        assert isinstance(found, Payment)
        return found

    @rule(
        pick=picks,
        amount=amounts,
        asset=st.sampled_from(["USDC", "USDT"]),
        is_escrow=st.booleans(),
        mode=st.sampled_from(["test", "live"]),
    )
    def create(self, *, pick: int, amount: int, asset: str, is_escrow: bool, mode: Any) -> None:
        quote = self.core.wait(self.core.quote(asset))
        body = CreatePayment(amount=str(amount), asset=asset, escrow=is_escrow)  # type: ignore[arg-type]
        made = self.core.attempt(
            "api",
            lambda unit: service.create(unit, body, mode=mode, quote=quote, chain=self.core.chain),
            merchant_id=self.merchants[pick % 2],
        )
        assert isinstance(made, Payment)
        self.payments.append(made.id)

    @rule(pick=picks, amount=amounts, is_escrow=st.booleans(), share=shares, late=st.booleans())
    def create_and_pay(
        self, *, pick: int, amount: int, is_escrow: bool, share: float, late: bool
    ) -> None:
        # What happens most in life happens as one step here, or few lives would come any further.
        self.create(pick=pick, amount=amount, asset="USDC", is_escrow=is_escrow, mode="test")
        self.pay(pick=-1, share=share, other_token=False, late=late, named=True, settles=True)

    @precondition(lambda self: self.payments)
    @rule(pick=picks)
    def show(self, pick: int) -> None:
        payment = self.payment(pick)
        self.core.attempt(
            "api", lambda unit: service.show(unit, payment), merchant_id=payment.merchant_id
        )

    @precondition(lambda self: self.payments)
    @rule(
        pick=picks,
        share=shares,
        other_token=st.sampled_from([False] * 7 + [True]),
        late=st.sampled_from([False] * 5 + [True]),
        named=st.sampled_from([True] * 6 + [False]),
        settles=st.sampled_from([True] * 3 + [False]),
    )
    def pay(
        self, *, pick: int, share: float, other_token: bool, late: bool, named: bool, settles: bool
    ) -> None:
        payment = self.payment(pick)
        self.slot += 1
        asset = payment.asset if not other_token else {"USDC": "USDT"}.get(payment.asset, "USDC")
        came = receipt(
            payment if named else None,
            max(1, int(payment.asset_amount_minor * share)),
            asset=asset,
            late=late,
            payer=pick,
            slot=self.slot,
            mint=MINTS[asset],
        )
        if not settles:
            self.seen.append((came, payment.id if named else None))
            self.as_watcher(
                lambda unit: settlement.settle(
                    unit, came, grace_s=GRACE_S, commitment=Commitment.CONFIRMED
                )
            )
            return
        self.finalize(came, payment.id if named else None)

    def finalize(self, came: Receipt, payment_id: str | None) -> None:
        self.as_watcher(lambda unit: settlement.settle(unit, came, grace_s=GRACE_S))
        self.settled.append(came)
        if payment_id is None:
            self.nobodys.append(came)

    def as_watcher(self, work: Any) -> None:
        """Make a step of the watcher's, which nothing may refuse: the chain has spoken."""
        outcome = self.core.attempt("watcher", work)
        assert not isinstance(outcome, Refusal), outcome

    @precondition(lambda self: self.seen)
    @rule(pick=picks, vanishes=st.booleans())
    def decide_what_was_seen(self, pick: int, vanishes: bool) -> None:
        came, payment_id = self.seen.pop(pick % len(self.seen))
        if vanishes:
            payment = None if payment_id is None else self.payment(self.payments.index(payment_id))
            self.as_watcher(
                lambda unit: settlement.vanish(unit, known(came, payment), grace_s=GRACE_S)
            )
        else:
            self.finalize(came, payment_id)

    @precondition(lambda self: self.settled)
    @rule(pick=picks)
    def settle_again(self, pick: int) -> None:
        came = self.settled[pick % len(self.settled)]
        self.as_watcher(lambda unit: settlement.settle(unit, came, grace_s=GRACE_S))

    @rule()
    def time_passes(self) -> None:
        # A grace of minus two days: every open payment is over.
        self.as_watcher(lambda unit: store.expire(unit, grace_s=-172_800, limit=200))

    @precondition(lambda self: self.payments)
    @rule(pick=picks)
    def deliver(self, pick: int) -> None:
        payment = self.payment(pick)
        self.core.attempt(
            "api",
            lambda unit: escrow.deliver(unit, payment.id, mode=payment.mode),
            merchant_id=payment.merchant_id,
        )

    @precondition(lambda self: self.payments)
    @rule(pick=picks, by=st.sampled_from(["payer", "payer", "timer"]))
    def release(self, pick: int, by: str) -> None:
        payment = self.payment(pick)
        done = self.core.attempt(
            "operator",
            lambda unit: escrow.release(unit, payment.id, released_by=by),
            merchant_id=payment.merchant_id,
        )
        if payment.status in {"escrow_held", "awaiting_release"} and by == "payer":
            assert isinstance(done, Payment), done
            assert done.status == PaymentStatus.COMPLETED
        else:
            # The date of release is days away, so the timer is always refused.
            assert isinstance(done, Refusal) or payment.escrow_released_at is not None

    @precondition(lambda self: self.payments)
    @rule(pick=picks, by=st.sampled_from(["payer", "key_1"]))
    def dispute(self, pick: int, by: str) -> None:
        payment = self.payment(pick)
        self.core.attempt(
            "api",
            lambda unit: escrow.dispute(unit, payment.id, opened_by=by, reason="broken"),
            merchant_id=payment.merchant_id,
        )

    @precondition(lambda self: self.payments)
    @rule(
        pick=picks,
        outcome=st.sampled_from(["merchant", "payer", "split"]),
        percent=st.integers(1, 99),
    )
    def resolve(self, pick: int, outcome: Any, percent: int) -> None:
        payment = self.payment(pick)
        part = max(1, payment.amount_minor * percent // 100)
        body = ResolveDispute(
            outcome=outcome,
            merchant_amount=str(part) if outcome == "split" else None,
            reason="decided",
        )
        self.core.attempt(
            "operator", lambda unit: escrow.resolve(unit, payment.id, body), actor=new_id("adm")
        )

    @precondition(lambda self: self.payments)
    @rule(pick=picks, asset=st.sampled_from([None, "USDC", "USDT"]))
    def accept(self, pick: int, asset: Any) -> None:
        payment = self.payment(pick)
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

    @precondition(lambda self: self.nobodys and self.payments)
    @rule(pick=picks, to=picks, goes_back=st.booleans())
    def deal_with_nobodys(self, pick: int, to: int, goes_back: bool) -> None:
        came = self.nobodys[pick % len(self.nobodys)]
        transfer_id = f"{came.signature}:{came.account.address}"
        if goes_back:
            back = ReturnTransfer(signature=a_signature(), reason="sent by mistake")
            work: Any = lambda unit: exceptions.give_back(  # noqa: E731
                unit, transfer_id, back, settings=self.core.chain
            )
        else:
            body = AssignTransfer(
                payment_id=self.payments[to % len(self.payments)], reason="it matches"
            )
            work = lambda unit: exceptions.assign(  # noqa: E731
                unit, transfer_id, body, settings=self.core.chain
            )
        self.core.attempt("operator", work, actor=new_id("adm"))

    @precondition(lambda self: self.payments)
    @rule(
        pick=picks,
        source=st.sampled_from(["payment", "payment", "excess", "suspense"]),
        share=st.sampled_from([None, None, 0.25, 0.5, 1.5]),
    )
    def ask_for_a_refund(self, pick: int, source: Any, share: float | None) -> None:
        payment = self.payment(pick)
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

    @precondition(lambda self: self.refunds)
    @rule(pick=picks, succeeds=st.sampled_from([True, True, False]))
    def end_a_refund(self, pick: int, succeeds: bool) -> None:
        refund_id = self.refunds[pick % len(self.refunds)]

        async def end(unit: Unit) -> Refund:
            if succeeds:
                return await refunds.complete(unit, refund_id, a_signature())
            return await refunds.fail(unit, refund_id, "the account is closed")

        self.core.attempt("operator", end, actor=new_id("adm"))

    @rule(
        pick=picks,
        amount=st.integers(1, 3_000_000),
        mode=st.sampled_from(["test", "test", "test", "live"]),
        asker=people,
    )
    def ask_for_a_payout(self, pick: int, amount: int, mode: Any, asker: str) -> None:
        merchant_id = self.merchants[pick % 2]
        body = CreatePayout(amount=str(amount), destination="VCB 0071000123456")
        made = self.core.attempt(
            "api",
            lambda unit: payouts.request_payout(unit, body, mode=mode, request_days=7),
            merchant_id=merchant_id,
            actor=asker,
        )
        if isinstance(made, Payout):
            self.payouts.append(made)

    @precondition(lambda self: self.payouts)
    @rule(pick=picks, step=st.sampled_from(MERCHANTS_STEPS), actor=people, part=st.integers(1, 200))
    def merchant_moves_a_payout(self, pick: int, step: str, actor: str, part: int) -> None:
        payout = self.payouts[pick % len(self.payouts)]
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

    @rule(pick=picks, amount=st.integers(1, 100_000))
    def ask_approve_and_send_a_payout(self, pick: int, amount: int) -> None:
        had = len(self.payouts)
        self.ask_for_a_payout(pick=pick, amount=amount, mode="test", asker=A_PERSON)
        if len(self.payouts) > had:
            self.merchant_moves_a_payout(pick=-1, step="approve", actor=ANOTHER, part=1)
            self.desk_moves_a_payout(pick=-1, step="send")

    @precondition(lambda self: self.payouts)
    @rule(pick=picks, step=st.sampled_from(DESKS_STEPS))
    def desk_moves_a_payout(self, pick: int, step: str) -> None:
        payout = self.payouts[pick % len(self.payouts)]
        works: dict[str, Any] = {
            "send": lambda unit: payouts.send(unit, payout.id, bank_reference="FT2632"),
            "settle": lambda unit: payouts.settle(unit, payout.id),
            "fail": lambda unit: payouts.fail(unit, payout.id, reason="no such account"),
        }
        self.core.attempt("operator", works[step], actor=new_id("adm"))

    @rule()
    def requests_expire(self) -> None:
        with self.database.superuser() as sql:
            sql.execute(
                "UPDATE ledger_holds SET expires_at = now() - interval '1 s'"
                " WHERE status = 'pending' AND expires_at IS NOT NULL AND random() < 0.2"
            )
        self.as_watcher(lambda unit: payouts.expire_payouts(unit, 100))

    def teardown(self) -> None:
        with self.database.superuser() as sql:
            assert broken_laws(sql) == {}
            self.reached.update(sql.execute(REACHED).fetchall())


@pytest.fixture(scope="module")
def template(ledger_cluster: DatabaseServer) -> Iterator[LedgerDatabase]:
    with ledger_of_its_own(ledger_cluster) as database:
        database.migrate()
        yield database


@pytest.mark.timeout(60 + LIVES * 5)
def test_no_life_breaks_a_law(
    ledger_cluster: DatabaseServer, template: LedgerDatabase, redis_server: BrokerServer
) -> None:
    for first in range(0, LIVES, LIVES_A_DATABASE):
        with ExitStack() as parts:
            # A fresh copy now and then, or the laws would read ever more rows of ended lives.
            database = parts.enter_context(ledger_of_its_own(ledger_cluster, copied_from=template))
            CoreMachine.database = database
            CoreMachine.core = parts.enter_context(Core(database.url, redis_server.url))
            live(
                CoreMachine,
                settings=settings(
                    max_examples=min(LIVES_A_DATABASE, LIVES - first),
                    stateful_step_count=STEPS,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                    phases=[Phase.generate, Phase.shrink],
                ),
            )
    if LIVES >= LIVES_TO_REACH_ALL:
        missed = MUST_BE_REACHED - CoreMachine.reached
        assert not missed, f"no life reached {sorted(missed)}"
