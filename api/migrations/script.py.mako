"""${message}."""

from api.migrations.apply import apply_sql

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    """Apply the SQL files of this revision in order."""
    apply_sql()


def downgrade() -> None:
    """Refuse: money's history is mended forward, by a new revision."""
    raise NotImplementedError("go forward with a new revision")
