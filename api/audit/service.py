"""Leave an audit row for what is not the write of a row.

Every write to a business table is audited by PostgreSQL itself (migration 020). This is for the
rest: a person signed in, a chain transaction was set aside. The row commits with the unit of work.
"""

from typing import Any, Final, LiteralString

from psycopg.types.json import Jsonb

from api.database import Unit

_RECORD: Final[LiteralString] = """
    INSERT INTO audit_logs
        (actor, action, subject_type, subject_id, merchant_id, request_id, after)
    VALUES (%(actor)s, %(action)s, %(subject_type)s, %(subject_id)s, %(merchant_id)s,
            %(request_id)s, %(after)s)
"""


async def record(
    unit: Unit,
    *,
    action: str,
    subject_type: str,
    subject_id: str,
    after: dict[str, Any] | None = None,
) -> None:
    """Write down that the unit's actor did `action` to the subject; `after` holds no secret."""
    await unit.run(
        _RECORD,
        {
            "actor": unit.identity.actor,
            "action": action,
            "subject_type": subject_type,
            "subject_id": subject_id,
            "merchant_id": unit.identity.merchant_id,
            "request_id": unit.identity.request_id,
            "after": None if after is None else Jsonb(after),
        },
    )
