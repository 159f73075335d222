"""The supervisor with real child processes: order, restarts, stalls, clean stops, no orphans."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra.stack import probes
from infra.stack.probes import wait_until
from infra.stack.state import INSTANCE_VARIABLE, AlreadyRunningError, StateFolder, end_leftovers
from infra.stack.supervisor import ATTEMPTS_AT_START, StartError, Supervisor
from infra.stack.units import Kind, Service, State, Status

DEADLINE_S = 60.0

READY = """
import os, socket
channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
def say(words): channel.sendto(words.encode(), os.environ["NOTIFY_SOCKET"])
def note(sign): open(os.environ["FOLDER"] + "/journal", "a").write(os.environ["NAME"] + sign)
"""
SERVE = (
    READY
    + """
import signal, sys, time
def end(*_):
    note("- ")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
note("+ ")
say("READY=1\\nSTATUS=serving")
while True:
    time.sleep(0.1)
    say("WATCHDOG=1")
"""
)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Service]:
    """Return a function that describes a service running a piece of Python."""

    def describe(name: str, code: str = SERVE, **more: object) -> Service:
        command = (sys.executable, "-c", code)
        env = {"PATH": "/usr/bin:/bin", "NAME": name, "FOLDER": str(tmp_path)}
        values: dict[str, object] = {"env": env, "stop_timeout_s": 30.0, **more}
        log = tmp_path / f"{name}.log"
        return Service(name=name, command=command, log=log, cwd=tmp_path, **values)  # type: ignore[arg-type]

    return describe


async def reached(question: Callable[[], bool], what: str) -> None:
    """Wait until the answer is yes."""
    deadline = time.monotonic() + DEADLINE_S
    while not question():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"
        await asyncio.sleep(0.02)


def of(supervisor: Supervisor, name: str) -> Status:
    """Return the status of one service."""
    return next(status for status in supervisor.statuses() if status.name == name)


def pid_of(supervisor: Supervisor, name: str) -> int:
    """Return the process id of one running service."""
    pid = of(supervisor, name).pid
    assert pid is not None
    return pid


async def test_services_start_in_order_and_stop_in_reverse(
    make: Callable[..., Service], tmp_path: Path
) -> None:
    step = READY + 'note("! ")'
    supervisor = Supervisor(
        [
            make("shop", depends_on=("tables",)),
            make("tables", step, kind=Kind.STEP, depends_on=("database",)),
            make("database"),
        ],
        socket_folder=tmp_path,
    )
    await supervisor.start()
    assert [s.state for s in supervisor.statuses()] == [State.HEALTHY, State.DONE, State.HEALTHY]
    assert of(supervisor, "shop").detail == "serving"
    await supervisor.stop()
    assert (tmp_path / "journal").read_text().split() == [
        "database+",
        "tables!",
        "shop+",
        "shop-",
        "database-",
    ]
    assert of(supervisor, "shop").state == State.STOPPED
    assert of(supervisor, "tables").state == State.DONE
    assert all(status.pid is None for status in supervisor.statuses())


async def test_a_killed_service_comes_back_and_is_counted(
    make: Callable[..., Service], tmp_path: Path
) -> None:
    seen: list[str] = []
    supervisor = Supervisor(
        [make("shop")],
        socket_folder=tmp_path,
        on_change=lambda: seen.append(of(supervisor, "shop").label),
    )
    await supervisor.start()
    first = pid_of(supervisor, "shop")
    seen.clear()
    os.kill(first, signal.SIGKILL)
    await reached(lambda: of(supervisor, "shop").restarts == 1, "the restart is counted")
    await reached(lambda: of(supervisor, "shop").state == State.HEALTHY, "healthy again")
    status = of(supervisor, "shop")
    assert status.pid != first
    assert status.last_exit == "killed by SIGKILL"
    assert any(label.startswith("restarting (in ") for label in seen), seen
    await supervisor.stop()


async def test_delays_grow_while_a_service_keeps_dying(
    make: Callable[..., Service], tmp_path: Path
) -> None:
    waits: list[float] = []

    def note() -> None:
        wait = of(supervisor, "shop").retry_in_s
        if wait is not None:
            waits.append(wait)

    # Serves once; after that it dies at once.
    code = (
        "import os, sys\nmark = os.environ['FOLDER'] + '/served'\n"
        "if os.path.exists(mark): sys.exit(3)\nopen(mark, 'w').close()\n" + SERVE
    )
    supervisor = Supervisor(
        [make("shop", code)], socket_folder=tmp_path, on_change=note, jitter=lambda: 0.0
    )
    await supervisor.start()
    os.kill(pid_of(supervisor, "shop"), signal.SIGKILL)
    await reached(lambda: len(waits) >= 5, "five restarts")
    assert waits[:4] == pytest.approx([0.5, 1.0, 2.0, 4.0], abs=0.4)
    assert of(supervisor, "shop").last_exit == "exited with status 3"
    began = time.monotonic()
    await supervisor.stop()
    assert time.monotonic() - began < 7, "a stop must not wait for the next attempt"


async def test_a_silent_service_is_stalled_and_started_again(
    make: Callable[..., Service], tmp_path: Path
) -> None:
    seen: list[str] = []
    supervisor = Supervisor(
        [make("shop", silence_limit_s=4.0, stop_timeout_s=1.0)],
        socket_folder=tmp_path,
        on_change=lambda: seen.append(of(supervisor, "shop").state),
    )
    await supervisor.start()
    first = pid_of(supervisor, "shop")
    os.kill(first, signal.SIGSTOP)
    await reached(lambda: State.STALLED in seen, "the stall is seen")
    await reached(
        lambda: (
            of(supervisor, "shop").state == State.HEALTHY and of(supervisor, "shop").pid != first
        ),
        "another process serves",
    )
    assert (of(supervisor, "shop").last_exit or "").startswith("silent for ")
    assert not psutil.pid_exists(first)
    await supervisor.stop()


async def test_a_step_that_fails_ends_the_start_with_its_words(
    make: Callable[..., Service], tmp_path: Path
) -> None:
    code = "import sys; sys.exit('no such table: payments')"
    supervisor = Supervisor(
        [
            make("database"),
            make("tables", code, kind=Kind.STEP, depends_on=("database",)),
            make("shop", depends_on=("tables",)),
        ],
        socket_folder=tmp_path,
        jitter=lambda: 1.0,
    )
    with pytest.raises(StartError, match="tables: exited with status 1") as failure:
        await supervisor.start()
    assert failure.value.lines == ["no such table: payments"] * ATTEMPTS_AT_START
    await supervisor.stop()
    states = {status.name: status.state for status in supervisor.statuses()}
    assert states == {
        "database": State.STOPPED,
        "tables": State.FAILED,
        "shop": State.STOPPED,
    }


async def test_a_start_does_not_wait_for_the_background_nor_fall_with_it(
    make: Callable[..., Service], tmp_path: Path
) -> None:
    code = f"import pathlib, sys, time\nwhile not pathlib.Path({str(tmp_path / 'go')!r}).exists():"
    code += " time.sleep(0.05)\nsys.exit('no history today')"
    supervisor = Supervisor(
        [make("shop"), make("history", code, kind=Kind.STEP, background=True)],
        socket_folder=tmp_path,
        jitter=lambda: 0.0,
    )
    await asyncio.wait_for(supervisor.start(), DEADLINE_S)
    assert of(supervisor, "history").state == State.STARTING
    (tmp_path / "go").touch()
    await reached(lambda: of(supervisor, "history").state == State.FAILED, "history gives up")
    assert of(supervisor, "shop").state == State.HEALTHY
    await supervisor.stop()


async def test_a_service_that_ignores_the_stop_is_killed_with_its_children(
    make: Callable[..., Service], tmp_path: Path
) -> None:
    code = (
        "import signal, subprocess, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '300'])\nprint(child.pid, flush=True)\n"
        + READY
        + "say('READY=1')\nwhile True: time.sleep(1)\n"
    )
    supervisor = Supervisor([make("stubborn", code, stop_timeout_s=0.5)], socket_folder=tmp_path)
    await supervisor.start()
    grandchild = int((tmp_path / "stubborn.log").read_text())
    await supervisor.stop()
    await reached(lambda: not _runs(grandchild), "the grandchild is gone")


async def test_a_stop_during_the_start_leaves_nothing(
    make: Callable[..., Service], tmp_path: Path
) -> None:
    supervisor = Supervisor(
        [make("slow", "import time; time.sleep(300)"), make("shop", depends_on=("slow",))],
        socket_folder=tmp_path,
    )
    starting = asyncio.create_task(supervisor.start())
    await reached(lambda: of(supervisor, "slow").pid is not None, "the slow service runs")
    pid = pid_of(supervisor, "slow")
    await supervisor.stop()
    await asyncio.wait_for(starting, DEADLINE_S)
    assert not psutil.pid_exists(pid)


async def test_a_probe_tells_readiness_and_settling_follows(
    make: Callable[..., Service], tmp_path: Path
) -> None:
    code = (
        "import os, signal, socket, time\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "open(os.environ['FOLDER'] + '/port', 'w').write(str(server.getsockname()[1]))\n"
        "signal.pause()\n"
    )
    settled: list[bool] = []
    port_file = tmp_path / "port"
    supervisor = Supervisor(
        [
            make(
                "server",
                code,
                probe=lambda: port_file.exists() and probes.tcp(int(port_file.read_text()))(),
                settle=lambda: settled.append(port_file.exists()),
            )
        ],
        socket_folder=tmp_path,
    )
    await supervisor.start()
    assert settled == [True]
    await supervisor.stop()


SUPERVISE = """
import asyncio, sys
from pathlib import Path
from infra.stack.supervisor import Supervisor
from infra.stack.units import Service

