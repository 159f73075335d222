"""The producer: what futures tell, partitions, keys, tombstones, headers, sizes, topics."""

import asyncio
from collections import Counter
from time import time

import pytest
from faust.exceptions import NotReady, ProducerSendError
from faust.types import TP

from tests.conformance.apps import Apps, send_numbers, values

AWKWARD_KEYS = (
    b"plain",
    b"with space",
    b"dots.and.*.>",
    b"\x00\xff\xfe\r\n",
    "đồng".encode(),
    b"long" * 200,
)


async def test_a_producer_refuses_before_it_is_started(apps: Apps, name: str) -> None:
    with pytest.raises(NotReady):
        await apps.new().producer.send(name, b"k", b"v", None, None, None)


async def test_a_future_tells_where_the_message_lies(apps: Apps, name: str) -> None:
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        before = time()
        told = await producer.send_and_wait(name, b"k", b"v", 2, None, None)
        after = time()
    async with apps.reading(name) as reading:
        (message,) = await reading.until(1)
    assert (told.topic, told.partition, told.topic_partition) == (name, 2, TP(name, 2))
    assert (told.partition, told.offset) == (message.partition, message.offset)
    assert before - 1 <= message.timestamp <= after + 1, "seconds since 1970"


async def test_flush_waits_until_all_is_stored_in_order(apps: Apps, name: str) -> None:
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        futures = [
            await producer.send(name, b"k%d" % (n % 10), b"%d" % n, None, None, None)
            for n in range(600)
        ]
        async with asyncio.timeout(60):
            await producer.flush()
        assert all(future.done() for future in futures)
    told = [future.result() for future in futures]
    for partition in range(3):
        offsets = [one.offset for one in told if one.partition == partition]
        assert offsets
        assert offsets == sorted(set(offsets))
    async with apps.reading(name) as reading:
        messages = await reading.until(600)
    assert {(m.partition, m.offset) for m in messages} == {(t.partition, t.offset) for t in told}
    for partition in range(3):
        mine = [message for message in messages if message.partition == partition]
        assert [message.offset for message in mine] == sorted(message.offset for message in mine)
        assert values(mine) == sorted(values(mine)), "what was sent first is read first"


async def test_keys_of_any_bytes_come_back(apps: Apps, name: str) -> None:
    for compacting in (False, True):
        topic = f"{name}.{compacting}"
        async with apps.producing() as producer:
            await producer.create_topic(topic, 3, 1, compacting=compacting)
            for key in AWKWARD_KEYS:
                await producer.send_and_wait(topic, key, b"v", None, None, None)
        async with apps.reading(topic) as reading:
            messages = await reading.until(len(AWKWARD_KEYS))
        assert sorted(message.key or b"" for message in messages) == sorted(AWKWARD_KEYS)


async def test_nothing_differs_from_empty(apps: Apps, name: str) -> None:
    sent = ((b"k", None), (b"k", b""), (None, b"v"), (b"", b"v"))
    async with apps.producing() as producer:
        await producer.create_topic(name, 1, 1)
        for key, value in sent:
            await producer.send_and_wait(name, key, value, 0, None, None)
    async with apps.reading(name) as reading:
        messages = await reading.until(len(sent))
    assert [(message.key, message.value) for message in messages] == list(sent)


async def test_headers_come_back(apps: Apps, name: str) -> None:
    headers = {"trace": b"abc", "empty": b"", "Mixed-Case": "đồng".encode()}
    async with apps.producing() as producer:
        assert producer.supports_headers()
        await producer.create_topic(name, 1, 1)
        await producer.send_and_wait(name, b"k", b"mapping", None, None, headers)
        await producer.send_and_wait(name, b"k", b"pairs", None, None, list(headers.items()))
        await producer.send_and_wait(name, b"k", b"none", None, None, None)
    async with apps.reading(name) as reading:
        messages = await reading.until(3)
    assert [message.headers for message in messages] == [headers, headers, {}]


