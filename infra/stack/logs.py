"""Service logs: bounded in size, and shown by name or all together.

Services append to their file themselves, so a busy supervisor never holds one up. A file over the
limit is copied to `<name>.log.1` and emptied; a line written in that instant can be lost, a
service never is.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

FOLLOW_PAUSE_S = 0.2


def rotate(folder: Path, limit_bytes: int) -> list[Path]:
    """Rotate every log of `folder` that is larger than `limit_bytes`; return which were."""
    rotated = []
    for log in sorted(folder.glob("*.log")):
        if log.stat().st_size > limit_bytes:
            shutil.copyfile(log, log.with_name(log.name + ".1"))
            os.truncate(log, 0)
            rotated.append(log)
    return rotated


def follow(logs: Iterable[Path], *, until: Callable[[], bool]) -> Iterator[tuple[Path, str]]:
    """Yield each line appended from now on, with its log; ends once `until` says so.

    A rotated file is read from its new beginning.
    """
    positions = {log: _size(log) for log in logs}
    unfinished: dict[Path, bytes] = dict.fromkeys(positions, b"")
    while True:
        last = until()
        for log, position in positions.items():
            size = _size(log)
            if size == position:
                continue
            start = 0 if size < position else position
            with log.open("rb") as stream:
                stream.seek(start)
                data = unfinished[log] + stream.read(size - start)
            positions[log] = size
            *lines, unfinished[log] = data.split(b"\n")
            for line in lines:
                yield log, line.decode(errors="replace")
        if last:
            return
        time.sleep(FOLLOW_PAUSE_S)


def _size(log: Path) -> int:
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0
