"""What every bench hands back, and the names of the benches.

A report refuses names without a unit, figures that are no finite numbers, and ratios whose baseline
is not in the same report: a figure that cannot be read or compared is worth nothing. A growth is a
cost at the larger of two sizes over that at the smaller, both figures of the report.
"""

import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# The unit ends a name, or stands before the load it was measured at.
_UNIT = re.compile(
    r"(^|_)(per_s|per_min|ms|s|rows|changes|sockets|payments|mb|mib|gib|kib_per_socket|percent|count)"
    r"(_at_\d+|_after_events|_paying)?$"
)
_RATIO = re.compile(r"^[a-z0-9_]+_vs_[a-z0-9_]+$")
_GROWTH = re.compile(r"^[a-z0-9]+_growth$")


class BenchError(Exception):
    """A bench cannot run or did not finish within its bounds."""


def describe_machine() -> dict[str, str | int | float]:
    """Describe this machine as far as it matters to a figure; units are in the names."""
    return {
        "cpu_model": _cpu_model(),
        "cpus_count": len(os.sched_getaffinity(0)),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "load_before_1min_count": round(os.getloadavg()[0], 2),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "python": platform.python_version(),
    }


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller asked for."""

    seed: int
    short: bool
    progress: Callable[[str], None]
    # Taken before anything is started, so that the load told is not the bench's own.
    machine: Mapping[str, str | int | float] = field(default_factory=describe_machine)


@dataclass(frozen=True, slots=True)
class Report:
    """One finished bench; see the module's rules on names."""

    bench: str
    seed: int
    method: str
    figures: Mapping[str, float]
    baselines: Mapping[str, float]
    ratios: Mapping[str, float]
    machine: Mapping[str, str | int | float]

    def __post_init__(self) -> None:
        """Refuse what a reader could not understand or check."""
        for name, value in {**self.figures, **self.baselines}.items():
            if not _UNIT.search(name):
                raise ValueError(f"{name!r} does not end with its unit")
            _require_finite(name, value)
        if not self.baselines and self.ratios:
            raise ValueError("a ratio needs a baseline of the same run")
        for name, value in self.ratios.items():
            _require_finite(name, value)
            if _GROWTH.match(name):
                continue
            if not _RATIO.match(name):
                raise ValueError(f"{name!r} does not say what is compared with what")
            baseline = name.split("_vs_")[1]
            if not any(known.startswith(baseline) for known in self.baselines):
                raise ValueError(f"{name!r} has no baseline {baseline!r} in this report")

    def as_json(self) -> str:
        """Return the report as one JSON object."""
        return json.dumps(
            {
                "bench": self.bench,
                "machine": dict(self.machine),
                "seed": self.seed,
                "method": self.method,
                "figures": dict(self.figures),
                "baselines": dict(self.baselines),
                "ratios": dict(self.ratios),
            },
            ensure_ascii=False,
            indent=2,
        )


def progress_to_stderr(started: float | None = None) -> Callable[[str], None]:
    """Return a function that prints a step to standard error with the seconds since the start."""
    begin = time.monotonic() if started is None else started

    def show(step: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - begin:6.1f} s] {step}\n")
        sys.stderr.flush()

    return show


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed."""
    if not values:
        raise BenchError("no values were measured")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _require_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name!r} is {value}, not a finite number")


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.lower().startswith(("model name", "cpu part")):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
