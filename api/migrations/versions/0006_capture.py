"""Rows told again: what capture needs for a first snapshot, a backfill and a closed gap."""

from api.migrations.apply import apply_sql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Apply the SQL files of this revision in order."""
    apply_sql("170_capture.sql")


def downgrade() -> None:
    """Refuse: money's history is mended forward, by a new revision."""
    raise NotImplementedError("go forward with a new revision")
