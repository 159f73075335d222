"""Schema of the ledger database, one Alembic revision after the other."""
