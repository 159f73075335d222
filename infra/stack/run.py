"""One run of the stack, from a free state folder to the last stopped process.

Keeps the status file true while it runs. Ends on SIGINT, SIGTERM or SIGHUP with a clean stop; a
second signal kills what has not ended yet. Raises StartError when a part could not be started,
after everything else was stopped again.
"""

import asyncio
import contextlib
import datetime as dt
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from infra.stack import logs, services
from infra.stack.accounts import Account, service_account
from infra.stack.environment import Stack
from infra.stack.notify import fits
from infra.stack.ports import choose_ports
from infra.stack.settings import StackSettings
from infra.stack.state import StateFolder, end_leftovers
from infra.stack.supervisor import StartError, Supervisor
from infra.stack.units import Service, State

logger = logging.getLogger(__name__)

Snapshot = dict[str, Any]
REFRESH_S = 2.0
ROTATE_EVERY = 5  # refreshes


class Run:
    """The stack while it runs; `snapshot` is what `giovang status` shows of it."""

    def __init__(
        self,
        settings: StackSettings,
        *,
        demo: bool,
        on_snapshot: Callable[[Snapshot], None] = lambda _: None,
    ) -> None:
        self.settings = settings
        self.folder = StateFolder(settings.state)
        self._demo = demo
        self._on_snapshot = on_snapshot
        self._phase = "starting"
        self._error: dict[str, object] | None = None
        self._started_at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        self._stack: Stack | None = None
        self._supervisor: Supervisor | None = None
        self._changed: asyncio.Event | None = None
        self._stop: asyncio.Event | None = None

    def until_stopped(self) -> None:
        """Run the stack in this process until a signal ends it."""
        account = service_account()
        self.folder.prepare(account)
        with self.folder.supervised(), _own_log(self.folder):
            left = end_leftovers(self.folder)
            if left:
                logger.warning("ended %d processes that an earlier run left behind", left)
            stack = services.make_stack(self.settings, choose_ports(self.settings))
            self._stack = stack
            parts = services.services(stack, demo=self._demo)
            with _socket_folder(self.folder, parts, account) as sockets:
                asyncio.run(self._run(parts, sockets))

    @property
    def snapshot(self) -> Snapshot:
        """Everything known now, as it is written to the status file."""
        statuses = self._supervisor.statuses() if self._supervisor else []
        steps = {s.name for s in statuses if self._supervisor and self._supervisor.is_step(s.name)}
        return {
            "supervisor": {
                "pid": os.getpid(),
                "started_at": self._started_at,
                "phase": self._phase,
                "error": self._error,
            },
            "services": [s.as_json() for s in statuses if s.name not in steps],
            "steps": [s.as_json() for s in statuses if s.name in steps],
            "ports": self._stack.ports.as_json() if self._stack else {},
            "endpoints": self._stack.endpoints() if self._stack else {},
            "demo_email": self._stack.demo_email if self._stack and self._demo else None,
        }

    async def _run(self, parts: list[Service], sockets: Path) -> None:
        self._changed, self._stop = asyncio.Event(), asyncio.Event()
        supervisor = Supervisor(parts, socket_folder=sockets, on_change=self._changed.set)
        self._supervisor = supervisor
        loop = asyncio.get_running_loop()
        for what in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(what, self._on_signal)
        publisher = asyncio.create_task(self._publish())
        stopping = asyncio.create_task(self._stop.wait())
        starting = asyncio.create_task(supervisor.start())
        try:
            await asyncio.wait([starting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                self._enter("running")
                await self._stop.wait()
        except StartError as error:
            self._error = {
                "service": error.service,
                "message": str(error),
                "log": str(self.folder.log(error.service)),
                "lines": error.lines,
            }
            logger.error("%s", error)  # noqa: TRY400 - a sentence for a person, not a traceback
            raise
        finally:
            self._enter("stopping")
            await supervisor.stop()
            await asyncio.gather(starting, return_exceptions=True)
            self._enter("failed" if self._error else "stopped")
            for task in (publisher, stopping):
                task.cancel()
            await asyncio.gather(publisher, stopping, return_exceptions=True)
            self._write()

    def _on_signal(self) -> None:
        if self._stop is None or self._supervisor is None:
            return
        if self._stop.is_set():
            self._supervisor.hurry()
        self._stop.set()

    def _enter(self, phase: str) -> None:
        self._phase = phase
        logger.info("%s", phase)
        self._write()

    def _write(self) -> None:
        snapshot = self.snapshot
        self.folder.write_status(snapshot)
        self._on_snapshot(snapshot)

    async def _publish(self) -> None:
        changed = self._changed
        turn = 0
        while changed is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), REFRESH_S)
            changed.clear()
            self._write()
            turn += 1
            if turn % ROTATE_EVERY == 0:
                logs.rotate(self.folder.logs, self.settings.log_limit_mb * 1024 * 1024)


def stopped_snapshot(settings: StackSettings) -> Snapshot:
    """What is known of a stack that no supervisor runs: its services, all stopped."""
    known = StateFolder(settings.state).read_status()
    for row in [*known.get("services", []), *known.get("steps", [])]:
        row.update(state=State.STOPPED, pid=None, retry_in_s=None, detail=None)
    known["supervisor"] = {**known.get("supervisor", {}), "pid": None, "phase": "stopped"}
    return {"services": [], "steps": [], "endpoints": {}, **known}


@contextlib.contextmanager
def _own_log(folder: StateFolder) -> Iterator[None]:
    handler = logging.FileHandler(folder.log("supervisor"))
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    ours = logging.getLogger("infra.stack")
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    ours.propagate = False
    try:
        yield
    finally:
        ours.removeHandler(handler)
        handler.close()


@contextlib.contextmanager
def _socket_folder(
    folder: StateFolder, parts: list[Service], account: Account | None
) -> Iterator[Path]:
    if fits(folder.run, [part.name for part in parts]):
        yield folder.run
        return
    # A socket's path is limited to 107 bytes; a state folder deep in the tree is beyond it.
    short = Path(tempfile.mkdtemp(prefix="giovang-"))
    try:
        if account is not None:
            short.chmod(0o711)
        yield short
    finally:
        shutil.rmtree(short)
