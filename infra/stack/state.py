"""The state folder: where everything of one stack lies, who supervises it, and what was last known.

One supervisor a folder, held by a file lock that the kernel drops when its process dies, however it
dies. The status file is replaced whole, so a reader never sees half of one; whether it is still
true is told by the lock.
"""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from infra.stack.accounts import Account, can_enter

INSTANCE_VARIABLE = "GIOVANG_STACK_INSTANCE"


class StateError(Exception):
    """The state folder cannot be used; the message says why and what to do."""


class AlreadyRunningError(StateError):
    """Another supervisor holds the folder."""

    def __init__(self, pid: int | None) -> None:
        super().__init__(
            f"the stack is already running (supervisor pid {pid or 'unknown'}); "
            "./giovang status shows it, ./giovang down stops it"
        )
        self.pid = pid


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Paths below one state folder."""

    root: Path

    @property
    def logs(self) -> Path:
        """One file a service."""
        return self.root / "logs"

    @property
    def data(self) -> Path:
        """What services keep: one folder each."""
        return self.root / "data"

    @property
    def run(self) -> Path:
        """What only matters while the stack runs."""
        return self.root / "run"

    @property
    def secrets(self) -> Path:
        """Passwords and keys of this stack, readable by its owner only."""
        return self.root / "secrets.json"

    @property
    def status_file(self) -> Path:
        """What the supervisor last knew."""
        return self.run / "status.json"

    @property
    def lock_file(self) -> Path:
        """Held by the supervisor, with its process id inside."""
        return self.run / "supervisor.lock"

    def log(self, service: str) -> Path:
        """Log of one service."""
        return self.logs / f"{service}.log"

    def prepare(self, account: Account | None) -> None:
        """Make the folders; StateError where they cannot be made or used by `account`."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            owner = self.root.stat().st_uid
            if owner != os.geteuid():
                message = (
                    f"{self.root} belongs to another user (uid {owner}): run as that user, or set "
                    "GIOVANG_STACK_STATE_DIR to a folder of your own"
                )
                raise StateError(message)
            for folder in (self.root, self.logs, self.data, self.run):
                folder.mkdir(exist_ok=True)
                # Services of the unprivileged account pass through; only their own folders open.
                folder.chmod(0o711)
        except OSError as error:
            message = f"cannot use the state folder {self.root}: {error.strerror}"
            raise StateError(message) from error
        if not can_enter(account, self.data):
            name = account.name if account else "this user"
            message = (
                f"the user {name!r}, who runs the services, cannot reach {self.root}: set "
                "GIOVANG_STACK_STATE_DIR to a folder that others may pass through"
            )
            raise StateError(message)

    def own_folder(self, name: str, account: Account | None) -> Path:
        """A service's own folder below `data`, closed to everyone else."""
        folder = self.data / name
        folder.mkdir(mode=0o700, exist_ok=True)
        if account is not None:
            account.give(folder)
        return folder

    @contextlib.contextmanager
    def supervised(self) -> Iterator[None]:
        """Hold the folder as its supervisor; AlreadyRunningError if another does."""
        with self._open_lock() as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise AlreadyRunningError(self.supervisor_pid()) from error
            handle.seek(0)
            handle.truncate()
            handle.write(f"{os.getpid()}\n")
            handle.flush()
            yield

    def is_supervised(self) -> bool:
        """Whether a live supervisor holds the folder."""
        try:
            handle = self.lock_file.open("r")
        except FileNotFoundError:
            return False
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            return False

    def supervisor_pid(self) -> int | None:
        """Process id of the supervisor that holds, or last held, the folder."""
        try:
            return int(self.lock_file.read_text().strip())
        except (FileNotFoundError, ValueError):
            return None

    def write_status(self, status: Mapping[str, Any]) -> None:
        """Replace what is known."""
        write_private(self.status_file, json.dumps(status, indent=1) + "\n", mode=0o644)

    def read_status(self) -> dict[str, Any]:
        """Return what was last known; empty where nothing ever ran."""
        try:
            known = json.loads(self.status_file.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        return known if isinstance(known, dict) else {}

    def _open_lock(self) -> IO[str]:
        try:
            return self.lock_file.open("a+")
        except OSError as error:
            message = f"cannot open {self.lock_file}: {error.strerror}"
            raise StateError(message) from error

    def leftovers(self) -> list[psutil.Process]:
        """Processes that a supervisor of this folder started and that outlived it.

        The kernel ends a supervisor's children with it; this finds what escaped, such as a
        grandchild, by the mark that every child inherits.
        """
        mark = str(self.root)
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(INSTANCE_VARIABLE) == mark:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found


def write_private(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace a file whole and synced, so that no reader and no power cut sees half of it."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    unfinished = Path(name)
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.chmod(mode)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def end_leftovers(folder: StateFolder, *, timeout_s: float = 10) -> int:
    """End processes that outlived their supervisor; return how many there were."""
    found = [process for process in folder.leftovers() if process.pid != os.getpid()]
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(found, timeout=timeout_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=timeout_s)
    return len(found)
