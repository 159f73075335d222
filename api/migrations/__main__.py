"""Bring the ledger database to the newest schema: `python -m api.migrations`.

The guarantee: all revisions that are missing apply in order, each in one database transaction, on a
live database too (see api.migrations.apply); two runs at once wait for each other. Where the
database cannot be reached, the roles do not exist yet, tables stay in use, or a revision is
refused, it says so in one sentence and ends with status 1. The revision at fault has then changed
nothing, those before it stay, and the next run goes on from there.
"""

import sys
import time
from pathlib import Path
from typing import Any

import psycopg
from alembic import command
from alembic.config import Config
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from api.migrations.apply import LOCK_WAIT_ATTRIBUTE, TablesAreBusy
from api.settings import MigrationSettings
from infra.telemetry import configure_logging, get_logger


class _Progress:
    """Tells each revision as it is applied, with how long it took."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self.applied = 0

    def __call__(self, *, step: Any, **_: object) -> None:  # noqa: ANN401 - Alembic's MigrationInfo
        revision = step.up_revision
        now = time.monotonic()
        sys.stderr.write(f"{revision.revision} {revision.doc} {now - self._begun:.2f} s\n")
        self._begun = now
        self.applied += 1


def main() -> int:
    """Apply every missing revision as giovang_owner; returns the exit status."""
    configure_logging("migrations")
    try:
        settings = MigrationSettings()
    except ValidationError as error:
        names = ", ".join(f"GIOVANG_API_{item['loc'][0]}".upper() for item in error.errors())
        return _fail(f"{names} is missing or malformed")
    progress = _Progress()
    config = Config(stdout=sys.stderr)
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["url"] = settings.migration_url.get_secret_value()
    config.attributes["on_applied"] = progress
    config.attributes[LOCK_WAIT_ATTRIBUTE] = settings.migration_lock_wait_s
    try:
        command.upgrade(config, "head")
    except TablesAreBusy as busy:
        return _fail(f"{busy}; this revision has changed nothing, run it again")
    except ValueError as error:
        return _fail(str(error))
    except (psycopg.Error, DBAPIError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        # Of what PostgreSQL says the first line; what follows may quote rows.
        return _fail(f"{type(cause).__name__}: {str(cause).splitlines()[0]}")
    get_logger(__name__).info("schema is at head", applied=progress.applied)
    return 0


def _fail(reason: str) -> int:
    sys.stderr.write(f"migrations: {reason}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
