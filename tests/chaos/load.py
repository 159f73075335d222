"""Load for chaos: writers that go on through every crash, and what is large or stays open.

Who loses the answer to a commit does not know whether it happened, and need not: the auditor does.
A server that stays away for longer than `AWAY_S` ends a writer with its error.
"""

import contextlib
import hashlib
import random
import threading
import time
from collections import deque
from collections.abc import Callable

import psycopg

from tests.fixtures.capture import CaptureRoom
from tests.fixtures.ledger_writers import ENTRY, PAYMENT, Writer

WRITERS = 3
AWAY_S = 60.0
PAUSE_S = (0.02, 0.2)
_RETRY_S = 0.1
_REMEMBERED = 200
_COPY = "COPY merchants (id, name, trade, timezone, country) FROM STDIN"
_MOVE = """
    UPDATE payments SET status = %(status)s, status_at = clock_timestamp() WHERE id = ANY(%(ids)s)
"""
_GROW = """
    UPDATE payments SET metadata = jsonb_build_object('noise', %(noise)s::text) WHERE id = %(id)s
"""
_DELETE = "DELETE FROM payments WHERE id = %(id)s"


def payment_id(prefix: str, number: int) -> str:
    """Return the id that `PAYMENT` gives to payment `number` of a prefix."""
    digest = hashlib.md5(f"{prefix}{number}".encode(), usedforsecurity=False).hexdigest()
    return f"pay_{digest[:26]}"


class Load:
    """Small database transactions by several writers while it is open; larger ones on demand."""

    def __init__(self, room: CaptureRoom, seed: int) -> None:
        self._room = room
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        self._parts = 0
        self.lost_connections = 0
        self._threads = [
            threading.Thread(
                target=self._guarded,
                args=(self._small, f"{room.tag}w{number}", random.Random(seed + number)),
            )
            for number in range(WRITERS)
        ]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Let every writer finish what it is at; raise what ended one before."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=AWAY_S + 5)
            assert not thread.is_alive(), "a writer did not end"
        self.check()

    def check(self) -> None:
        """Raise what ended a writer."""
        if self._errors:
            raise self._errors[0]

    def rows(self, count: int) -> None:
        """Begin to insert `count` rows in one database transaction."""
        prefix = self._part("rows")
        self._aside(lambda writer: writer.execute(PAYMENT, {"prefix": prefix, "count": count}))

    def copy(self, count: int) -> None:
        """Begin to COPY `count` rows, which then change, in one database transaction."""
        part = self._part("copy")

        def work(writer: Writer) -> None:
            with writer.cursor().copy(_COPY) as rows:
                for number in range(count):
                    digest = hashlib.sha256(f"{part}{number}".encode()).hexdigest()
                    rows.write_row((f"mer_{digest[:26]}", f"Quán {number}", part, "UTC", "VN"))
            writer.execute("UPDATE merchants SET name = 'đổi tên' WHERE trade = %s", (part,))

        self._aside(work)

    def open(self, count: int) -> Callable[[], None]:
        """Begin a database transaction that stays open; return what ends it, written to again."""
        prefix = self._part("open")
        writer = self._connect()
        writer.execute(PAYMENT, {"prefix": prefix, "count": count})

        def end() -> None:
            # A server that was killed in between took the database transaction with it.
            with contextlib.suppress(psycopg.OperationalError), writer:
                writer.execute(PAYMENT, {"prefix": f"{prefix}more", "count": count})

        return end

    def _part(self, kind: str) -> str:
        self._parts += 1
        return f"{self._room.tag}{kind}{self._parts}z"

    def _connect(self) -> Writer:
        return self._room.connect(connect_timeout=30)

    def _aside(self, work: Callable[[Writer], object]) -> None:
        def once(_prefix: str, _chance: random.Random) -> None:
            with contextlib.suppress(psycopg.OperationalError), self._connect() as writer:
                work(writer)

        thread = threading.Thread(target=self._guarded, args=(once, "", random.Random()))
        self._threads.append(thread)
        thread.start()

    def _guarded(
        self, work: Callable[[str, random.Random], None], prefix: str, chance: random.Random
    ) -> None:
        try:
            work(prefix, chance)
        except BaseException as error:
            self._errors.append(error)
            raise

    def _small(self, prefix: str, chance: random.Random) -> None:
        """Write one small database transaction after another, through every crash."""
        alive_at = time.monotonic()
        ids: deque[str] = deque(maxlen=_REMEMBERED)
        step = 0
        while not self._stop.is_set():
            try:
                with self._connect() as writer:
                    while not self._stop.wait(chance.uniform(*PAUSE_S)):
                        step += 1
                        self._write(writer, f"{prefix}z{step}", ids, chance)
                        if chance.random() < 0.15:
                            writer.rollback()
                        else:
                            writer.commit()
                        alive_at = time.monotonic()
            except psycopg.OperationalError:
                self.lost_connections += 1
                if time.monotonic() - alive_at > AWAY_S:
                    raise
                self._stop.wait(_RETRY_S)

    def _write(self, writer: Writer, prefix: str, ids: deque[str], chance: random.Random) -> None:
        for part in range(chance.randint(1, 4)):
            name = f"{prefix}p{part}"
            kind = chance.randrange(5) if ids else chance.randrange(2)
            if kind == 0:
                count = chance.randint(1, 12)
                writer.execute(PAYMENT, {"prefix": name, "count": count})
                ids.extend(payment_id(name, number) for number in range(1, count + 1))
            elif kind == 1:
                writer.execute(ENTRY, {"prefix": name})
            elif kind == 2:
                some = chance.sample(list(ids), min(3, len(ids)))
                status = chance.choice(("pending", "confirming", "expired"))
                writer.execute(_MOVE, {"status": status, "ids": some})
            elif kind == 3:
                # Large enough to be stored out of line, and then not logged when it stays.
                noise = chance.randbytes(3000).hex()
                writer.execute(_GROW, {"noise": noise, "id": chance.choice(ids)})
            else:
                writer.execute(_DELETE, {"id": chance.choice(ids)})
