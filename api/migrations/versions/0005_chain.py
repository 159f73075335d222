"""The chain watched closely, and what a payer's page is told as it happens."""

from api.migrations.apply import apply_sql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Apply the SQL files of this revision in order."""
    apply_sql("150_watching.sql", "155_policies.sql", "160_live.sql")


def downgrade() -> None:
    """Refuse: money's history is mended forward, by a new revision."""
    raise NotImplementedError("go forward with a new revision")
