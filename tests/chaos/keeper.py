"""Keeps processes alive as a supervisor does."""

import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

from tests.fixtures.capture import READY_TIMEOUT_S, KeptProcess, poll

_LOOK_S = 0.05
_END_TIMEOUT_S = 60.0
_SETTLED_S = 4.0


class Keeper:
    """Starts each process again whenever it ends; `with` starts them all and leaves none behind.

    `well` says of a process that is up whether it works or stands by.
    """

    def __init__(
        self, processes: Sequence[KeptProcess], well: Callable[[KeptProcess], bool]
    ) -> None:
        self.processes = processes
        self._well = well
        self.starts = 0
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._error: BaseException | None = None

    def __enter__(self) -> "Keeper":
        for process in self.processes:
            self._start(process)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._let_go()
        for process in self.processes:
            process.close()

    def kill(self, process: KeptProcess) -> None:
        """SIGKILL a process; it is started again at once."""
        with self._lock:
            if process.process is not None:
                process.kill()
            self._start(process)

    def check(self) -> None:
        """Raise what ended the keeper itself."""
        if self._error is not None:
            raise self._error

    def stop_all(self) -> list[int]:
        """Stop all processes as an administrator does, and return their exit statuses.

        Each is waited for until it has worked or stood by for a while, since before that it may end
        in any way: one that lost its place may not know it yet.
        """
        well_since: float | None = None

        def is_settled() -> bool:
            nonlocal well_since
            if not self._all_well():
                well_since = None
                return False
            well_since = well_since or time.monotonic()
            return time.monotonic() - well_since > _SETTLED_S

        poll(is_settled, what="every process is well", timeout_s=READY_TIMEOUT_S)
        self._let_go()
        return [process.stop() for process in self.processes if process.process is not None]

    def _all_well(self) -> bool:
        self.check()
        with self._lock:
            return all(self._well(process) for process in self.processes)

    def _let_go(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(_END_TIMEOUT_S)
            assert not self._thread.is_alive(), "the keeper did not end"

    def _start(self, process: KeptProcess) -> None:
        process.start(ready=False)
        self.starts += 1

    def _keep(self) -> None:
        try:
            while not self._end.wait(_LOOK_S):
                for process in self.processes:
                    with self._lock:
                        child = process.process
                        if child is None or child.poll() is not None:
                            self._start(process)
                        else:
                            process.hear()
        except BaseException as error:  # noqa: BLE001 - told by `check`, on the harness's thread
            self._error = error
