"""Money that leaves: holds, escrow, refunds, payouts; modes and shards of accounts."""

from api.migrations.apply import apply_sql

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Apply the SQL files of this revision in order."""
    apply_sql("120_ledger.sql", "130_payments.sql", "140_payouts.sql")


def downgrade() -> None:
    """Refuse: money's history is mended forward, by a new revision."""
    raise NotImplementedError("go forward with a new revision")
