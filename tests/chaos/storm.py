"""What hits a system under chaos: processes killed and frozen, servers killed, connections harmed.

The schedule comes from one seeded source, so a run that found something can be run again.
"""

import random
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tests.chaos.keeper import Keeper
from tests.fixtures.capture import KeptProcess
from tests.fixtures.wire import Wire

LONG_STALL_S = 18.0
"""Longer than a publisher waits for an acknowledgement, and than a leader may be silent."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is on its way at once, how many faults hit a round, and how long they last."""

    large: int
    faults: tuple[int, int]
    longest_s: float
    long_stalls: bool


@dataclass(slots=True)
class Toll:
    """What was done to the system."""

    kills: int = 0
    faults: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Victim:
    """A server that can be killed, and started again where it was."""

    kill: Callable[[], None]
    start: Callable[[], None]


class Storm:
    """Strikes kept processes, the servers they need and the wires between.

    `weights` says how often which fault is drawn; a fault is named by what it hits, "… killed",
    "… frozen", or is "connections cut" or "connections stalled". `active` returns the process that
    works, as opposed to one that stands by.
    """

    def __init__(
        self,
        what: str,
        keeper: Keeper,
        wires: list[dict[str, Wire]],
        victims: Mapping[str, Victim],
        *,
        weights: Mapping[str, int],
        active: Callable[[], KeptProcess],
        chance: random.Random,
        size: Size,
    ) -> None:
        self._what = what
        self._keeper = keeper
        self._wires = wires
        self._victims = victims
        self._weights = weights
        self._active = active
        self._chance = chance
        self._size = size
        self._schedule = threading.Event()
        self.toll = Toll()

    def wait(self, seconds: float) -> None:
        """Let time pass, as the schedule says."""
        self._schedule.wait(seconds)

    def blow(self, kills_left: int) -> list[str]:
        """Let some faults hit in quick succession, at most so many kills; return what hit."""
        told: list[str] = []
        for number in range(self._chance.randint(*self._size.faults)):
            if number:
                # Long enough at times for a process to be starting, at times to be at work.
                self.wait(self._chance.uniform(0.05, 1.5 * self._size.longest_s))
            fault = self._chance.choices(list(self._weights), list(self._weights.values()))[0]
            if fault.endswith(" killed"):
                if kills_left == 0:
                    break
                kills_left -= 1
            told.append(self._strike(fault))
        return told

    def _strike(self, fault: str) -> str:
        self.toll.faults[fault] += 1
        hit, _, how = fault.rpartition(" ")
        if how == "killed":
            self.toll.kills += 1
            if hit == self._what:
                return f"{fault} ({self._kill_process()})"
            self._victims[hit].kill()
            self.wait(self._chance.uniform(0, 1))
            self._victims[hit].start()
            return fault
        seconds = self._chance.uniform(0.2, self._size.longest_s)
        if self._size.long_stalls and self._chance.random() < 0.2:
            seconds = LONG_STALL_S
        if how == "frozen":
            return f"{fault} for {self._freeze(seconds):.1f} s"
        return self._harm_wires(fault, seconds)

    def _kill_process(self) -> str:
        """Kill the active process mostly, else the one that waits, else both."""
        active = self._active()
        whom = self._chance.choices(("active", "standby", "both"), (6, 1, 2))[0]
        for process in self._keeper.processes:
            if whom == "both" or (process is active) == (whom == "active"):
                self._keeper.kill(process)
        return whom

    def _freeze(self, seconds: float) -> float:
        process = self._active()
        child = process.process
        assert child is not None
        process.freeze()
        self.wait(seconds)
        # The keeper may have started it anew meanwhile, if something killed it.
        if process.process is child and child.poll() is None:
            process.thaw()
        return seconds

    def _harm_wires(self, fault: str, seconds: float) -> str:
        """Cut or stall the connections to one server, of one process or of both."""
        server = self._chance.choice(list(self._victims))
        active = self._keeper.processes.index(self._active())
        chosen = self._chance.choice(([active], list(range(len(self._wires)))))
        wires = [self._wires[number][server] for number in chosen]
        if fault == "connections cut":
            for wire in wires:
                wire.cut()
            return f"{fault} to {server}"
        for wire in wires:
            wire.stall()
        self.wait(seconds)
        for wire in wires:
            wire.release()
        return f"{fault} to {server} for {seconds:.1f} s"


def through(url: str, wire: Wire) -> str:
    """Return a server's URL as it is reached through a wire."""
    parts = urlsplit(url)
    userinfo, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{userinfo}{at}127.0.0.1:{wire.port}"))


@contextmanager
def chaos_folder(progress: Callable[[str], None]) -> Iterator[tuple[Path, ExitStack]]:
    """A folder for all servers, and a stack that ends them; logs outlive a run that failed."""
    with ExitStack() as parts:
        folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="giovang-chaos-")))
        folder.chmod(0o711)
        try:
            with ExitStack() as servers:
                yield folder, servers
        except BaseException:
            progress(f"what every process logged is kept in {_keep_logs(folder)}")
            raise


def _keep_logs(folder: Path) -> Path:
    """Copy the logs out of a folder that is about to go."""
    kept = Path(tempfile.mkdtemp(prefix="giovang-chaos-failed-"))
    for log in folder.rglob("*.log"):
        place = kept / log.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(log, place)
    return kept
