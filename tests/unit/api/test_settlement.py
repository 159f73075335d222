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
from api.payments.model import Payment
from api.payments.settlement import decide, entries, fee_minor, walk

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
USDC = TokenAccount("account", "wallet", USDC_MINT, Asset.USDC)
USDT = TokenAccount("other", "wallet", USDT_MINT, Asset.USDT)


def receipt(
    amount: int, *, account: TokenAccount = USDC, after: timedelta | None = None
) -> Receipt:
    at = PAYMENT.created_at + timedelta(minutes=1) if after is None else PAYMENT.expires_at + after
    return Receipt("signature", account, amount, "payer", ("reference",), 7, at)


def book(
    payment: Payment, found: Receipt, *, held: int = 0
) -> tuple[str, str | None, dict[str, int]]:
    """Return the payment's next status and exception, and what moved on each account."""
    decision = decide(payment, found, held_minor=held, grace_s=GRACE_S)
    for before, after in pairwise((payment.status, *decision.path)):
        assert may_move("payment", before, after)
    moved: defaultdict[str, int] = defaultdict(int)
    fee = fee_minor(payment.amount_minor, 100) if decision.to_payment_minor else 0
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


@pytest.mark.parametrize("status", ["expired", "failed"])
def test_money_for_a_closed_payment_is_late(status: str) -> None:
    assert book(replace(PAYMENT, status=status), receipt(PRICE)) == (
        status,
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
)
def test_every_unit_of_every_receipt_is_booked(
    status: PaymentStatus, amount: int, held: int, account: TokenAccount, seconds: int
) -> None:
    payment = replace(PAYMENT, status=status, received_minor=held)
    found = receipt(amount, account=account, after=timedelta(seconds=seconds))
    held = held if status in {"created", "pending", "confirming"} else 0
    decision = decide(payment, found, held_minor=held, grace_s=GRACE_S)
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
