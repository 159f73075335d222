"""The supervisor: starts services in dependency order, keeps them healthy, stops them cleanly.

A service starts once everything it depends on is healthy. One that dies, does not get ready in
time or goes silent is started again with growing delays. Stopping runs in the opposite order, each
with its own deadline before SIGKILL. While starting, a step that fails or a service that cannot
start ends the start with StartError; later nothing ends the supervisor but `stop`.
"""

import asyncio
import contextlib
import datetime as dt
import logging
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from infra.stack.notify import NotifySocket
from infra.stack.probes import Probe
from infra.stack.process import describe_exit, signal_group, spawn, tail
from infra.stack.units import (
    SATISFIED,
    Kind,
    Service,
    State,
    Status,
    backoff_s,
    dependents,
    start_order,
)

logger = logging.getLogger(__name__)

TICK_S = 1.0
# A tick that came this late means that the whole machine or we ourselves stood still, not the
# services: their silence is then forgiven.
LATE_TICK_S = 5.0
PROBE_PAUSE_S = 0.1
PROBE_TIMEOUT_S = 6.0
ATTEMPTS_AT_START = 4
STEADY_AFTER_S = 60.0
KILL_TIMEOUT_S = 10.0


class StartError(Exception):
    """A service or step could not be started; carries its name and its last log lines."""

    def __init__(self, service: str, reason: str, lines: Sequence[str]) -> None:
        super().__init__(f"{service}: {reason}")
        self.service = service
        self.lines = list(lines)


@dataclass(slots=True)
class _Unit:
    """One service with what is known of it now."""

    service: Service
    socket: NotifySocket | None = None
    state: State = State.WAITING
    since: float = field(default_factory=time.time)
    process: subprocess.Popen[bytes] | None = None
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    satisfied: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    last_sign: float = 0.0
    healthy_since: float | None = None
    restarts: int = 0
    failures: int = 0
    last_exit: str | None = None
    retry_at: float | None = None
    detail: str | None = None

    @property
    def name(self) -> str:
        return self.service.name


