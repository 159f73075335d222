"""What each kind of receipt makes of a payment, and that every unit of it is booked."""

from collections import defaultdict
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.chain.model import Receipt, TokenAccount
from api.contract import USDC_MINT, USDT_MINT, Asset, PaymentException, PaymentStatus, may_move
from api.ledger.model import AccountKind
from api.payments.decision import decide, entries, fee_minor, fee_now, settles_for, walk
from api.payments.escrow import released_entry, resolved_entry
from api.payments.exceptions import acceptance
from api.payments.model import Payment, ResolveDispute, Terms, due_minor, merchant_part
from api.payments.refunds import tokens_of_share
from api.rates.model import Quote, less_spread, token_amount_minor, worth_minor

NOW = datetime(2026, 1, 31, 9, 0, tzinfo=UTC)
PRICE = 9_560_230
GRACE_S = 5
PAYMENT = Payment(
    id="pay_1",
    merchant_id="mer_1",
    mode="test",
    status="created",
    exception=None,
    amount_minor=250_000,
    currency="VND",
    asset="USDC",
    asset_amount_minor=PRICE,
    received_minor=0,
    rate=Decimal(26150),
    rate_source="file",
    chain="solana",
    recipient="wallet",
    mint=USDC_MINT,
    reference="reference",
    payer_address=None,
    payer_country=None,
    description=None,
    order_id=None,
    metadata={},
    fee_minor=0,
    created_at=NOW,
    expires_at=NOW + timedelta(minutes=15),
    status_at=NOW,
    completed_at=None,
)
TERMS = Terms(merchant_name="Phở", fee_bps=100, tolerance_bps=0, escrow_days=7)
# The mission's example: 100 USDT at 23,000 dong, one percent, no spread.
ESCROW = replace(
    PAYMENT,
    amount_minor=2_300_000,
    asset="USDT",
    asset_amount_minor=100_000_000,
    rate=Decimal(23_000),
    rate_mid=Decimal(23_000),
    is_escrow=True,
)
USDC = TokenAccount("account", "wallet", USDC_MINT, Asset.USDC)
USDT = TokenAccount("other", "wallet", USDT_MINT, Asset.USDT)


def receipt(
    amount: int, *, account: TokenAccount = USDC, after: timedelta | None = None
) -> Receipt:
    at = PAYMENT.created_at + timedelta(minutes=1) if after is None else PAYMENT.expires_at + after
    return Receipt("signature", account, amount, "payer", ("reference",), 7, at)


def book(
    payment: Payment, found: Receipt, *, held: int = 0, tolerance_bps: int = 0
) -> tuple[str, str | None, dict[str, int]]:
    """Return the payment's next status and exception, and what moved on each account."""
    decision = decide(payment, found, held_minor=held, grace_s=GRACE_S, tolerance_bps=tolerance_bps)
    for before, after in pairwise((payment.status, *decision.path)):
        assert may_move("payment", before, after)
    moved: defaultdict[str, int] = defaultdict(int)
    fee = fee_now(payment, decision.settled_minor, TERMS)
    for entry in entries(payment, found, decision, fee=fee):
        for leg in entry.legs:
            moved[f"{leg.kind} {leg.asset}"] += leg.amount_minor
    status = decision.path[-1] if decision.path else payment.status
    return status, decision.exception, dict(moved)


@pytest.mark.parametrize("status", ["created", "pending", "confirming"])
def test_the_exact_amount_completes(status: str) -> None:
    assert book(replace(PAYMENT, status=status), receipt(PRICE)) == (
        "completed",
        None,
        {
            "crypto_pool USDC": PRICE,
            "liquidity USDC": -PRICE,
            "liquidity VND": 250_000,
            "merchant_available VND": -247_500,
            "fee_revenue VND": -2_500,
        },
    )


def test_each_status_on_the_way_is_passed_through() -> None:
    decision = decide(PAYMENT, receipt(PRICE), held_minor=0, grace_s=GRACE_S)
    assert decision.path == ("pending", "confirming", "completed")


