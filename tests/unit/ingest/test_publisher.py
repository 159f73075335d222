"""Batches, their fence on the wire, and the server's answers."""

import pytest

from ingest.contract import EventId
from ingest.envelope import Message
from ingest.errors import Fenced, PublishFailed
from ingest.publisher import (
    MAX_BATCH_MESSAGES,
    BatchWindow,
    read_ack,
    wire_form,
)


def message(number: int, size: int = 10) -> Message:
    return Message(EventId(1, number), "ledger.payment.created", b"Key: 1\r\n", b"x" * size)


def wire(
    *messages: Message, is_chain: bool = True, max_payload: int = 10_000
) -> list[tuple[str, list[str], bytes]]:
    """Read a batch off the wire as a server would: (command, header lines, payload)."""
    data = wire_form(
        messages,
        is_chain=is_chain,
        batch_id="b1",
        fence=41,
        reply="_INBOX.1",
        max_payload=max_payload,
    )
    found = []
    while data:
        command, _, data = data.partition(b"\r\n")
        header_size, total = (int(part) for part in command.split()[-2:])
        headers, payload, rest = data[:header_size], data[header_size:total], data[total:]
        assert headers.startswith(b"NATS/1.0\r\n")
        assert headers.endswith(b"\r\n\r\n")
        assert rest.startswith(b"\r\n")
        found.append((command.decode(), headers.decode().split("\r\n")[1:-2], payload))
        data = rest[2:]
    return found


def test_one_message_is_plain_and_fenced() -> None:
    [(command, headers, payload)] = wire(message(1))
    assert command.startswith("HPUB ledger.payment.created _INBOX.1 ")
    assert headers == ["Key: 1", "Nats-Expected-Last-Sequence: 41"]
    assert payload == b"x" * 10


def test_each_of_a_chain_is_stored_only_behind_the_one_before() -> None:
    first, middle, last = wire(message(1), message(2), message(3))
    assert first[1] == ["Key: 1", "Nats-Expected-Last-Sequence: 41", "Nats-Msg-Id: b1.1"]
    assert middle[1] == ["Key: 1", "Nats-Expected-Last-Msg-Id: b1.1", "Nats-Msg-Id: b1.2"]
    assert last[1] == ["Key: 1", "Nats-Expected-Last-Msg-Id: b1.2"]
    assert all("_INBOX.1" in command for command, _, _ in (first, middle, last))


def test_the_first_of_a_batch_carries_the_fence_and_the_last_commits() -> None:
    first, middle, last = wire(message(1), message(2), message(3), is_chain=False)
    assert first[1] == [
        "Key: 1",
        "Nats-Expected-Last-Sequence: 41",
        "Nats-Batch-Id: b1",
        "Nats-Batch-Sequence: 1",
    ]
    assert middle[1] == ["Key: 1", "Nats-Batch-Id: b1", "Nats-Batch-Sequence: 2"]
    assert last[1] == [
        "Key: 1",
        "Nats-Batch-Id: b1",
        "Nats-Batch-Sequence: 3",
        "Nats-Batch-Commit: 1",
    ]
    assert ["_INBOX.1" in command for command, _, _ in (first, middle, last)] == [True, False, True]


def test_a_message_the_server_would_not_take_is_named() -> None:
    with pytest.raises(PublishFailed, match=r"0000000000000001-00000002 has \d+ bytes"):
        wire(message(1), message(2, size=200), max_payload=150)


def test_a_window_fills_up_to_the_servers_limit() -> None:
    window = BatchWindow()
    batches = [window.add(message(number)) for number in range(1, 2 * MAX_BATCH_MESSAGES + 2)]
    full = [batch for batch in batches if batch is not None]
    assert [len(batch) for batch in full] == [MAX_BATCH_MESSAGES] * 2
    rest = window.take()
    assert [m.event_id.ordinal for m in [*full[0], *full[1], *rest]] == list(
        range(1, 2 * MAX_BATCH_MESSAGES + 2)
    )
    assert window.take() == []


def test_a_window_is_bounded_in_bytes_too() -> None:
    window = BatchWindow(messages=100, size=25)
    assert window.add(message(1)) is None
    assert window.add(message(2)) is None
    full = window.add(message(3))
    assert full is not None
    assert len(full) == 2
    alone = window.add(message(4, size=1000))
    assert alone is not None
    assert [m.event_id.ordinal for m in alone] == [3]
    assert [m.event_id.ordinal for m in window.take()] == [4]


def test_an_acknowledgement_names_the_new_last_sequence() -> None:
    answer = b'{"stream":"LEDGER","seq":44,"batch":"b1","count":3}'
    assert read_ack(answer, stream="LEDGER", fence=41, count=3) == 44
    assert read_ack(b'{"stream":"LEDGER","seq":42}', stream="LEDGER", fence=41, count=1) == 42


@pytest.mark.parametrize("code", [10070, 10071])
def test_a_wrong_last_sequence_is_another_publisher(code: int) -> None:
    answer = f'{{"error":{{"code":400,"err_code":{code},"description":"wrong last sequence"}}}}'
    with pytest.raises(Fenced, match="another publisher") as caught:
        read_ack(answer.encode(), stream="LEDGER", fence=41, count=3)
    assert caught.value.expected == 41


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"", "cannot be read"),
        (b"[]", "cannot be read"),
        (b'{"stream":"LEDGER"}', "cannot be read"),
        (b'{"stream":"LEDGER","seq":45,"count":3}', "were sent"),
        (b'{"stream":"LEDGER","seq":44,"count":2}', "were sent"),
        (b'{"stream":"OTHER","seq":44,"count":3}', "were sent"),
        (b'{"error":{"err_code":10077,"description":"maximum bytes exceeded"}}', "maximum bytes"),
        (b'{"error":{"err_code":10176,"description":"batch is incomplete"}}', "incomplete"),
    ],
)
def test_any_other_answer_is_a_failure(answer: bytes, told: str) -> None:
    with pytest.raises(PublishFailed, match=told) as caught:
        read_ack(answer, stream="LEDGER", fence=41, count=3)
    assert not isinstance(caught.value, Fenced)
