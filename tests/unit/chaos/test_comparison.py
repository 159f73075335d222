"""The comparison of source and stream finds every kind of difference."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ingest import contract
from ingest.contract import ChangeEvent, EventId, Operation
from tests.fixtures.auditor import Change
from tests.fixtures.capture import Stored
from tests.fixtures.checksum import Comparison, RollingChecksum, told

MOMENT = datetime(2026, 2, 14, 9, 30, tzinfo=UTC)


def stored(sequence: int, position: int, ordinal: int, **other: object) -> Stored:
    event = ChangeEvent(
        table="payments",
        operation=Operation.INSERT,
        subject="ledger.payment.created",
        position=position,
        ordinal=ordinal,
        ends=True,
        lsn=position + 8,
        database_transaction="77",
        committed_at=MOMENT,
        captured_at=MOMENT,
        key="mer_1",
        before=None,
        after={"id": f"pay_{sequence}", "merchant_id": "mer_1", "amount_minor": "5"},
    )
    event = replace(event, **other)  # type: ignore[arg-type]
    lines = contract.header_lines(
        event_id=event.id,
        position=event.position,
        committed_at=contract.timestamp_text(event.committed_at),
        key=event.key,
        ends=bool(event.ends),
    )
    headers = dict(line.split(": ", 1) for line in lines.decode().splitlines())
    return Stored(sequence, event.subject, headers, event, event.to_bytes())


STREAM = [stored(1, 100, 1), stored(2, 200, 1, ends=False), stored(3, 200, 2)]
COMMITTED = told(STREAM)


def test_the_same_changes_settle_and_their_checksums_are_equal() -> None:
    comparison = Comparison()
    comparison.take(STREAM[:1], COMMITTED[:2])
    comparison.take(STREAM[1:], COMMITTED[2:])
    comparison.settle()
    assert comparison.compared == 3
    assert comparison.source.counts == {"payments": 3}


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda changes: changes[:-1], "1 events that nobody committed"),
        (lambda changes: [*changes, changes[-1]], "1 changes are not on the stream"),
        (lambda changes: [changes[1], changes[0], changes[2]], "place is"),
        (lambda changes: [replace(changes[0], ends=False), *changes[1:]], "ends is True"),
        (
            lambda changes: [replace(changes[0], row={"id": "pay_1"}), *changes[1:]],
            "row.amount_minor is 5, committed was missing",
        ),
        (
            lambda changes: [replace(changes[0], place=EventId(100, 2)), *changes[1:]],
            "place is 0000000000000064-00000001",
        ),
    ],
)
def test_every_difference_is_found(
    harm: Callable[[list[Change]], list[Change]], words: str
) -> None:
    comparison = Comparison()
    with pytest.raises(AssertionError, match=words):
        _compare(comparison, harm(COMMITTED))


def _compare(comparison: Comparison, committed: list[Change]) -> None:
    comparison.take(STREAM, committed)
    comparison.settle()


def test_an_event_twice_or_back_in_order_is_found() -> None:
    with pytest.raises(AssertionError, match="follows"):
        Comparison().take([STREAM[0], STREAM[0]], COMMITTED)
    with pytest.raises(AssertionError, match="follows"):
        Comparison().take([STREAM[1], STREAM[0]], COMMITTED)


def test_a_message_whose_headers_say_otherwise_is_found() -> None:
    harmed = replace(STREAM[0], headers={**STREAM[0].headers, contract.HEADER_KEY: "mer_2"})
    with pytest.raises(AssertionError):
        Comparison().take([harmed], COMMITTED)


def test_a_checksum_depends_on_place_and_order() -> None:
    def over(changes: list[Change]) -> dict[str, str]:
        rolling = RollingChecksum()
        for change in changes:
            rolling.add(change)
        return rolling.texts()

    assert over(COMMITTED) == over(list(COMMITTED))
    assert over(COMMITTED) != over(COMMITTED[::-1])
    assert over(COMMITTED) != over([replace(COMMITTED[0], place=EventId(1, 1)), *COMMITTED[1:]])
