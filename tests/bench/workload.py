"""Payment changes for a bench, made from its seed: a backlog at once, or so many a second.

A payment takes four changes: inserted as created, then pending, confirming and failed, a path that
books nothing, so every change is one row of the hypertable. The backlog is written with triggers
off, in database transactions of ten changes, since only the log it leaves behind matters; the
steady load goes through all triggers, one database transaction a change, by several writers.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import LiteralString

import psycopg

from tests.bench.frame import BenchError

STATUSES = ("created", "pending", "confirming", "failed")
PAYMENTS_PER_COMMIT = 10
WRITERS = 8
PACED_WRITERS = 4
# One merchant a writer: the events of a merchant queue for its counter.
MERCHANT_IDS = tuple(f"mer_{writer:026d}" for writer in range(WRITERS))
MAX_BEHIND_S = 5.0

_MERCHANT: LiteralString = """
INSERT INTO merchants (id, name, trade, timezone, country)
VALUES (%s, 'Bench', 'bench', 'Asia/Ho_Chi_Minh', 'VN') ON CONFLICT DO NOTHING
"""
_CREATE: LiteralString = """
INSERT INTO payments (
    id, merchant_id, mode, amount_minor, currency, asset, asset_amount_minor, rate, rate_source,
    chain, recipient, mint, reference, payer_country, expires_at
)
SELECT 'pay_' || lpad(n::text, 26, '0'), %(merchant)s, 'test',
       (1 + (hashint8(n # %(seed)s) & 2147483647) %% 500) * 5000, 'VND', 'USDC',
       1 + (hashint8(n # %(seed)s) & 2147483647) %% 90000000, 26150, 'bench', 'solana',
       'BenchRecipient1111111111111111111111111111',
       'EPjFWdd5AufqSSqeM2qN1xzybapC8G4wEGGkZwyTDt1v', 'bench-reference-' || n, 'VN',
       now() + interval '15 minutes'
FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n
"""
_MOVE: LiteralString = """
UPDATE payments SET status = %(status)s, status_at = clock_timestamp(),
                    updated_at = clock_timestamp()
WHERE id IN (
    SELECT 'pay_' || lpad(n::text, 26, '0')
    FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS n)
"""


def payment_id(number: int) -> str:
    """Return the id of the workload's payment `number`."""
    return f"pay_{number:026d}"


@dataclass(frozen=True, slots=True)
class Steady:
    """What a steady load was: by payment id and status, the Unix time of its acknowledgement."""

    acknowledged: dict[tuple[str, str], float]
    written_per_s: float


@dataclass(slots=True)
class Workload:
    """Writes changes to the ledger at `url`; payment numbers are used once."""

    url: str
    seed: int
    _next: int = 1

    def add_merchants(self) -> None:
        """Make the merchants that the payments belong to."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for merchant in MERCHANT_IDS:
                connection.execute(_MERCHANT, (merchant,))

    def backlog(self, changes: int) -> range:
        """Commit `changes` changes as fast as it goes; returns the numbers of the payments."""
        payments = changes // len(STATUSES)
        if payments % PAYMENTS_PER_COMMIT or payments * len(STATUSES) != changes:
            raise BenchError(f"{changes} changes are not whole groups of {PAYMENTS_PER_COMMIT}")
        numbers = range(self._next, self._next + payments)
        self._next = numbers.stop
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("SET synchronous_commit = off")
            connection.execute("SET session_replication_role = replica")
            for first in range(numbers.start, numbers.stop, PAYMENTS_PER_COMMIT):
                for status in STATUSES:
                    statement = _CREATE if status == "created" else _MOVE
                    connection.execute(statement, self._values(first, status))
        return numbers

    def steady(self, *, per_s: int, duration_s: float) -> Steady:
        """Commit `per_s` changes a second on a fixed schedule, one database transaction each.

        A writer that falls behind by more than `MAX_BEHIND_S` writes no more; the rate tells it.
        """
        payments = int(per_s * duration_s) // len(STATUSES)
        numbers = range(self._next, self._next + payments)
        self._next = numbers.stop
        begin = time.monotonic() + 0.2
        with ThreadPoolExecutor(WRITERS) as writers:
            shares = [
                writers.submit(
                    self._write_share, numbers[own::WRITERS], own, begin, per_s / WRITERS
                )
                for own in range(WRITERS)
            ]
            acknowledged: dict[tuple[str, str], float] = {}
            for share in shares:
                acknowledged.update(share.result())
        return Steady(acknowledged, len(acknowledged) / (time.monotonic() - begin))

    def paced(self, *, per_s: int, duration_s: float, per_commit: int) -> int:
        """Commit changes of `per_commit` payments each on a fixed schedule, triggers off.

        Only the log matters to what reads it. Returns how many changes there were: a writer that
        falls behind by more than `MAX_BEHIND_S` writes no more, and the caller tells the rate.
        """
        commits = max(1, int(per_s * duration_s) // (per_commit * PACED_WRITERS))
        begin = time.monotonic() + 0.2
        every_s = per_commit * PACED_WRITERS / per_s

        def share(own: int, first: int) -> int:
            with psycopg.connect(self.url, autocommit=True) as connection:
                connection.execute("SET session_replication_role = replica")
                for commit in range(commits):
                    due = begin + (commit + own / PACED_WRITERS) * every_s
                    if _wait_until(due) > MAX_BEHIND_S:
                        return commit
                    group, step = divmod(commit, len(STATUSES))
                    number = first + group * per_commit
                    values = self._values(number, STATUSES[step])
                    values["last"] = number + per_commit - 1
                    connection.execute(_MOVE if step else _CREATE, values)
            return commits

        groups = -(-commits // len(STATUSES))
        with ThreadPoolExecutor(PACED_WRITERS) as writers:
            shares = []
            for own in range(PACED_WRITERS):
                shares.append(writers.submit(share, own, self._next))
                self._next += groups * per_commit
            return per_commit * sum(done.result() for done in shares)

    def _write_share(
        self, numbers: range, writer: int, begin: float, per_s: float
    ) -> dict[tuple[str, str], float]:
        """Write one writer's payments; a payment's changes follow one another."""
        acknowledged: dict[tuple[str, str], float] = {}
        with psycopg.connect(self.url, autocommit=True) as connection:
            for change in range(len(numbers) * len(STATUSES)):
                if _wait_until(begin + (change + writer / WRITERS) / per_s) > MAX_BEHIND_S:
                    break
                number, step = numbers[change // len(STATUSES)], change % len(STATUSES)
                values = {
                    **self._values(number, STATUSES[step]),
                    "last": number,
                    "merchant": MERCHANT_IDS[writer],
                }
                connection.execute(_MOVE if step else _CREATE, values)
                acknowledged[payment_id(number), STATUSES[step]] = time.time()
        return acknowledged

    def _values(self, first: int, status: str) -> dict[str, object]:
        return {
            "merchant": MERCHANT_IDS[0],
            "seed": self.seed,
            "first": first,
            "last": first + PAYMENTS_PER_COMMIT - 1,
            "status": status,
        }


def _wait_until(due: float) -> float:
    """Wait until a moment of the monotonic clock; return how many seconds ago it was."""
    behind = time.monotonic() - due
    if behind < 0:
        time.sleep(-behind)
    return behind