def test_too_little_waits_in_suspense() -> None:
    assert book(PAYMENT, receipt(1_000_000)) == (
        "pending",
        "underpaid",
        {"crypto_pool USDC": 1_000_000, "suspense USDC": -1_000_000},
    )


def test_the_missing_part_completes_with_what_waited() -> None:
    payment = replace(PAYMENT, status="pending", exception="underpaid", received_minor=1_000_000)
    status, exception, moved = book(payment, receipt(PRICE - 1_000_000), held=1_000_000)
    assert (status, exception) == ("completed", None)
    assert moved["crypto_pool USDC"] == PRICE - 1_000_000
    assert moved["suspense USDC"] == 1_000_000
    assert moved["liquidity USDC"] == -PRICE


def test_too_much_completes_and_the_rest_is_the_payers() -> None:
    status, exception, moved = book(PAYMENT, receipt(PRICE + 5))
    assert (status, exception) == ("completed", "overpaid")
    assert moved["payer_excess USDC"] == -5
    assert moved["crypto_pool USDC"] == PRICE + 5


def test_a_second_transfer_for_a_completed_payment_is_the_payers() -> None:
    payment = replace(PAYMENT, status="completed", received_minor=PRICE)
    assert book(payment, receipt(PRICE)) == (
        "completed",
        "overpaid",
        {"crypto_pool USDC": PRICE, "payer_excess USDC": -PRICE},
    )


def test_money_that_comes_after_all_completes_a_payment_that_had_lost_it() -> None:
    failed = replace(PAYMENT, status="failed")
    assert book(failed, receipt(PRICE))[:2] == ("completed", None)
    assert book(failed, receipt(1))[:2] == ("failed", "underpaid")
    paid = decide(failed, receipt(PRICE), held_minor=0, grace_s=5)
    assert paid.path == (PaymentStatus.CONFIRMING, PaymentStatus.COMPLETED)
    keys = [
        {entry.key for entry in entries(failed, receipt(PRICE), paid, fee=0, losses=losses)}
        for losses in (0, 1)
    ]
    assert not keys[0] & keys[1]


def test_money_for_an_expired_payment_is_late() -> None:
    assert book(replace(PAYMENT, status="expired"), receipt(PRICE)) == (
        "expired",
        "late",
        {"crypto_pool USDC": PRICE, "suspense USDC": -PRICE},
    )


def test_the_block_decides_what_is_late() -> None:
    at_the_edge = receipt(PRICE, after=timedelta(seconds=GRACE_S))
    assert book(PAYMENT, at_the_edge)[:2] == ("completed", None)
    past_it = receipt(PRICE, after=timedelta(seconds=GRACE_S + 1))
    assert book(PAYMENT, past_it)[:2] == ("expired", "late")


def test_another_token_is_not_taken_for_the_price() -> None:
    assert book(PAYMENT, receipt(PRICE, account=USDT)) == (
        "created",
        "wrong_asset",
        {"crypto_pool USDT": PRICE, "suspense USDT": -PRICE},
    )


def test_completion_does_not_hide_money_that_still_waits() -> None:
    payment = replace(PAYMENT, exception="wrong_asset")
    assert book(payment, receipt(PRICE))[:2] == ("completed", "wrong_asset")


@given(
    status=st.sampled_from(PaymentStatus),
    amount=st.integers(1, 2 * PRICE),
    held=st.integers(0, PRICE - 1),
    account=st.sampled_from([USDC, USDT]),
    seconds=st.integers(-900, 900),
    tolerance_bps=st.integers(0, 1000),
    is_escrow=st.booleans(),
)
def test_every_unit_of_every_receipt_is_booked(
    *,
    status: PaymentStatus,
    amount: int,
    held: int,
    account: TokenAccount,
    seconds: int,
    tolerance_bps: int,
    is_escrow: bool,
) -> None:
    payment = replace(PAYMENT, status=status, received_minor=held, is_escrow=is_escrow)
    found = receipt(amount, account=account, after=timedelta(seconds=seconds))
    held = held if status in {"created", "pending", "confirming"} else 0
    decision = decide(payment, found, held_minor=held, grace_s=GRACE_S, tolerance_bps=tolerance_bps)
    parts = (decision.to_payment_minor, decision.to_excess_minor, decision.to_suspense_minor)
    assert sum(parts) == amount
    assert min(parts) >= 0
    assert decision.exception is None or isinstance(decision.exception, PaymentException)
    # Entry refuses what does not balance; the pool gains exactly what came.
    pool = sum(
        leg.amount_minor
        for entry in entries(payment, found, decision, fee=0)
        for leg in entry.legs
        if leg.kind is AccountKind.CRYPTO_POOL
    )
    assert pool == amount


