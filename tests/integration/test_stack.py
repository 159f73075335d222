"""The whole stack by its command line: status, logs, restarts, isolation, no orphans."""

import contextlib
import json
import os
import pwd
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from infra.stack.probes import wait_until
from infra.stack.state import StateFolder
from tests.fixtures.services import Stack, describe_stack, start_stack, stop_stack

# A stack is started, and in one test twice.
pytestmark = pytest.mark.timeout(900)

DEADLINE_S = 120.0
SERVICES = {
    "ledger-db",
    "analytics-db",
    "nats",
    "redis",
    "localnet",
    "api",
    "watcher",
    "capture",
    "warehouse",
    "realtime",
    "risk",
    "modeller",
    "dashboards",
}
# Which of the secrets each room may hold, by the name they have in secrets.json.
ALLOWED = {
    "api": {
        "giovang_api",
        "giovang_operator",
        "redis",
        "admin_key",
        "session_private_key",
        "sealing_key",
        "demo_payer_key",
    },
    "watcher": {"giovang_watcher", "redis"},
    "capture": {"giovang_capture"},
    "warehouse": {"giovang_streams"},
    "realtime": {"redis"},
    "risk": {"giovang_streams"},
    "modeller": {"giovang_dbt"},
    "dashboards": {"giovang_dashboards"},
    "localnet": set(),
    "nats": set(),
    "redis": set(),
    "ledger-db": set(),
    "analytics-db": set(),
}
PUBLIC = {"session_public_key", "collection_wallet", "demo_payer"}


def reached(question: Callable[[], bool], what: str) -> None:
    wait_until(question, what=what, timeout_s=DEADLINE_S)


def processes(stack: Stack) -> dict[str, psutil.Process]:
    """Return the process of each service."""
    found = {}
    for name, row in stack.status().items():
        assert isinstance(row["pid"], int), row
        found[name] = psutil.Process(row["pid"])
    return found


def listening(process: psutil.Process) -> set[str]:
    """Return the addresses that one process listens on."""
    return {
        entry.laddr.ip
        for entry in process.net_connections(kind="inet")
        if entry.status == psutil.CONN_LISTEN
    }


def test_status_has_the_promised_shape_and_all_is_healthy(stack: Stack) -> None:
    answer = stack.run("status", "--json")
    rows = json.loads(answer.stdout)["services"]
    assert {row["name"] for row in rows} == SERVICES
    promised = {"name", "state", "address", "pid", "since", "restarts", "log"}
    for row in rows:
        assert promised <= set(row)
        assert row["state"] == "healthy", row
        assert Path(row["log"]).is_file()
        assert row["memory_mb"] > 1


def test_nothing_listens_beyond_loopback(stack: Stack) -> None:
    for name, process in processes(stack).items():
        addresses = listening(process)
        for member in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # a backend that just ended
                addresses |= listening(member)
        assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, name


@pytest.mark.skipif(os.geteuid() != 0, reason="a normal user runs everything as himself")
def test_services_run_without_privileges(stack: Stack) -> None:
    uid = pwd.getpwnam("giovang").pw_uid
    users = {name: process.uids().effective for name, process in processes(stack).items()}
    assert set(users.values()) == {uid}, users


def test_each_service_holds_only_its_own_secrets(stack: Stack) -> None:
    for name, process in processes(stack).items():
        environment = "\0".join(process.environ().values())
        held = {
            secret
            for secret, text in stack.secrets.items()
            if secret not in PUBLIC and text in environment
        }
        assert held <= ALLOWED[name], name


def test_a_killed_service_is_started_again_and_shown(stack: Stack) -> None:
    before = stack.status()["redis"]
    os.kill(int(str(before["pid"])), signal.SIGKILL)
    reached(
        lambda: (
            stack.status()["redis"]["state"] == "healthy"
            and stack.status()["redis"]["pid"] != before["pid"]
        ),
        "redis is healthy again",
    )
    after = stack.status()["redis"]
    assert after["restarts"] == int(str(before["restarts"])) + 1
    assert after["last_exit"] == "killed by SIGKILL"


def test_a_second_start_is_told_who_runs(stack: Stack) -> None:
    answer = stack.run("up", "--no-demo")
    assert answer.returncode == 1
    assert "already running (supervisor pid " in answer.stderr
    again = stack.run("up", "--detach")
    assert again.returncode == 0
    assert stack.endpoints["dashboards"] in again.stdout


def test_reset_refuses_while_the_stack_runs(stack: Stack) -> None:
    answer = stack.run("reset", "--yes")
    assert answer.returncode == 1
    assert "already running" in answer.stderr


def test_logs_of_one_service_and_of_an_unknown_one(stack: Stack) -> None:
    answer = stack.run("logs", "nats", "-n", "1000")
    assert answer.returncode == 0
    assert "Server is ready" in answer.stdout
    unknown = stack.run("logs", "kafka")
    assert unknown.returncode == 1
    assert "there is no log of 'kafka'" in unknown.stderr


def test_capture_answers_for_the_running_stack(stack: Stack) -> None:
    answer = stack.run("capture", "status", "--json")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    told = json.loads(answer.stdout)
    assert told["state"] == "streaming"
    assert told["stream"]["sync"] == "as stated"
    checked = stack.run("capture", "check", timeout_s=180)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    live = stack.run("capture", "check", "--live")
    assert live.returncode == 0, live.stdout + live.stderr


def test_a_killed_supervisor_leaves_nothing_and_the_next_start_recovers(
    postgres_tree: Path, service_folder: Path
) -> None:
    described = describe_stack(service_folder / "killed", postgres_tree)
    folder = StateFolder(described.state_dir)
    started = start_stack(described)
    try:
        pids = [process.pid for process in processes(started).values()]
        supervisor = folder.supervisor_pid()
        assert supervisor is not None
        postmaster = processes(started)["ledger-db"]
        os.kill(supervisor, signal.SIGKILL)
        with contextlib.suppress(psutil.NoSuchProcess):
            postmaster.kill()  # before it can tidy up after itself
        reached(lambda: not any(map(psutil.pid_exists, pids)), "every service ended")
        reached(lambda: folder.leftovers() == [], "nothing of the stack is left")
        assert not folder.is_supervised()
        assert {row["state"] for row in started.status().values()} == {"stopped"}
        assert list(folder.run.glob("*.notify")), "sockets of the dead run are still there"
        began = time.monotonic()
        again = start_stack(described)
        sys.stdout.write(f"start after a kill: {time.monotonic() - began:.1f} s\n")
        assert {row["state"] for row in again.status().values()} == {"healthy"}
        assert again.secrets == started.secrets
    finally:
        stop_stack(described)
    assert folder.leftovers() == []
