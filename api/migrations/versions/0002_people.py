"""People: the operator's role, admins with a second factor, sessions."""

from api.migrations.apply import apply_sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Apply the SQL files of this revision in order."""
    apply_sql("090_operator.sql", "100_people.sql")


def downgrade() -> None:
    """Refuse: money's history is mended forward, by a new revision."""
    raise NotImplementedError("go forward with a new revision")