def test_fees_round_down() -> None:
    assert fee_minor(2_300_000, 100) == 23_000
    assert fee_minor(199, 100) == 1
    assert fee_minor(99, 100) == 0
    assert fee_minor(250_000, 0) == 0


def test_a_payment_is_never_walked_back() -> None:
    assert walk(PaymentStatus.CONFIRMING, PaymentStatus.PENDING) == ()
    assert walk(PaymentStatus.PENDING, PaymentStatus.PENDING) == ()


# The merchant's tolerance, and the spread.


def test_what_is_short_within_the_tolerance_pays_for_what_it_is_worth() -> None:
    short = PRICE * 99 // 100 + 1
    status, exception, moved = book(PAYMENT, receipt(short), tolerance_bps=100)
    worth = worth_minor(short, "VND", Asset.USDC, PAYMENT.rate)
    assert (status, exception, worth) == ("completed", None, 247_500)
    assert moved["merchant_available VND"] + moved["fee_revenue VND"] == -worth
    assert moved["liquidity USDC"] == -short
    assert book(PAYMENT, receipt(short - 2), tolerance_bps=100)[:2] == ("pending", "underpaid")
    assert book(PAYMENT, receipt(PRICE - 1))[:2] == ("pending", "underpaid")


@given(tokens=st.integers(1, 2 * PRICE), tolerance_bps=st.integers(0, 1000))
def test_nobody_is_credited_more_than_came_or_was_asked(tokens: int, tolerance_bps: int) -> None:
    settled = settles_for(PAYMENT, tokens, tolerance_bps)
    assert 0 <= settled <= PAYMENT.amount_minor
    assert settled <= worth_minor(tokens, "VND", Asset.USDC, PAYMENT.rate)
    if settled:
        assert tokens * 10_000 >= PRICE * (10_000 - tolerance_bps)


def test_the_spread_is_a_posting_of_its_own() -> None:
    mid = Decimal(26_150)
    quoted = less_spread(mid, 50)
    price = token_amount_minor(250_000, "VND", Asset.USDC, quoted)
    payment = replace(PAYMENT, rate=quoted, rate_mid=mid, asset_amount_minor=price)
    _, _, moved = book(payment, receipt(price))
    assert moved == {
        "crypto_pool USDC": price,
        "liquidity USDC": -price,
        "liquidity VND": 251_256,
        "merchant_available VND": -247_500,
        "fee_revenue VND": -2_500,
        "spread_revenue VND": -1_256,
    }


# Escrow.


def test_the_missions_escrow_example_to_the_unit() -> None:
    held = book(ESCROW, receipt(100_000_000, account=USDT))
    assert held == (
        "escrow_held",
        None,
        {
            "crypto_pool USDT": 100_000_000,
            "liquidity USDT": -100_000_000,
            "liquidity VND": 2_300_000,
            "escrow_liability_pool VND": -2_300_000,
        },
    )
    payment = replace(ESCROW, status="awaiting_release", settled_minor=2_300_000)
    fee = fee_minor(payment.settled_minor, 100)
    assert {leg.kind: leg.amount_minor for leg in released_entry(payment, fee=fee).legs} == {
        AccountKind.ESCROW_LIABILITY_POOL: 2_300_000,
        AccountKind.MERCHANT_AVAILABLE: -2_277_000,
        AccountKind.FEE_REVENUE: -23_000,
    }