async def main(folder, code):
    service = Service(
        name="shop", command=(sys.executable, "-c", code), log=folder / "shop.log", cwd=folder,
        env={"PATH": "/usr/bin:/bin", "NAME": "shop", "FOLDER": str(folder)},
    )
    supervisor = Supervisor([service], socket_folder=folder)
    await supervisor.start()
    print(supervisor.statuses()[0].pid, flush=True)
    await asyncio.sleep(300)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A supervisor in a process of its own, and the process id of the service it runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, str(tmp_path), SERVE],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    yield process, child
    process.kill()
    process.wait(10)
    process.stdout.close()
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


async def test_no_orphan_stays_when_the_supervisor_is_killed(
    supervised: tuple[subprocess.Popen[str], int],
) -> None:
    process, child = supervised
    assert psutil.pid_exists(child)
    process.kill()
    await reached(lambda: not _runs(child), "the kernel ended the child")


def test_one_supervisor_a_folder(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.prepare(None)
    assert not folder.is_supervised()
    with folder.supervised():
        assert folder.is_supervised()
        assert folder.supervisor_pid() == os.getpid()
        with pytest.raises(AlreadyRunningError, match=f"pid {os.getpid()}"), folder.supervised():
            pass
    assert not folder.is_supervised()


def test_what_escaped_an_earlier_run_is_found_and_ended(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    mine = subprocess.Popen(
        ["sleep", "300"], env={INSTANCE_VARIABLE: str(folder.root)}, start_new_session=True
    )
    other = subprocess.Popen(["sleep", "300"], env={INSTANCE_VARIABLE: str(tmp_path / "another")})
    try:
        wait_until(lambda: len(folder.leftovers()) == 1, what="the leftover", timeout_s=DEADLINE_S)
        assert end_leftovers(folder) == 1
        assert not _runs(mine.pid)
        assert other.poll() is None
    finally:
        for process in (mine, other):
            process.kill()
            process.wait(10)


def _runs(pid: int) -> bool:
    """Whether a process is alive; a zombie that nobody collected is not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