class Supervisor:
    """Runs a set of services until `stop`; call its methods from one event loop."""

    def __init__(
        self,
        services: Sequence[Service],
        *,
        socket_folder: Path,
        on_change: Callable[[], None] = lambda: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.services = start_order(services)
        self._units = {
            service.name: _Unit(service, self._make_socket(service, socket_folder))
            for service in services
        }
        self._on_change = on_change
        self._jitter = jitter
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._failed = asyncio.Event()
        self._failure: StartError | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._started = False

    def statuses(self) -> list[Status]:
        """Return what is known of every service now, in the order they were given."""
        return [self._status(unit) for unit in self._units.values()]

    def is_step(self, name: str) -> bool:
        """Whether `name` is a step rather than a lasting service."""
        return self._units[name].service.kind is Kind.STEP

    async def start(self) -> None:
        """Start everything and return once all is healthy; StartError says what could not be.

        What is marked to run in the background starts too, and is not waited for.
        """
        loop = asyncio.get_running_loop()
        for unit in self._units.values():
            if unit.socket is not None:
                loop.add_reader(unit.socket.fileno(), self._hear, unit)
            self._tasks.append(asyncio.create_task(self._run(unit), name=unit.name))
        ends = [
            asyncio.create_task(self._all_satisfied()),
            asyncio.create_task(self._stopping.wait()),
            asyncio.create_task(self._failed.wait()),
        ]
        # No deadline of its own: each service has one for each attempt, and attempts are counted.
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
        self._started = True
        if self._failure is not None:
            raise self._failure

    async def stop(self) -> None:
        """Stop everything in reverse order; return when no process is left."""
        self._stopping.set()
        await asyncio.gather(*(self._stop_unit(unit) for unit in self._units.values()))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for unit in self._units.values():
            if unit.socket is not None:
                asyncio.get_running_loop().remove_reader(unit.socket.fileno())
                unit.socket.close()

    def hurry(self) -> None:
        """Stop waiting for polite ends: kill what still runs."""
        self._hurry.set()
        for unit in self._units.values():
            if unit.process is not None:
                signal_group(unit.process.pid, signal.SIGKILL)

    async def _all_satisfied(self) -> bool:
        for unit in self._units.values():
            if not unit.service.background:
                await unit.satisfied.wait()
        return True

    async def _run(self, unit: _Unit) -> None:
        try:
            for name in unit.service.depends_on:
                await self._units[name].satisfied.wait()
            while not self._stopping.is_set():
                reason = await self._attempt(unit)
                if reason is None or self._stopping.is_set():
                    return
                await self._after_failure(unit, reason)
                if unit.state is State.FAILED:
                    return
        except Exception as error:
            logger.exception("supervising %s failed", unit.name)
            self._give_up(unit, f"{type(error).__name__}: {error}")
        finally:
            unit.ended.set()

    async def _attempt(self, unit: _Unit) -> str | None:
        """Run the process once to its end; None after a step's good end, else why it ended."""
        service = unit.service
        self._set(unit, State.STARTING)
        try:
            if service.prepare is not None:
                await asyncio.to_thread(service.prepare)
            if self._stopping.is_set():
                return "stopped before it started"
            self._spawn(unit)
        except Exception as error:  # noqa: BLE001 - whatever prevents the start is the reason shown
            return f"cannot start: {error}"
        exited = asyncio.create_task(unit.exited.wait())
        working = asyncio.create_task(self._bring_up(unit))
        try:
            await asyncio.wait([exited, working], return_when=asyncio.FIRST_COMPLETED)
            verdict = working.result() if working.done() else None
            if verdict is not None:
                await self._end(unit, service.stop_signal, timeout_s=service.stop_timeout_s / 3)
            else:
                await exited
        finally:
            for task in (exited, working):
                task.cancel()
            await asyncio.gather(exited, working, return_exceptions=True)
        status = self._reap(unit)
        if service.kind is Kind.STEP and status == 0 and verdict is None:
            self._set(unit, State.DONE)
            unit.satisfied.set()
            return None
        return verdict or describe_exit(status)

    async def _bring_up(self, unit: _Unit) -> str | None:
        """Wait until ready, then watch; return why the process must be ended, or None if not."""
        service = unit.service
        if service.kind is Kind.STEP:
            try:
                await asyncio.wait_for(unit.exited.wait(), service.start_timeout_s)
            except TimeoutError:
                return f"not done after {service.start_timeout_s:g} s"
            return None
        try:
            async with asyncio.timeout(service.start_timeout_s):
                if service.probe is None:
                    await unit.ready.wait()
                else:
                    while not await _ask(service.probe):  # noqa: ASYNC110 - nothing would wake us
                        await asyncio.sleep(PROBE_PAUSE_S)
                if service.settle is not None:
                    await asyncio.to_thread(service.settle)
        except TimeoutError:
            return f"not ready after {service.start_timeout_s:g} s"
        except Exception as error:  # noqa: BLE001 - settling failed, whatever the reason
            return f"cannot be prepared: {error}"
        unit.last_sign = unit.healthy_since = time.monotonic()
        self._set(unit, State.HEALTHY)
        unit.satisfied.set()
        return await self._watch_health(unit)

    async def _watch_health(self, unit: _Unit) -> str:
        """Return once the service was silent for too long."""
        service = unit.service
        pause_s = TICK_S if service.probe is None else service.probe_interval_s
        while True:
            before = time.monotonic()
            await asyncio.sleep(pause_s)
            if time.monotonic() - before > pause_s + LATE_TICK_S:
                unit.last_sign = time.monotonic()
            if service.probe is not None and await _ask(service.probe):
                unit.last_sign = time.monotonic()
            silent_s = time.monotonic() - unit.last_sign
            if unit.healthy_since and time.monotonic() - unit.healthy_since > STEADY_AFTER_S:
                unit.failures = 0
            if silent_s > service.silence_limit_s:
                self._set(unit, State.STALLED)
                return f"silent for {silent_s:.0f} s"

    async def _after_failure(self, unit: _Unit, reason: str) -> None:
        unit.failures += 1
        unit.last_exit = reason
        logger.warning("%s %s", unit.name, reason)
        never_ready = not unit.satisfied.is_set()
        if never_ready and unit.failures >= ATTEMPTS_AT_START:
            self._give_up(unit, reason)
            return
        delay_s = backoff_s(unit.failures, self._jitter())
        unit.restarts += 1
        unit.retry_at = time.monotonic() + delay_s
        self._set(unit, State.RESTARTING)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), delay_s)
        unit.retry_at = None

    def _give_up(self, unit: _Unit, reason: str) -> None:
        unit.last_exit = reason
        self._set(unit, State.FAILED)
        if unit.service.background:
            return
        if not self._started and self._failure is None:
            self._failure = StartError(unit.name, reason, tail(unit.service.log))
            self._failed.set()

    def _spawn(self, unit: _Unit) -> None:
        service = unit.service
        unit.exited.clear()
        unit.ready.clear()
        env = dict(service.env)
        if unit.socket is not None:
            unit.socket.drain()  # words of an earlier process say nothing about the next one
            env["NOTIFY_SOCKET"] = str(unit.socket.path)
        unit.process = spawn(
            service.command,
            env=env,
            cwd=service.cwd,
            log=service.log,
            account=service.account,
            death_signal=service.death_signal,
        )
        descriptor = os.pidfd_open(unit.process.pid)
        loop = asyncio.get_running_loop()

        def ended() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            unit.exited.set()

        loop.add_reader(descriptor, ended)
        self._on_change()

    def _reap(self, unit: _Unit) -> int:
        process = unit.process
        if process is None:
            message = f"{unit.name} was reaped twice"
            raise AssertionError(message)
        # It ended already; waiting only collects its status. Its group must not outlive it.
        status = process.wait(timeout=KILL_TIMEOUT_S)
        signal_group(process.pid, signal.SIGKILL)
        unit.process = None
        unit.healthy_since = None
        return status

    async def _stop_unit(self, unit: _Unit) -> None:
        for name in dependents(self.services, unit.name):
            await self._units[name].ended.wait()
        if unit.process is not None:
            self._set(unit, State.STOPPING)
            await self._end(unit, unit.service.stop_signal, unit.service.stop_timeout_s)
        task = next(task for task in self._tasks if task.get_name() == unit.name)
        if unit.process is None and not unit.exited.is_set():
            task.cancel()  # waiting for others, or for its turn to start again
        await asyncio.gather(task, return_exceptions=True)
        unit.ended.set()
        if unit.state not in {State.DONE, State.FAILED}:
            self._set(unit, State.STOPPED)

    async def _end(self, unit: _Unit, what: signal.Signals, timeout_s: float) -> None:
        """Signal the process and wait until it is gone, with SIGKILL after the deadline."""
        process = unit.process
        if process is None or unit.exited.is_set():
            return
        process.send_signal(signal.SIGKILL if self._hurry.is_set() else what)
        try:
            await asyncio.wait_for(unit.exited.wait(), timeout_s)
        except TimeoutError:
            logger.warning("%s did not stop within %g s: killed", unit.name, timeout_s)
            signal_group(process.pid, signal.SIGKILL)
            await asyncio.wait_for(unit.exited.wait(), KILL_TIMEOUT_S)

    def _hear(self, unit: _Unit) -> None:
        if unit.socket is None:
            return
        for notice in unit.socket.drain():
            if notice.alive:
                unit.last_sign = time.monotonic()
            if notice.status is not None:
                unit.detail = notice.status
            if notice.ready:
                unit.ready.set()

    def _set(self, unit: _Unit, state: State) -> None:
        unit.state = state
        unit.since = time.time()
        if state is not State.HEALTHY:
            unit.detail = None
        logger.info("%s %s", unit.name, state)
        self._on_change()

    def _status(self, unit: _Unit) -> Status:
        retry_in_s = None if unit.retry_at is None else max(0.0, unit.retry_at - time.monotonic())
        since = dt.datetime.fromtimestamp(unit.since, dt.UTC)
        return Status(
            name=unit.name,
            state=unit.state,
            address=unit.service.address,
            pid=unit.process.pid if unit.process else None,
            since=since.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            restarts=unit.restarts,
            log=str(unit.service.log),
            last_exit=unit.last_exit,
            retry_in_s=retry_in_s,
            detail=unit.detail,
        )

    @staticmethod
    def _make_socket(service: Service, folder: Path) -> NotifySocket | None:
        if service.probe is not None:
            return None
        return NotifySocket(folder / f"{service.name}.notify", service.account)


async def _ask(probe: Probe) -> bool:
    """Ask a probe; one that hangs has answered no."""
    try:
        return await asyncio.wait_for(asyncio.to_thread(probe), PROBE_TIMEOUT_S)
    except TimeoutError:
        return False


def all_satisfied(statuses: Sequence[Status]) -> bool:
    """Whether every service is healthy and every step done."""
    return all(status.state in SATISFIED for status in statuses)
