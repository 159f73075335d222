"""What the supervisor runs: services as data, and what is known of each while it runs.

A `Service` says how a process is started, when it is ready and how it is stopped; a `Status` is
what `giovang status` shows. Both are plain values, so the rules about them need no processes.
"""

import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from infra.stack.accounts import Account
from infra.stack.probes import Probe


class Kind(StrEnum):
    """A service lasts; a step runs to its end once a start."""

    SERVICE = "service"
    STEP = "step"


class State(StrEnum):
    """Where a service stands. `done` is a step's good end, `stalled` a process gone silent."""

    WAITING = "waiting"
    STARTING = "starting"
    HEALTHY = "healthy"
    STALLED = "stalled"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    DONE = "done"


SATISFIED = frozenset({State.HEALTHY, State.DONE})
RUNNING = frozenset({State.STARTING, State.HEALTHY, State.STALLED, State.STOPPING})


class OrderError(Exception):
    """The dependencies name an unknown service or form a circle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One process of the stack.

    Ready is when `probe` says so, or, without a probe, when the process sends READY=1 to its
    NOTIFY_SOCKET; a step is ready when it ended with status 0. From then on a service that neither
    answers its probe nor sends WATCHDOG=1 for `silence_limit_s` is stalled and started again. A
    start does not wait for what runs in the `background`: its failure is shown, and stops nothing.
    """

    name: str
    command: Sequence[str]
    log: Path
    cwd: Path
    kind: Kind = Kind.SERVICE
    background: bool = False
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    depends_on: Sequence[str] = ()
    address: str | None = None
    account: Account | None = None
    probe: Probe | None = None
    probe_interval_s: float = 5.0
    start_timeout_s: float = 120.0
    silence_limit_s: float = 30.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_timeout_s: float = 15.0
    death_signal: signal.Signals = signal.SIGKILL
    # Work in this process right before each start, and once the service answers.
    prepare: Callable[[], None] | None = None
    settle: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What is known of one service at one moment; times are Unix seconds."""

    name: str
    state: str
    address: str | None = None
    pid: int | None = None
    since: str | None = None
    restarts: int = 0
    log: str = ""
    last_exit: str | None = None
    retry_in_s: float | None = None
    detail: str | None = None

    def as_json(self) -> dict[str, object]:
        """The service's row in `giovang status --json`."""
        return asdict(self)

    @property
    def label(self) -> str:
        """The state as a person reads it."""
        if self.state == State.RESTARTING and self.retry_in_s is not None:
            return f"{self.state} (in {self.retry_in_s:.0f} s)"
        return self.state


def start_order(services: Iterable[Service]) -> list[Service]:
    """Sort so that each service comes after all it depends on; ties keep the given order.

    Raises OrderError for an unknown name or a circle.
    """
    by_name = {service.name: service for service in services}
    ordered: dict[str, Service] = {}
    remaining = dict(by_name)
    for service in by_name.values():
        unknown = [name for name in service.depends_on if name not in by_name]
        if unknown:
            message = f"{service.name} depends on {unknown[0]}, which does not exist"
            raise OrderError(message)
    while remaining:
        ready = [s for s in remaining.values() if all(d in ordered for d in s.depends_on)]
        if not ready:
            message = f"services depend on each other in a circle: {', '.join(remaining)}"
            raise OrderError(message)
        for service in ready:
            ordered[service.name] = remaining.pop(service.name)
    return list(ordered.values())


def dependents(services: Iterable[Service], name: str) -> list[str]:
    """Names of the services that depend on `name`, directly or through others.

    They are stopped before it. Through others matters: a service that needs a step needs what the
    step worked on.
    """
    found: list[str] = []
    for service in start_order(services):
        if name in service.depends_on or any(other in found for other in service.depends_on):
            found.append(service.name)
    return found


FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0


def backoff_s(failures: int, jitter: float) -> float:
    """Seconds to wait before start number `failures` + 1 after so many failures in a row.

    Doubles from 0.5 s to 30 s; `jitter` in [0, 1) takes off up to a quarter, so that services
    that fell together do not come back together.
    """
    doubled = FIRST_DELAY_S * 2 ** min(max(failures, 1) - 1, 16)
    return float(min(LONGEST_DELAY_S, doubled) * (1 - jitter / 4))
