"""The risk processor between stream and engine: the same alerts, however it is run."""

import pytest

from tests.fixtures import ledger_stream as ledger
from tests.fixtures.risk import Kept, Letters, arrival, expected, processor, read, rules, shopping

MESSAGES = read(shopping(seed=7, count=400))


async def run(kept: Kept, records: dict[bytes, bytes], size: int, first: int = 0) -> None:
    judge = processor(kept, records)
    for begin in range(first, len(MESSAGES), size):
        await judge.process(MESSAGES[begin : begin + size])


async def test_the_recorded_stream_has_something_of_everything() -> None:
    kept = Kept()
    await run(kept, {}, 100)
    assert {alert.rule_id for alert in kept.alerts.values()} == {one.id for one in rules().rule}
    assert kept.watermark is not None
    assert kept.watermark.stream_sequence == 400


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
async def test_batches_of_any_size_give_the_same_bytes(size: int) -> None:
    kept = Kept()
    await run(kept, {}, size)
    assert kept.told() == [alert.to_bytes() for alert in expected(rules(), MESSAGES)]


async def test_a_poison_event_is_buried_and_its_neighbours_pass() -> None:
    letters, kept, records = Letters(), Kept(), dict[bytes, bytes]()
    events = [
        arrival(number, ledger.START, payer_address="w", merchant_id="mer_1")
        for number in range(1, 5)
    ]
    poison = arrival(9, ledger.START, amount_minor="much")
    messages = read([*events[:2], poison, *events[2:]])
    await processor(kept, records, letters).process(messages)
    assert [(message.offset, type(error).__name__) for message, error in letters.sent] == [
        (3, "PoisonEventError")
    ]
    assert [alert.rule_id for alert in kept.alerts.values()] == ["wallet-velocity"]
