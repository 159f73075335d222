"""Events are shown as their subject was, exactly, also those that an earlier release wrote."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from api.payments.event_store import Event
from api.payments.events import present_event
from api.payments.views import PaymentView, RefundView

NOW = datetime(2026, 1, 31, 9, 0, tzinfo=UTC)
# As PostgreSQL wrote the row of a payment before there were escrow, spread and outcomes.
OLD_ROW: dict[str, Any] = {
    "id": "pay_01jz8w5k6h7m9n0p2q3r4s5t6v",
    "merchant_id": "mer_01jz8w5k6h7m9n0p2q3r4s5t6v",
    "mode": "test",
    "status": "completed",
    "exception": None,
    "amount_minor": 250000,
    "currency": "VND",
    "asset": "USDC",
    "asset_amount_minor": 9560230,
    "received_minor": 9560230,
    "rate": 26150,
    "rate_source": "file",
    "chain": "solana",
    "recipient": "mvines9iiHiQTysrwkJjGf2gb9Ex9jXJX8ns3qwf2kN",
    "mint": "EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v",
    "reference": "82ZJ7nbGpixjeDCmEhUcmwXYfvurzAgGdtSMuHnUgyny",
    "payer_address": None,
    "payer_country": None,
    "description": None,
    "order_id": None,
    "metadata": {},
    "fee_minor": 2500,
    "created_at": "2026-01-31T09:00:00.123456+00:00",
    "expires_at": "2026-01-31T09:15:00+00:00",
    "status_at": "2026-01-31T09:01:00+00:00",
    "completed_at": "2026-01-31T09:01:00+00:00",
    "updated_at": "2026-01-31T09:01:00+00:00",
}


def event(data: str, **subject: str | None) -> Event:
    ids = {"payment_id": None, "refund_id": None, "payout_id": None, **subject}
    return Event(
        id="evt_01jz8w5k6h7m9n0p2q3r4s5t6v",
        mode="test",
        seq=7,
        type="payment.completed",
        created_at=NOW,
        data=data,
        **ids,
    )


def shown(row: dict[str, Any], **subject: str | None) -> Any:
    view = present_event(
        event(json.dumps(row), **subject), merchant_name="Phở", public_url="https://pay.vn"
    )
    return view.data.object


def test_a_row_of_the_first_release_is_shown_as_a_payment_of_today() -> None:
    payment = shown(OLD_ROW, payment_id=OLD_ROW["id"])
    assert isinstance(payment, PaymentView)
    assert (payment.is_escrow, payment.settled, payment.exception_outcome) == (False, "0", None)
    assert payment.rate.mid is None
    assert payment.created_at.microsecond == 123_456
    assert payment.checkout_url == f"https://pay.vn/order/{OLD_ROW['id']}"


@given(rate=st.decimals(min_value=Decimal("0.01"), max_value=Decimal(10**9), places=8))
def test_rates_lose_no_digit(rate: Decimal) -> None:
    row = json.dumps({**OLD_ROW, "rate": "RATE"}).replace('"RATE"', f"{rate:f}")
    view = present_event(
        event(row, payment_id=OLD_ROW["id"]), merchant_name="Phở", public_url="https://pay.vn"
    )
    assert isinstance(view.data.object, PaymentView)
    assert Decimal(view.data.object.rate.value) == rate


def test_a_refund_is_shown_as_a_refund() -> None:
    row = {
        "id": "rfd_01jz8w5k6h7m9n0p2q3r4s5t6v",
        "merchant_id": OLD_ROW["merchant_id"],
        "payment_id": OLD_ROW["id"],
        "status": "requested",
        "amount_minor": 1_500_000,
        "asset": "USDC",
        "reason": None,
        "source": "suspense",
        "token": "USDC",
        "token_amount_minor": 1_500_000,
        "destination": "wallet",
        "signature": None,
        "requested_by": "key_1",
        "failure_reason": None,
        "created_at": "2026-01-31T09:00:00+00:00",
        "status_at": "2026-01-31T09:00:00+00:00",
        "updated_at": "2026-01-31T09:00:00+00:00",
    }
    refund = shown(row, payment_id=OLD_ROW["id"], refund_id=row["id"])
    assert isinstance(refund, RefundView)
    assert (refund.amount, refund.currency, refund.token_amount) == ("1.500000", "USDC", "1.500000")
