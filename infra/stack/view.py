"""What a person sees of the stack: progress at the start, the table, the addresses, the login."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from infra.stack.settings import CHECKOUT
from infra.stack.units import RUNNING, SATISFIED, State, Status

_STYLES = {
    State.HEALTHY: "green",
    State.DONE: "green",
    State.STARTING: "cyan",
    State.RESTARTING: "yellow",
    State.STALLED: "red",
    State.FAILED: "bold red",
    State.STOPPING: "cyan",
}

# A step is shown beside the services while it works, and when it could not.
_NOTEWORTHY = frozenset({State.STARTING, State.RESTARTING, State.FAILED})


def statuses(rows: Iterable[Mapping[str, Any]]) -> list[Status]:
    """Read rows of the status file; fields of a newer version are ignored."""
    known = Status.__dataclass_fields__
    return [Status(**{key: value for key, value in row.items() if key in known}) for row in rows]


HINT_EVERY_S = 10.0


class Progress:
    """Prints one line whenever something changed, with the time since the start."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._shown: dict[str, str] = {}
        self._hinted: dict[str, float] = {}

    def update(self, snapshot: Mapping[str, Any]) -> None:
        """Show what differs from the last call."""
        for status in statuses([*snapshot["steps"], *snapshot["services"]]):
            state = State(status.state)
            before = self._shown.get(status.name, State.WAITING)
            if state == before or state in {State.WAITING, State.STOPPED}:
                self._hint(status)
                continue
            self._shown[status.name] = state
            if state in {State.STARTING, State.STOPPING}:
                self._hinted[status.name] = time.monotonic()
                continue
            self.line(status.name, _label(status), _why(status))

    def line(self, name: str, state: Text, detail: str = "") -> None:
        """One line: elapsed time, who, what."""
        elapsed = Text(f"{time.monotonic() - self._began:6.1f} s  ", style="dim")
        self._console.print(elapsed, Text(f"{name:<18}"), state, Text(detail), sep="", end="\n")

    def _hint(self, status: Status) -> None:
        # A long step tells where it is, now and then.
        since = self._hinted.get(status.name)
        if (
            since is None
            or status.state != State.STARTING
            or time.monotonic() - since < HINT_EVERY_S
        ):
            return
        self._hinted[status.name] = time.monotonic()
        detail = status.detail or "still working"
        self.line(status.name, Text(f"{status.state}  ", style="cyan"), detail)


def table(snapshot: Mapping[str, Any], *, memory: bool = False, words: bool = False) -> Table:
    """The table of services: state, address and log, with memory and their own words if asked."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("service", no_wrap=True)
    shown.add_column("state", no_wrap=True)
    shown.add_column("address", overflow="fold")
    if memory:
        shown.add_column("memory", justify="right", no_wrap=True)
    if words:
        shown.add_column("says", overflow="fold")
    shown.add_column("log", overflow="fold")
    unfinished = [row for row in statuses(snapshot["steps"]) if row.state in _NOTEWORTHY]
    for status in [*statuses(snapshot["services"]), *unfinished]:
        used = memory_mb(status.pid) if memory else None
        cells: list[RenderableType] = [
            escape(status.name),
            _label(status),
            Text(status.address or "-", style="" if status.address else "dim"),
            *([f"{used:.0f} MB" if used else "-"] if memory else []),
            *([Text(status.detail or "-")] if words else []),
            Text(_short(status.log), style="dim"),
        ]
        shown.add_row(*cells)
    return shown


def addresses(console: Console, snapshot: Mapping[str, Any], demo_password: str | None) -> None:
    """Print the addresses a person wants next, and the demo's login."""
    ends = snapshot["endpoints"]
    rows = [("Dashboards", ends["dashboards"]), ("API docs", ends["api_docs"])]
    if snapshot.get("demo_email") and demo_password:
        rows += [
            ("Checkout demo", ends["checkout_demo"]),
            ("Merchant login", f"{snapshot['demo_email']}   {demo_password}"),
        ]
    console.print()
    if any(row.state == State.STARTING for row in statuses(snapshot["steps"])):
        console.print("  The demo shops' year of history still flows in; everything else is live.")
    for name, value in rows:
        console.print(Text(f"  {name:<16}", style="bold"), Text(value, style="cyan"), sep="")


def memory_mb(pid: int | None) -> float | None:
    """Memory of a process and its descendants, shared pages counted once; None if it is gone.

    Megabytes of 10^6. Where the kernel tells no proportional share, the resident size stands in.
    """
    if pid is None:
        return None
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return None
    total = 0
    for process in family:
        try:
            total += getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss
        except psutil.Error:
            continue
    return total / 1e6


def serves(snapshot: Mapping[str, Any]) -> bool:
    """Whether every service is healthy; steps in the background may still be at work."""
    rows = statuses(snapshot["services"])
    return bool(rows) and all(row.state in SATISFIED for row in rows)


def _short(log: str) -> str:
    """Show a log inside the checkout relative to it, which is where the command runs."""
    path = Path(log)
    return str(path.relative_to(CHECKOUT) if path.is_relative_to(CHECKOUT) else path)


def _label(status: Status) -> Text:
    label = status.label
    if status.restarts and status.state in RUNNING:
        label += f" ({status.restarts} restart{'s' if status.restarts > 1 else ''})"
    return Text(f"{label}  ", style=_STYLES.get(State(status.state), "dim"))


def _why(status: Status) -> str:
    if status.state in SATISFIED:
        return status.address or ""
    return status.last_exit or ""
