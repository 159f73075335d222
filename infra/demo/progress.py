"""Shows how far the history load is: a bar for a person, log lines and notifications otherwise."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from infra import telemetry
from infra.demo.loader import Progress as Loaded

_LOG_EVERY_S = 10.0

log = telemetry.get_logger(__name__)


@contextmanager
def history_progress() -> Iterator[Callable[[Loaded], None]]:
    """Yield a function that shows a load's progress; call it at least every few seconds."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    columns = (
        TextColumn("history"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)

        def show(loaded: Loaded) -> None:
            bar.update(
                task, completed=loaded.done, total=loaded.total, description=f"from {loaded.day}"
            )
            telemetry.notify_alive(_sentence(loaded))

        yield show


class _Lines:
    """One log line now and then, one notification each time."""

    def __init__(self) -> None:
        self._logged_at = float("-inf")

    def __call__(self, loaded: Loaded) -> None:
        telemetry.notify_alive(_sentence(loaded))
        now = time.monotonic()
        if now - self._logged_at >= _LOG_EVERY_S or loaded.done == loaded.total:
            self._logged_at = now
            log.info("history loads", done=loaded.done, total=loaded.total, rows=loaded.rows)


def _sentence(loaded: Loaded) -> str:
    share = 100 * loaded.done // max(1, loaded.total)
    return f"history {share} %, {loaded.rows} rows, week of {loaded.day}"
