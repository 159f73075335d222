"""Child processes that never outlive their parent.

Each child asks the kernel to signal it when the parent thread dies (PR_SET_PDEATHSIG), after its
user was changed and before its program starts, so a supervisor that is killed leaves nothing
behind. A child whose parent died while it was starting ends with status 97 before its program
runs.
"""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from infra.stack.accounts import Account

PARENT_GONE_STATUS = 97
_SPAWN_TIMEOUT_S = 30

# The kernel sends the death signal when the thread that forked ends, not the process. One thread
# that lives as long as the process does all forking, so that callers may use any thread.
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")

# Runs in the child between fork and the program. It is passed as text, not as a file, because the
# child's user may not be able to read the checkout.
_LAUNCHER = f"""
import ctypes, os, sys
parent, death_signal, program = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
if ctypes.CDLL(None, use_errno=True).prctl(1, death_signal, 0, 0, 0) != 0:
    sys.exit("prctl(PR_SET_PDEATHSIG): " + os.strerror(ctypes.get_errno()))
if os.getppid() != parent:
    os._exit({PARENT_GONE_STATUS})
os.umask(0o077)
try:
    os.execvp(program[0], program)
except OSError as error:
    sys.exit(f"{{program[0]}}: {{error.strerror}}")
"""


def spawn(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path,
    log: Path,
    account: Account | None = None,
    death_signal: signal.Signals = signal.SIGKILL,
) -> subprocess.Popen[bytes]:
    """Start `command` in its own process group, output appended to `log`.

    `account` is the user to become (None: stay as we are). Raises OSError when the log, the folder
    or the interpreter cannot be opened; a missing program shows as exit status 1 with a line in
    the log.
    """
    # Switching the user with three arguments works only as root; they are simply absent otherwise.
    identity = (
        {}
        if account is None
        else {"user": account.uid, "group": account.gid, "extra_groups": [account.gid]}
    )
    launcher = (sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()))
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def fork() -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = subprocess.Popen(
            [*launcher, str(int(death_signal)), *command],
            env=dict(env),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            process_group=0,
            **identity,  # type: ignore[call-overload]
        )
        return process

    try:
        return _spawner.submit(fork).result(timeout=_SPAWN_TIMEOUT_S)
    finally:
        os.close(descriptor)


def signal_group(pid: int, what: signal.Signals) -> None:
    """Signal every process of the group that `pid` leads; a group that is gone is no error."""
    try:
        os.killpg(pid, what)
    except ProcessLookupError:
        return


def stop(process: subprocess.Popen[bytes], *, stop_signal: signal.Signals, timeout_s: float) -> int:
    """Stop a child and its group: politely, then with SIGKILL after `timeout_s`.

    Returns the exit status (negative: the signal that ended it).
    """
    if process.poll() is None:
        process.send_signal(stop_signal)
        try:
            process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
    status = process.wait(timeout=10)
    signal_group(process.pid, signal.SIGKILL)
    return status


def base_environment(home: Path) -> dict[str, str]:
    """Return the variables every child gets; those of its room are added by the caller.

    Nothing else of the caller's environment reaches a service, so that a start from any shell
    gives the same services and no service sees another's secrets.
    """
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
    }


def tail(log: Path, lines: int = 20, limit_bytes: int = 64 * 1024) -> list[str]:
    """Return the last `lines` lines of a log; an absent log has none."""
    try:
        with log.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - limit_bytes))
            text = stream.read().decode(errors="replace")
    except FileNotFoundError:
        return []
    return text.splitlines()[-lines:]


def describe_exit(status: int) -> str:
    """Say in words how a process ended, as `giovang status` shows it."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exited with status {status}"


def wait_for_exit(pid: int, *, timeout_s: float) -> bool:
    """Wait until no process `pid` exists; it need not be our child. False at the deadline."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            ready, _, _ = select.select([descriptor], [], [], deadline - time.monotonic())
            if ready:
                return True
        finally:
            os.close(descriptor)
    return False
