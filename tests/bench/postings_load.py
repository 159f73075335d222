"""Books entries through the product's own code as fast as they commit, in a process of its own.

`python -m tests.bench.postings_load` reads one JSON object from standard input (see `Load`) and
prints one. Each worker books one entry, of a payment that completes, in one unit of work, and then
the next. Any refusal ends everything with status 1.
"""

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass

import uvloop

from api.database import Database, Identity
from api.errors import GiovangError
from api.ledger.model import AccountKind, Entry, EntryKind, Leg
from api.ledger.service import post_entry

# Ten USDC at 26,150, one per cent of it our fee.
TOKENS_MINOR = 10_000_000
DONG_MINOR = 261_500
FEE_MINOR = 2_615


@dataclass(frozen=True, slots=True)
class Load:
    """What to book: workers take the merchants in turn; only commits after the warm-up count."""

    url: str
    run: str
    merchants: list[str]
    workers: int
    warm_up_s: float
    duration_s: float


@dataclass(slots=True)
class Outcome:
    """Entries that committed: all, and those of the measured time."""

    booked: int = 0
    measured: int = 0
    cpu_s: float = 0.0


def completion(key: str, merchant_id: str) -> Entry:
    """Return the entry of a payment in USDC that completes: five legs on five accounts."""
    return Entry(
        kind=EntryKind.PAYMENT_COMPLETED,
        key=key,
        mode="test",
        merchant_id=merchant_id,
        legs=(
            Leg(AccountKind.CRYPTO_POOL, "USDC", TOKENS_MINOR),
            Leg(AccountKind.LIQUIDITY, "USDC", -TOKENS_MINOR),
            Leg(AccountKind.LIQUIDITY, "VND", DONG_MINOR),
            Leg(AccountKind.MERCHANT_AVAILABLE, "VND", FEE_MINOR - DONG_MINOR, merchant_id),
            Leg(AccountKind.FEE_REVENUE, "VND", -FEE_MINOR),
        ),
    )


async def _run(load: Load) -> Outcome:
    outcome = Outcome()
    async with Database(
        load.url, application_name="giovang-bench", pool_size=load.workers
    ) as database:
        begin = time.perf_counter()

        async def work(worker: int) -> None:
            number = 0
            while (into := time.perf_counter() - begin - load.warm_up_s) <= load.duration_s:
                merchant_id = load.merchants[(worker + number * load.workers) % len(load.merchants)]
                entry = completion(f"bench-{load.run}-{worker}-{number}", merchant_id)
                async with database.unit_of_work(Identity("bench")) as unit:
                    await post_entry(unit, entry)
                number += 1
                outcome.booked += 1
                into = time.perf_counter() - begin - load.warm_up_s
                outcome.measured += 0 <= into <= load.duration_s

        await asyncio.gather(*(work(worker) for worker in range(load.workers)))
    outcome.cpu_s = time.process_time()
    return outcome


def main() -> int:
    """Book the load of standard input."""
    load = Load(**json.load(sys.stdin))
    try:
        outcome = uvloop.run(_run(load))
    except GiovangError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    sys.stdout.write(json.dumps(asdict(outcome)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
