"""What callers are told of wrong fields: what to write, not which expression did not match."""

from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from api.contract import PaymentStatus, PayoutStatus, RefundStatus
from api.payments.events import EventType
from api.payments.model import CreatePayment, PaymentId
from api.web import Moment
from api.wording import sentence


def told(kind: Any, value: object) -> dict[str, str]:
    with pytest.raises(ValidationError) as refusal:
        TypeAdapter(kind).validate_python(value)
    found = refusal.value.errors()
    return {"/".join(map(str, error["loc"])): sentence(error) for error in found}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"amount": 250000}, 'write this as a string, in "quotes"'),
        ({"amount": "250,000"}, "whole dong, more than 0, in at most 13 digits without separators"),
        ({"amount": "0"}, "whole dong, more than 0"),
        ({"payer_country": "vn"}, "a country of ISO 3166"),
        ({"description": "a\x00"}, "text without line breaks and other control characters"),
        ({"metadata": "table 7"}, "send a JSON object here"),
        ({"curency": "VND"}, "there is no such field here; leave it out"),
        # What pydantic says well.
        ({"asset": "BTC"}, "Input should be 'USDC' or 'USDT'"),
        ({"expires_in_s": 1}, "Input should be greater than or equal to 5"),
    ],
)
def test_a_wrong_field_is_told_what_to_write(change: dict[str, object], said: str) -> None:
    (name,) = change
    errors = told(CreatePayment, {"amount": "250000", "asset": "USDC", **change})
    assert list(errors) == [name]
    assert errors[name].startswith(said)


def test_a_missing_field_is_named() -> None:
    assert told(CreatePayment, {"amount": "250000"}) == {"asset": "this is required"}


def test_a_wrong_id_is_shown_a_right_one() -> None:
    assert told(PaymentId, "1042") == {"": "an id, such as pay_01jz8w5k6h7m9n0p2q3r4s5t6v"}


@pytest.mark.parametrize(
    ("moment", "said"),
    [
        ("2026-01-31", "a moment is written as RFC 3339 says, such as"),
        ("1769792400", "a moment is written as RFC 3339 says, such as"),
        ("2026-01-31T00:00:61Z", "a moment is written as RFC 3339 says, such as"),
        ("2026-01-31T00:00:00", "the time zone is missing; a moment is written"),
        # A plus that was put into an address as it is comes as a space.
        ("2026-01-31T00:00:00 07:00", "write the + of the time zone as %2B in an address"),
    ],
)
def test_a_wrong_moment_is_told_how_moments_are_written(moment: str, said: str) -> None:
    (sentence_of_it,) = told(Moment, moment).values()
    assert sentence_of_it.startswith(said)


def test_every_event_type_is_one_to_ask_for() -> None:
    reached = {
        f"{subject}.{status}"
        for subject, statuses in (
            ("payment", PaymentStatus),
            ("refund", RefundStatus),
            ("payout", PayoutStatus),
        )
        for status in statuses
    }
    assert set(get_args(EventType)) == reached | {"payment.updated", "payout.updated"}
