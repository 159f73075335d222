"""The audit trail's chain of digests."""

from api.migrations.apply import apply_sql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Apply the SQL files of this revision in order."""
    apply_sql("110_audit_chain.sql")


def downgrade() -> None:
    """Refuse: money's history is mended forward, by a new revision."""
    raise NotImplementedError("go forward with a new revision")
