"""What of the stream is pushed to sockets, and what is poison."""

import json

import pytest

from ingest.contract import ChangeEvent
from streams.realtime import push_for
from streams.rows import PoisonEventError
from tests.fixtures import ledger_stream as ledger


def step(seq: object, before: object = None, **changes: object) -> ChangeEvent:
    """Return the event of a payment's change that its row numbers `seq`."""
    return ledger.change(
        "payments",
        ledger.payment_row(1, "pending", ledger.START, event_seq=seq, **changes),
        before=ledger.payment_row(1, "created", ledger.START, event_seq=before),
        position=1_000_000,
        ordinal=1,
        at=ledger.START,
    )


def test_a_new_number_is_pushed_with_the_row_on_the_payments_channel() -> None:
    event = step(2, 1)
    push = push_for(event.subject, event.to_bytes())
    assert push is not None
    assert push.channel == f"giovang:live:pay_{1:026d}"
    told = json.loads(push.text)
    assert told == {
        "seq": 2,
        "payment_id": f"pay_{1:026d}",
        "merchant_id": f"mer_{1:026d}",
        "event": "payment.pending",
        "row": event.after,
    }


def test_a_new_payment_is_pushed_too() -> None:
    event = ledger.change(
        "payments",
        ledger.payment_row(1, "created", ledger.START, event_seq=1),
        position=1_000_000,
        ordinal=1,
        at=ledger.START,
    )
    push = push_for(event.subject, event.to_bytes())
    assert push is not None
    assert json.loads(push.text)["event"] == "payment.created"


def test_a_change_without_a_new_number_is_no_step() -> None:
    event = step(2, 2, fee_minor="7")
    assert push_for(event.subject, event.to_bytes()) is None


def test_a_row_that_a_backfill_tells_again_is_no_step() -> None:
    event = ledger.told_again(step(2, 1), position=2_000_000)
    assert push_for(event.subject, event.to_bytes()) is None


def test_a_row_from_before_numbers_is_no_step() -> None:
    row = ledger.payment_row(1, "created", ledger.START)
    event = ledger.change("payments", row, position=1_000_000, ordinal=1, at=ledger.START)
    assert push_for(event.subject, event.to_bytes()) is None


@pytest.mark.parametrize(
    "event",
    [step("2"), step(True), step(2.5), step(2, 1, merchant_id=None), step(2, 1, id=7)],
    ids=["text", "boolean", "fraction", "no merchant", "no id"],
)
def test_what_cannot_be_addressed_or_numbered_is_poison(event: ChangeEvent) -> None:
    with pytest.raises(PoisonEventError):
        push_for(event.subject, event.to_bytes())


@pytest.mark.parametrize("payload", [None, b"", b"not JSON", b"{}"])
def test_what_is_no_envelope_is_poison(payload: bytes | None) -> None:
    with pytest.raises(PoisonEventError):
        push_for("ledger.payment.pending", payload)


def test_an_event_on_anothers_subject_is_poison() -> None:
    with pytest.raises(PoisonEventError, match="published on"):
        push_for("ledger.payment.completed", step(2, 1).to_bytes())
