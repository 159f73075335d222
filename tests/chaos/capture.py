"""Capture under chaos: what PostgreSQL committed is on the stream, once, in order, whatever died.

Real PostgreSQL, NATS and two capture processes (one stands by), each behind TCP proxies of its own.
A seeded schedule kills (SIGKILL) capture, NATS and PostgreSQL, freezes capture, and cuts and stalls
its connections, while writers go on and large, copied and long open database transactions are on
their way; faults come in quick succession, so that many hit a process that is only starting. After
each round a heartbeat committed last must come through. An auditor with a replication slot and
decoder of its own tells what was committed; any difference raises `AssertionError`.
"""

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from tests.chaos.keeper import Keeper
from tests.chaos.load import Load
from tests.chaos.storm import Size, Storm, Victim, chaos_folder, through
from tests.fixtures.brokers import start_broker
from tests.fixtures.capture import CaptureProcess, CaptureRoom, capture_room
from tests.fixtures.checksum import Comparison
from tests.fixtures.services import run_module, start_ledger
from tests.fixtures.wire import Wire

RECOVERY_TIMEOUT_S = 150.0
GROWTH_TIMEOUT_S = 10.0
AUDIT_EVERY_ROUNDS = 4
STREAM_MAX_BYTES = 8 * 1024**3
_LOOK_S = 0.1
_NUMBERS = re.compile(r"[0-9a-fA-F]*[0-9][0-9a-fA-F/-]*")
_WEIGHTS = {
    "capture killed": 50,
    "NATS killed": 16,
    "PostgreSQL killed": 16,
    "capture frozen": 7,
    "connections cut": 7,
    "connections stalled": 7,
}


@dataclass(slots=True)
class Account:
    """What a run did and found; times in seconds."""

    seed: int
    kills: int = 0
    changes: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    recovered_s: list[float] = field(default_factory=list)
    duration_s: float = 0.0
    starts: int = 0
    lost_connections: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    counts: dict[str, int] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)


LONG = Size(large=12_000, faults=(1, 9), longest_s=4.0, long_stalls=True)
SHORT = Size(large=3000, faults=(2, 5), longest_s=1.5, long_stalls=False)


