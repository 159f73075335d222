"""Starting the stack in the background and waiting until it is healthy.

The supervisor becomes a process in a session of its own, so neither the terminal nor its end
reaches it. The caller follows the status file and gets StartError, with the guilty service's last
lines, when the start fails.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from infra.stack.accounts import service_account
from infra.stack.process import tail
from infra.stack.run import Snapshot
from infra.stack.settings import CHECKOUT, StackSettings
from infra.stack.state import StateError, StateFolder
from infra.stack.supervisor import StartError

# Beyond the longest start that can still succeed: every part has its own, shorter deadline.
DEADLINE_S = 3600.0
PAUSE_S = 0.1


def start(
    settings: StackSettings, arguments: Sequence[str], on_snapshot: Callable[[Snapshot], None]
) -> Snapshot:
    """Start a supervisor in the background; return its status once all is healthy."""
    folder = StateFolder(settings.state)
    folder.prepare(service_account())
    log = folder.log("supervisor")
    with log.open("ab") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "infra.stack", "up", "--supervise", *arguments],
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        ended = supervisor.poll()
        snapshot = folder.read_status()
        known = snapshot.get("supervisor", {})
        if known.get("pid") == supervisor.pid:
            on_snapshot(snapshot)
            if known["phase"] == "running":
                return snapshot
        if ended is not None:
            raise _failure(folder, supervisor.pid, ended)
        time.sleep(PAUSE_S)
    message = f"the stack was not healthy after {DEADLINE_S:g} s; ./giovang status shows where"
    raise StateError(message)


def _failure(folder: StateFolder, pid: int, status: int) -> Exception:
    known = folder.read_status().get("supervisor", {})
    error = known.get("error") if known.get("pid") == pid else None
    if error:
        reason = str(error["message"]).removeprefix(f"{error['service']}: ")
        return StartError(error["service"], reason, error["lines"])
    if known.get("pid") == pid and known.get("phase") == "stopped":
        return StateError("the stack was stopped while it started")
    # It ended before it supervised anything; its last line is the sentence it said.
    last = tail(folder.log("supervisor"), 1)
    sentence = last[0].removeprefix("giovang: ") if last else f"the supervisor ended with {status}"
    return StateError(sentence)
