"""Leave an audit row for what is not the write of a row.

Every write to a business table is audited by PostgreSQL itself (migration 020). This is for the
rest: a person signed in, a chain transaction was set aside. The row commits with the unit of work,
and says of who did it and for which merchant what the unit of work says.
"""

from typing import Any

from api.audit import store
from api.database import Unit


async def record(
    unit: Unit,
    *,
    action: str,
    subject_type: str,
    subject_id: str,
    after: dict[str, Any] | None = None,
) -> None:
    """Write down that the unit's actor did `action` to the subject; `after` holds no secret."""
    await store.record(
        unit, action=action, subject_type=subject_type, subject_id=subject_id, after=after
    )
