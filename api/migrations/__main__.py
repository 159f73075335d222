"""Bring the ledger database to the newest schema: `python -m api.migrations`.

The guarantee: all revisions that are missing apply, each in one database transaction, and two runs
at once wait for each other. It fails, changing nothing, where the database cannot be reached, where
the roles do not exist yet, or where a revision is refused; the exit status is then not zero.
"""

import sys
from pathlib import Path

from alembic import command
from alembic.config import Config

from api.settings import MigrationSettings
from infra.telemetry import configure_logging, get_logger


def main() -> None:
    """Apply every missing revision as giovang_owner."""
    configure_logging("migrations")
    settings = MigrationSettings()
    config = Config(stdout=sys.stderr)
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["url"] = settings.migration_url.get_secret_value()
    command.upgrade(config, "head")
    get_logger(__name__).info("schema is at head")


if __name__ == "__main__":
    main()
