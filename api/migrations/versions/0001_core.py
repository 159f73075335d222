"""The core: merchants, payments, ledger, refunds, payouts, audit, chain, capture."""

from api.migrations.apply import apply_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create everything from an empty database whose roles exist."""
    apply_sql(
        "010_foundations.sql",
        "020_audit.sql",
        "030_merchants.sql",
        "040_payments.sql",
        "050_ledger.sql",
        "060_refunds_and_payouts.sql",
        "070_chain.sql",
        "080_capture.sql",
    )


def downgrade() -> None:
    """Refuse: money's history is mended forward, by a new revision."""
    raise NotImplementedError("go forward with a new revision")
