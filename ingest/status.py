"""How capture stands, for a person or a program: `python -m ingest.status [--json]`.

Ends with 0 when all is well, 1 when something needs a person, 2 when it cannot be told because
PostgreSQL or NATS does not answer, or a setting makes no sense. It only reads.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

import orjson
from pydantic import ValidationError

from ingest.checkpoint import lsn_text
from ingest.health import Health, Process, Slot, StreamHealth, examine
from ingest.levels import Level
from ingest.runs import RunState
from ingest.settings import IngestSettings

FAR_S = 30 * 86_400
"""Beyond this a forecast says no more than "not soon"."""
_UNITS = ("bytes", "KB", "MB", "GB", "TB")
_VERDICTS = ("All well.", "Needs a person:", "Cannot tell:")


def document(health: Health) -> dict[str, Any]:
    """Return what was found as one JSON object; docs/capture.md names its fields."""
    found = asdict(health)
    active = health.active
    for row, process in zip(found["processes"], health.processes, strict=True):
        row["alive"] = process.alive
        row["position"] = None if process.position is None else lsn_text(process.position)
    found["active"] = None if active is None else active.instance
    found["exit_status"] = health.exit_status
    return found


def lines(health: Health) -> Iterator[str]:
    """Return what was found as lines for a person, the verdict last."""
    for name, text in _facts(health):
        yield f"{name:<12}{text}"
    yield ""
    yield _VERDICTS[health.exit_status]
    for problem in [*health.unreachable, *health.problems]:
        yield f"  - {problem}"


def _facts(health: Health) -> Iterator[tuple[str, str]]:
    now = health.at
    active = health.active
    yield "capture", _capture(health, now)
    for process in health.processes:
        if process.role == "standby" and process.alive:
            yield "standby", f"{process.place}, for {span(now - process.started_at)}"
    if active is not None and active.position is not None:
        yield "lag", _lag(active)
        yield "rate", f"{active.rate_per_s:,.1f} events/s; {active.events:,} since its start"
        yield "position", lsn_text(active.position)
    if health.slot is not None:
        yield "slot", _slot(health.slot, down=active is None)
    elif health.state != "unknown":
        yield "slot", "missing"
    if health.stream is not None:
        yield from _stream(health.stream, now)
    if health.state != "unknown":
        yield "gaps", str(len(health.open_gaps)) + " open" if health.open_gaps else "none"
        yield "backfills", _backfills(health)
        yield "last error", _last_error(health, now)


def _capture(health: Health, now: datetime) -> str:
    active = health.active
    if active is not None:
        text = f"{health.state} on {active.place}, for {span(now - active.started_at)}"
        return f"{text}, release {active.version}"
    if not health.processes:
        return health.state
    last = health.processes[0]
    return f"{health.state}; last seen {_seconds(last.beat_age_s)} ago on {last.place}"


def _lag(active: Process) -> str:
    took = "no event yet" if active.lag_ms is None else f"{active.lag_ms:,} ms"
    return f"{took}, {size(active.lag_bytes or 0)} of log"


def _slot(slot: Slot, *, down: bool) -> str:
    if slot.level is Level.LOST:
        return f"{slot.name} is lost: PostgreSQL removed the log it needed"
    of = "without a limit" if slot.limit_bytes is None else f"of {size(slot.limit_bytes)}"
    text = f"{slot.name} holds back {size(slot.retained_bytes)} {of}: {slot.level}"
    worth = down or slot.level is not Level.OK
    if worth and slot.forecast_s is not None and slot.forecast_s < FAR_S:
        text += f", full in {_seconds(slot.forecast_s)} at this rate"
    if down:
        text += f"; {size(slot.behind_bytes)} wait since offset {slot.offset}"
    return text


def _stream(found: StreamHealth, now: datetime) -> Iterator[tuple[str, str]]:
    of = "without a limit" if found.limit_bytes is None else f"of {size(found.limit_bytes)}"
    yield (
        "stream",
        f"{found.name}: {found.messages:,} messages, {size(found.bytes)} {of}: {found.level}",
    )
    if found.last_event is not None and found.last_committed_at is not None:
        ago = span(now - found.last_committed_at)
        yield "last event", f"{found.last_event} {found.last_subject}, committed {ago} ago"
    if found.drift is None:
        yield "stated", f"version {found.version}; not compared, as PostgreSQL does not answer"
    else:
        stated = "differs, see below" if found.drift else "as stated"
        yield "stated", f"version {found.version}, {stated}; sync {found.sync}"


def _backfills(health: Health) -> str:
    unfinished = [
        f"{run.id} of {run.table_name} {run.state}, {run.rows:,} of about "
        f"{max(run.estimate, run.rows):,} rows"
        for run in health.backfills
        if run.state in {RunState.OPEN, RunState.PAUSED}
    ]
    return "; ".join(unfinished) or "none under way"


def _last_error(health: Health, now: datetime) -> str:
    if health.last_error is None or health.last_error_at is None:
        return "none"
    return f"{span(now - health.last_error_at)} ago: {health.last_error}"


def size(count: int) -> str:
    """Return a number of bytes for a person: `8.0 GB`, powers of 1024."""
    power = min(len(_UNITS) - 1, max(0, count.bit_length() - 1) // 10)
    return f"{count / 1024**power:,.{1 if power else 0}f} {_UNITS[power]}"


def span(length: timedelta) -> str:
    """Return a length of time for a person: its two largest parts."""
    return _seconds(length.total_seconds())


def _seconds(seconds: float) -> str:
    whole = max(0, int(seconds))
    parts: list[str] = []
    for name, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, whole = divmod(whole, length)
        if count or (name == "s" and not parts):
            parts.append(f"{count} {name}")
    return " ".join(parts[:2])


def main() -> int:
    """Look once and say what was found."""
    parser = argparse.ArgumentParser(prog="python -m ingest.status", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    arguments = parser.parse_args()
    try:
        settings = IngestSettings()
    except ValidationError as error:
        for problem in error.errors():
            name = "GIOVANG_INGEST_" + "_".join(map(str, problem["loc"])).upper()
            sys.stderr.write(f"{name}: {problem['msg']}\n")
        return 2
    health = asyncio.run(examine(settings))
    if arguments.json:
        options = orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z
        sys.stdout.write(orjson.dumps(document(health), option=options).decode() + "\n")
    else:
        sys.stdout.write("\n".join(lines(health)) + "\n")
    return health.exit_status


if __name__ == "__main__":
    sys.exit(main())