class Chaos:
    """One run against one room."""

    def __init__(
        self,
        room: CaptureRoom,
        wires: list[dict[str, Wire]],
        processes: list[CaptureProcess],
        keeper: Keeper,
        load: Load,
        *,
        seed: int,
        size: Size,
        progress: Callable[[str], None],
    ) -> None:
        self._room = room
        self._processes = processes
        self._keeper = keeper
        self._load = load
        self._chance = random.Random(seed)
        self._size = size
        self._progress = progress
        self._storm = Storm(
            "capture",
            keeper,
            wires,
            {
                "PostgreSQL": Victim(room.database.kill, room.database.start),
                "NATS": Victim(room.broker.kill, room.broker.start),
            },
            weights=_WEIGHTS,
            active=self._active,
            chance=self._chance,
            size=size,
        )
        self._comparison = Comparison()
        self._sequence = 0
        self.account = Account(seed)

    def run(self, kills: int) -> None:
        """Go on until so many were killed, then compare all."""
        begun = time.monotonic()
        self._recover(begun)
        rounds = 0
        while self._storm.toll.kills < kills:
            rounds += 1
            told = self._round(kills - self._storm.toll.kills)
            if rounds % AUDIT_EVERY_ROUNDS == 0:
                self._audit()
            self._progress(
                f"{self._storm.toll.kills}/{kills} kills: {told}; recovered in "
                f"{self.account.recovered_s[-1]:.1f} s, {self._comparison.compared} changes equal"
            )
        self._load.end()
        self._recover(time.monotonic())
        self._audit()
        statuses = self._keeper.stop_all()
        assert statuses == [0] * len(statuses), f"capture was stopped and ended with {statuses}"
        self._audit()
        self._comparison.settle()
        account = self.account
        account.changes = self._comparison.compared
        account.counts = self._comparison.source.counts
        account.checksums = self._comparison.source.texts()
        account.kills, account.faults = self._storm.toll.kills, self._storm.toll.faults
        account.starts, account.reasons = self._keeper.starts, self._reasons()
        account.lost_connections = self._load.lost_connections
        account.duration_s = time.monotonic() - begun

    def _round(self, kills_left: int) -> str:
        """Let some faults hit in quick succession, and wait until capture is whole again."""
        shape = self._chance.choice(("small", "rows", "copy", "open", "open and rows"))
        end = self._begin(shape)
        self._grow(self._chance.randint(1, self._size.large // 2))
        told = self._storm.blow(kills_left)
        self._recover(time.monotonic())
        if end is not None:
            end()
        return f"{shape}: {', '.join(told)}"

    def _begin(self, shape: str) -> Callable[[], None] | None:
        end = self._load.open(self._chance.randint(1, 400)) if "open" in shape else None
        if "rows" in shape:
            self._load.rows(self._chance.randint(1000, self._size.large))
        if shape == "copy":
            self._load.copy(self._chance.randint(500, self._size.large // 3))
        return end

    def _reasons(self) -> Counter[str]:
        """Count why processes ended by themselves, numbers left out."""
        return Counter(
            _NUMBERS.sub("N", reason.partition(";")[0])[:110].strip()
            for process in self._processes
            for reason in process.reasons()
        )

    def _active(self) -> CaptureProcess:
        """Return the process that captures, by its own word in the database; else any."""
        with psycopg.connect(self._room.url, autocommit=True, connect_timeout=10) as database:
            rows = database.execute(
                "SELECT pid FROM capture.process WHERE slot = %s AND role = 'active' "
                "ORDER BY beat_at DESC",
                (self._room.slot,),
            ).fetchall()
        by_pid = {
            process.process.pid: process
            for process in self._processes
            if process.process is not None
        }
        known = [by_pid[pid] for (pid,) in rows if pid in by_pid]
        anyone = self._chance.choice(self._processes)  # drawn always: the schedule is the seed's
        return known[0] if known else anyone

    def _grow(self, messages: int) -> None:
        """Wait until the stream grew by so many messages, or for a while."""
        enough = self._room.ledger.last_sequence() + messages
        deadline = time.monotonic() + GROWTH_TIMEOUT_S
        while self._room.ledger.last_sequence() < enough and time.monotonic() < deadline:
            self._storm.wait(_LOOK_S)

    def _recover(self, since: float) -> None:
        """Wait until what is committed now is on the stream; note the time since the last fault."""
        number = self._room.beat()
        deadline = time.monotonic() + RECOVERY_TIMEOUT_S
        while self._room.ledger.last_beat() < number:
            self._keeper.check()
            self._load.check()
            assert time.monotonic() < deadline, (
                f"a heartbeat is not on the stream after {RECOVERY_TIMEOUT_S:g} s; capture ended "
                f"with {dict(self._reasons())}"
            )
            self._storm.wait(_LOOK_S)
        self.account.recovered_s.append(time.monotonic() - since)

    def _audit(self) -> None:
        streamed = self._room.ledger.messages(after=self._sequence)
        if streamed:
            self._sequence = streamed[-1].sequence
        self._comparison.take(streamed, self._room.auditor.read())


def run(kills: int, seed: int, size: Size, tree: Path, progress: Callable[[str], None]) -> Account:
    """Run chaos on servers of its own until `kills` processes were killed."""
    with _ground(tree, progress) as (room, wires), ExitStack() as parts:
        processes = [_process(room, pair, number) for number, pair in enumerate(wires)]
        keeper = parts.enter_context(Keeper(processes, lambda process: process.ready))
        load = Load(room, seed)
        with load:
            chaos = Chaos(
                room, wires, processes, keeper, load, seed=seed, size=size, progress=progress
            )
            chaos.run(kills)
    return chaos.account


def _process(room: CaptureRoom, wires: dict[str, Wire], number: int) -> CaptureProcess:
    """Return a capture process that reaches both servers through wires of its own."""
    folder = room.engine.folder / f"capture-{number}"
    folder.mkdir()
    env = dict(room.env)
    for name, server in (
        ("GIOVANG_INGEST_DATABASE_URL", "PostgreSQL"),
        ("GIOVANG_INGEST_NATS_URL", "NATS"),
    ):
        env[name] = through(env[name], wires[server])
    return CaptureProcess(env, folder)


@contextmanager
def _ground(
    tree: Path, progress: Callable[[str], None]
) -> Iterator[tuple[CaptureRoom, list[dict[str, Wire]]]]:
    """Start a ledger, a NATS server and two pairs of wires; stop and remove all after."""
    with chaos_folder(progress) as (folder, parts):
        progress("starting PostgreSQL and NATS, applying the migrations")
        database = start_ledger(folder, tree)
        parts.callback(database.stop)
        run_module("api.migrations", GIOVANG_API_MIGRATION_URL=database.url("giovang_owner"))
        broker = start_broker(folder)
        parts.callback(broker.stop)
        wires = [
            {
                "PostgreSQL": parts.enter_context(Wire(database.port)),
                "NATS": parts.enter_context(Wire(urlsplit(broker.url).port or 0)),
            }
            for _ in range(2)
        ]
        room = parts.enter_context(
            capture_room(database, broker, folder, stream_max_bytes=STREAM_MAX_BYTES)
        )
        try:
            yield room, wires
        finally:
            # A run that is ended while a server is down still leaves by the door.
            for server in (database, broker):
                if server.process is None:
                    server.start()
