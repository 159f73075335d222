"""What counts as the same request."""

from api.idempotency import request_digest

BODY = {"amount": "250000", "asset": "USDC", "metadata": {"a": "1", "b": "2"}}


def test_order_makes_no_difference() -> None:
    turned = {"metadata": {"b": "2", "a": "1"}, "asset": "USDC", "amount": "250000"}
    assert request_digest("create payment", BODY) == request_digest("create payment", turned)


def test_content_and_operation_do() -> None:
    same = request_digest("create payment", BODY)
    assert request_digest("create payment", {**BODY, "amount": "250001"}) != same
    assert request_digest("request payout", BODY) != same
    assert len(same) == 32