async def test_header_values_are_bytes_not_text(apps: Apps, name: str) -> None:
    headers = {
        "padded": b"  two  ",
        "lines": b"a\r\nForged: b",
        "binary": b"\x00\xff\xfe",
        "a name": b"b",
        "Status": b"404",
    }
    async with apps.producing() as producer:
        await producer.create_topic(name, 1, 1)
        await producer.send_and_wait(name, b"k", b"v", None, None, headers)
        await producer.send_and_wait(name, b"k", None, None, None, headers)
    async with apps.reading(name) as reading:
        messages = await reading.until(2)
    assert [message.headers for message in messages] == [headers, headers]


async def test_a_given_timestamp_is_the_messages(apps: Apps, name: str) -> None:
    async with apps.producing() as producer:
        await producer.create_topic(name, 1, 1)
        await producer.send_and_wait(name, b"k", b"v", None, 1_600_000_000.5, None)
    async with apps.reading(name) as reading:
        (message,) = await reading.until(1)
    assert message.timestamp == pytest.approx(1_600_000_000.5)


async def test_the_partitioner_is_stable_and_even(apps: Apps, name: str) -> None:
    keys = [f"merchant-{number}".encode() for number in range(4000)]
    async with apps.producing() as producer:
        await producer.create_topic(name, 8, 1)
        told = await producer.send_and_wait(name, keys[0], b"v", None, None, None)
        spread = {key: producer.key_partition(name, key) for key in keys}
    assert spread[keys[0]] == TP(name, told.partition)
    loads = Counter(tp.partition for tp in spread.values())
    assert set(loads) == set(range(8))
    # Eight bins of 500 with a standard deviation of 21: five of them is chance no more.
    assert all(abs(load - 500) < 105 for load in loads.values()), loads
    async with apps.producing() as another:
        await another.send_and_wait(name, keys[0], b"v", None, None, None)
        assert {key: another.key_partition(name, key) for key in keys} == spread
    async with apps.reading(name, topic_partitions=8) as reading:
        await reading.until(2)
        for key in keys[:100]:
            mapped = reading.app.consumer.key_partition(name, key)
            assert mapped == spread[key].partition, "producer and consumer agree"


async def test_keyless_messages_use_every_partition(apps: Apps, name: str) -> None:
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        told = [await producer.send_and_wait(name, None, b"v", None, None, None) for _ in range(60)]
    assert {one.partition for one in told} == {0, 1, 2}


async def test_a_large_message_passes_and_a_larger_one_is_refused(apps: Apps, name: str) -> None:
    large, too_large = b"x" * 900_000, b"x" * 3_000_000
    async with apps.producing() as producer:
        await producer.create_topic(name, 1, 1)
        await producer.send_and_wait(name, b"k", large, None, None, None)
        with pytest.raises(ProducerSendError):
            await producer.send_and_wait(name, b"k", too_large, None, None, None)
        await producer.send_and_wait(name, b"k", b"after", None, None, None)
        async with asyncio.timeout(60):
            await producer.flush()
    async with apps.reading(name) as reading:
        messages = await reading.until(2)
    assert [message.value for message in messages] == [large, b"after"]


async def test_a_topic_is_created_once_and_never_reshaped(apps: Apps, name: str) -> None:
    async with apps.producing() as producer:
        await producer.create_topic(name, 3, 1)
        await send_numbers(producer, name, range(10))
        await producer.create_topic(name, 3, 1)
        with pytest.raises(Exception, match=name):
            await producer.create_topic(name, 4, 1)
        with pytest.raises(Exception, match=name):
            await producer.create_topic(name, 3, 1, compacting=True)
    async with apps.reading(name) as reading:
        messages = await reading.until(10)
        assert reading.app.consumer.topic_partitions(name) == 3
    assert sorted(values(messages)) == list(range(10)), "declaring it again lost nothing"
