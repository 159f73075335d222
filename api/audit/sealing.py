"""Seal the audit trail: link rows that have committed into the chain, seconds after the fact.

The chain has one order without gaps, whoever seals and wherever a sealer dies: each step is one
unit of work of PostgreSQL's own function, and a second sealer steps aside. A row that commits late
is sealed late and never skipped. Where the database does not answer, rows wait. Where it refuses,
which only tampering with the chain can bring about, an error is logged at every turn and rows wait:
money moves on.
"""

import time
from typing import Final

import psycopg

from api.audit import store
from api.database import Database, Identity
from infra.telemetry import get_logger

_log = get_logger(__name__)
_SEALER: Final = Identity("sealer")

PERIOD_S: Final = 3.0
ROWS_A_STEP: Final = 1000
LONGEST_S: Final = 1.0


class Sealer:
    """Seals every few seconds, for a second at the most; what is left waits for the next turn."""

    def __init__(self, database: Database, *, period_s: float = PERIOD_S) -> None:
        self._database = database
        self._period_s = period_s
        self._done_at = float("-inf")

    async def seal_when_due(self) -> int:
        """Seal if the last time is long enough ago; return how many rows.

        Raises DatabaseUnavailable.
        """
        if time.monotonic() - self._done_at < self._period_s:
            return 0
        try:
            return await seal(self._database)
        except psycopg.Error as refusal:
            # Not its message: that may quote a row.
            _log.error(
                "the audit trail cannot be sealed; run the verification",
                error=type(refusal).__name__,
                constraint=refusal.diag.constraint_name,
            )
            return 0
        finally:
            self._done_at = time.monotonic()


async def seal(database: Database, *, longest_s: float = LONGEST_S) -> int:
    """Seal what can be sealed within the time; return how many rows. Raises DatabaseUnavailable."""
    begun = time.monotonic()
    sealed = 0
    while True:
        async with database.unit_of_work(_SEALER) as unit:
            step = await store.seal(unit, most=ROWS_A_STEP)
        sealed += step.linked
        if not step.more:
            return sealed
        if time.monotonic() - begun > longest_s:
            _log.info("audit rows are waiting for their seal", sealed=sealed)
            return sealed
