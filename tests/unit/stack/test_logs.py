"""Logs: bounded, and followed line by line through a rotation."""

from collections.abc import Callable, Iterator
from pathlib import Path

from infra.stack.logs import follow, rotate
from infra.stack.process import tail


def test_a_log_over_the_limit_is_kept_aside_and_emptied(tmp_path: Path) -> None:
    log, small = tmp_path / "api.log", tmp_path / "nats.log"
    log.write_text("x" * 100)
    small.write_text("y")
    with log.open("ab") as service:
        assert rotate(tmp_path, limit_bytes=50) == [log]
        service.write(b"next\n")
    assert (tmp_path / "api.log.1").read_text() == "x" * 100
    assert log.read_text() == "next\n"
    assert small.read_text() == "y"


def test_following_sees_each_line_once_and_survives_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    log.write_text("before\n")

    def append(text: str) -> None:
        with log.open("a") as service:
            service.write(text)

    turns: Iterator[Callable[[], object]] = iter(
        [
            lambda: append("one\nhalf"),
            lambda: append(" two\n"),
            lambda: rotate(tmp_path, limit_bytes=0),
            lambda: append("three\n"),
        ]
    )

    def until() -> bool:
        turn = next(turns, None)
        if turn is not None:
            turn()
        return turn is None

    assert [line for _, line in follow([log], until=until)] == ["one", "half two", "three"]


def test_the_tail_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    assert tail(log) == []
    log.write_text("".join(f"{n}\n" for n in range(100)))
    assert tail(log, 3) == ["97", "98", "99"]
