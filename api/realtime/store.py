"""The SQL of live status: one question about many payments, whoever's they are.

`live_steps` runs as the owner of the tables and tells what payers may see and no more; who may
watch a payment was decided before it is asked here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString, NamedTuple

from api.database import Database, Identity
from api.realtime.model import Step, recorded_step

_ACTOR: Final = "live"
_STEPS: Final[LiteralString] = """
    SELECT payment_id, seq, type, created_at, payment
    FROM live_steps(%(ids)s::text[], %(afters)s::bigint[], %(most)s)
"""


class Ask(NamedTuple):
    """Steps of a payment after a number; after None, its last step alone."""

    payment_id: str
    after: int | None


@dataclass(frozen=True, slots=True)
class _Row:
    payment_id: str
    seq: int
    type: str
    created_at: datetime
    payment: dict[str, Any]


async def steps(database: Database, asks: Sequence[Ask], *, most: int) -> list[Step]:
    """Return up to `most` steps of each payment asked for, in the order of their numbers.

    A payment that has not reached the number asked from gives its last step. Raises
    DatabaseUnavailable.
    """
    parameters = {
        "ids": [ask.payment_id for ask in asks],
        "afters": [ask.after for ask in asks],
        "most": most,
    }
    async with database.unit_of_work(Identity(_ACTOR)) as unit:
        rows = await unit.all(_Row, _STEPS, parameters)
    return [
        recorded_step(row.payment_id, row.seq, row.type, row.created_at, row.payment)
        for row in rows
    ]
