"""Run the SQL files of a revision inside Alembic's database transaction.

The files go to PostgreSQL as they are written, several statements at a time, so that what is
reviewed is what runs. The first error ends the revision and leaves nothing of it behind.
"""

from pathlib import Path
from typing import cast

import psycopg
from alembic import op

_FOLDER = Path(__file__).parent / "sql"


def apply_sql(*names: str) -> None:
    """Execute the named files of `migrations/sql` in the order given."""
    driver = cast("psycopg.Connection[object]", op.get_bind().connection.driver_connection)
    for name in names:
        driver.execute((_FOLDER / name).read_bytes())
