"""Where a message goes when its topic is given more partitions."""

import pytest

from streams.transport import names
from streams.transport.layouts import History, placed_anew
from streams.transport.reader import Record
from streams.transport.topics import declared_shape


@pytest.mark.parametrize("source", [None, b"", b"k1", b"\x00\xff", "giờ".encode()])
@pytest.mark.parametrize("key", [b"", b"k1", b'"k1"'])
def test_a_change_says_which_key_placed_it(source: bytes | None, key: bytes) -> None:
    headers = names.encode_headers(key, b"1", None, None) or {}
    headers[names.SOURCE_HEADER] = names.encode_source(source, key)
    assert names.decode_source(headers) == source
    assert names.decode_headers(headers) == {}, "no header of the user's"


def test_a_change_from_before_says_nothing() -> None:
    with pytest.raises(KeyError):
        names.decode_source(names.encode_headers(b"k1", b"1", None, None))


def test_a_key_moves_and_what_no_key_placed_stays() -> None:
    partition = names.partition_for(b"k1", 4)
    assert placed_anew(b"k1", partition, 4, 6) == names.partition_for(b"k1", 6)
    assert placed_anew(None, 3, 4, 6) == 3
    elsewhere = (partition + 1) % 4
    assert placed_anew(b"k1", elsewhere, 4, 6) == elsewhere


@pytest.mark.parametrize(
    ("subject", "origin"),
    [
        ("faust.topic.e1.3", (0, 3)),
        ("faust.topic.e1.e2.5", (2, 5)),
        ("faust.topic.e1.3.e2", (0, 3)),
        ("faust.topic.e1.e1.0.ka", (1, 0)),
    ],
)
def test_a_subject_says_its_layout_and_partition(subject: str, origin: tuple[int, int]) -> None:
    metadata = {names.PARTITIONS_METADATA: "9", names.LAYOUTS_METADATA: "4,6,9"}
    assert declared_shape("e1", metadata).origin(subject) == origin


def test_what_was_processed_in_any_former_layout_is_done() -> None:
    metadata = {names.PARTITIONS_METADATA: "9", names.LAYOUTS_METADATA: "4,6,9"}
    history = History(declared_shape("t", metadata), {0: [5, 5, 5, 5], 1: [8, 8, 9, 8, 8, 8]})

    def is_done(sequence: int, subject: str) -> bool:
        return history.is_done(Record(sequence, 0.0, 0, subject, None, b""))

    assert is_done(4, "faust.topic.t.2")
    assert is_done(8, "faust.topic.t.2")
    assert not is_done(8, "faust.topic.t.3")
    assert not is_done(9, "faust.topic.t.e1.2")
