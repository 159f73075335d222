"""Order, delays and words of services: pure rules, no process."""

import signal
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.stack.notify import Notice, fits, parse
from infra.stack.process import describe_exit
from infra.stack.units import (
    LONGEST_DELAY_S,
    OrderError,
    Service,
    State,
    Status,
    backoff_s,
    dependents,
    start_order,
)


def service(name: str, *depends_on: str) -> Service:
    return Service(
        name=name, command=("true",), log=Path("log"), cwd=Path("/"), depends_on=depends_on
    )


def test_each_service_comes_after_what_it_depends_on() -> None:
    order = start_order([service("api", "tables"), service("tables", "db"), service("db")])
    assert [s.name for s in order] == ["db", "tables", "api"]


@given(
    st.lists(st.sets(st.integers(0, 20)), max_size=12).map(
        lambda wanted: [
            service(str(index), *(str(other) for other in others if other < index))
            for index, others in enumerate(wanted)
        ]
    ),
    st.randoms(use_true_random=False),
)
def test_any_order_without_a_circle_can_be_started(
    services: list[Service], shuffler: Random
) -> None:
    shuffler.shuffle(services)
    order = start_order(services)
    place = {each.name: index for index, each in enumerate(order)}
    assert len(order) == len(services)
    for each in order:
        assert all(place[other] < place[each.name] for other in each.depends_on)


def test_a_circle_and_an_unknown_name_are_refused() -> None:
    with pytest.raises(OrderError, match="circle: a, b"):
        start_order([service("a", "b"), service("b", "a")])
    with pytest.raises(OrderError, match="a depends on nowhere"):
        start_order([service("a", "nowhere")])


def test_dependents_reach_through_others() -> None:
    services = [service("api", "tables"), service("tables", "db"), service("db"), service("nats")]
    assert set(dependents(services, "db")) == {"tables", "api"}
    assert dependents(services, "api") == []


def test_delays_double_up_to_a_limit() -> None:
    assert [backoff_s(n, 0.0) for n in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff_s(10_000, 0.0) == LONGEST_DELAY_S


@given(st.integers(1, 100), st.floats(0, 1, exclude_max=True))
def test_jitter_takes_off_at_most_a_quarter(failures: int, jitter: float) -> None:
    full = backoff_s(failures, 0.0)
    assert 0.75 * full <= backoff_s(failures, jitter) <= full


def test_a_restart_is_shown_with_its_delay() -> None:
    assert Status(name="api", state=State.RESTARTING, retry_in_s=4.2).label == "restarting (in 4 s)"
    assert Status(name="api", state=State.HEALTHY).label == "healthy"


def test_the_row_of_a_service_has_the_promised_fields() -> None:
    promised = {"name", "state", "address", "pid", "since", "restarts", "log"}
    assert promised <= set(Status(name="api", state=State.HEALTHY).as_json())


def test_ends_are_told_in_words() -> None:
    assert describe_exit(3) == "exited with status 3"
    assert describe_exit(-signal.SIGKILL) == "killed by SIGKILL"


@pytest.mark.parametrize(
    ("datagram", "notice"),
    [
        (b"READY=1\nSTATUS=serving", Notice(ready=True, alive=True, status="serving")),
        (b"WATCHDOG=1", Notice(ready=False, alive=True, status=None)),
        (b"STATUS=a=b", Notice(ready=False, alive=False, status="a=b")),
        (b"MAINPID=7\n\xff\xfe\n\n=", Notice(ready=False, alive=False, status=None)),
        (b"", Notice(ready=False, alive=False, status=None)),
    ],
)
def test_notify_words(datagram: bytes, notice: Notice) -> None:
    assert parse(datagram) == notice


@given(st.binary(max_size=200))
def test_no_datagram_breaks_the_listener(datagram: bytes) -> None:
    parse(datagram)


def test_socket_paths_have_a_limit() -> None:
    assert fits(Path("/srv/giovang/.giovang/run"), ["provision-capture"])
    assert not fits(Path("/" + "x" * 90), ["provision-capture"])