@pytest.mark.parametrize("status", ["escrow_held", "awaiting_release", "disputed", "resolved"])
def test_money_for_a_payment_in_escrow_is_the_payers(status: str) -> None:
    payment = replace(ESCROW, status=status, received_minor=100_000_000, settled_minor=2_300_000)
    assert book(payment, receipt(7, account=USDT)) == (
        status,
        "overpaid",
        {"crypto_pool USDT": 7, "payer_excess USDT": -7},
    )


@given(part=st.integers(0, 2_300_000))
def test_a_resolution_divides_all_there_is(part: int) -> None:
    payment = replace(ESCROW, status="disputed", settled_minor=2_300_000)
    tokens = 100_000_000 * (2_300_000 - part) // 2_300_000
    fee = fee_minor(part, 100)
    # Entry refuses what does not balance, in either asset.
    entry = resolved_entry(payment, part, fee=fee, token=Asset.USDT, token_minor=tokens)
    legs = {f"{leg.kind} {leg.asset}": leg.amount_minor for leg in entry.legs}
    assert legs["escrow_liability_pool VND"] == 2_300_000
    assert -legs.get("merchant_available VND", 0) == part - fee
    assert -legs.get("payer_excess USDT", 0) == tokens


@pytest.mark.parametrize(
    ("outcome", "amount", "part"),
    [
        ("merchant", None, 2_300_000),
        ("payer", None, 0),
        ("split", "1000000", 1_000_000),
        ("split", None, None),
        ("split", "2300000", None),
        ("split", "9900000", None),
        ("merchant", "1", None),
        ("payer", "1", None),
    ],
)
def test_who_gets_what_of_a_dispute(outcome: str, amount: str | None, part: int | None) -> None:
    body = ResolveDispute.model_validate(
        {"outcome": outcome, "merchant_amount": amount, "reason": "seen"}
    )
    assert merchant_part(2_300_000, body) == part


# Exceptions and refunds.


def quote(value: str) -> Quote:
    rate = Decimal(value)
    return Quote("USDC/VND", rate, rate, 0, "test", NOW, NOW + timedelta(minutes=1))


@given(tokens=st.integers(1, 3 * PRICE), rate=st.integers(1, 10**6))
def test_accepted_money_is_worth_what_it_is_credited_for(tokens: int, rate: int) -> None:
    at = quote(str(rate))
    accepted = acceptance(PAYMENT, Asset.USDC, tokens, at)
    assert accepted.used_minor + accepted.excess_minor == tokens
    assert min(accepted.settled_minor, accepted.used_minor, accepted.excess_minor) >= 0
    assert accepted.settled_minor <= PAYMENT.amount_minor
    assert accepted.settled_minor <= worth_minor(accepted.used_minor, "VND", Asset.USDC, at.value)
    if accepted.excess_minor:
        assert accepted.settled_minor == PAYMENT.amount_minor


@given(
    taken=st.integers(1, 10**12),
    parts=st.lists(st.integers(1, 10**9), min_size=1, max_size=8),
)
def test_refunds_in_parts_return_all_the_tokens(taken: int, parts: list[int]) -> None:
    settled, returned, sent = sum(parts), 0, 0
    for part in parts:
        returned += part
        tokens = tokens_of_share(
            taken_minor=taken,
            settled_minor=settled,
            returned_minor=returned,
            returned_token_minor=sent,
        )
        assert tokens >= 0
        sent += tokens
    assert sent == taken


def test_what_is_still_due_is_signed() -> None:
    assert due_minor(PAYMENT) == PRICE
    assert due_minor(replace(PAYMENT, received_minor=PRICE - 1)) == 1
    assert due_minor(replace(PAYMENT, received_minor=PRICE + 5, settled_minor=1)) == -5
    # Settled within the tolerance: nobody is asked for the rest.
    assert due_minor(replace(PAYMENT, received_minor=PRICE - 1, settled_minor=1)) == 0
