"""Applies the numbered SQL files of `versions/` to the warehouse, each once, in order.

Each file is one database transaction together with its row in `schema_versions`; an advisory lock
keeps two runners apart. A file that was changed after it was applied, a gap in the numbers, or a
database that is ahead of the checkout is an error, and nothing is applied.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import psycopg

from infra.telemetry import get_logger

log = get_logger(__name__)

VERSIONS = Path(__file__).parent / "versions"
ADVISORY_LOCK = 0x6769_6F76_616E_6701  # "giovang", 1
LOCK_TIMEOUT_S = 60
STATEMENT_TIMEOUT_S = 300

CREATE_VERSIONS = """
CREATE TABLE IF NOT EXISTS public.schema_versions (
    version     integer PRIMARY KEY,
    name        text NOT NULL,
    sha256      text NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT now()
)
"""
READ_VERSIONS = "SELECT version, name, sha256 FROM public.schema_versions ORDER BY version"
ADD_VERSION = "INSERT INTO public.schema_versions (version, name, sha256) VALUES (%s, %s, %s)"

_FILE_NAME = re.compile(r"^(\d{4})_([a-z0-9_]+)\.sql$")


class SchemaError(Exception):
    """The migrations cannot be applied; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered SQL file."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Digest of the file's text."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def migrations(folder: Path = VERSIONS) -> list[Migration]:
    """Read the migrations in order; SchemaError for a misnamed file or a gap."""
    found: list[Migration] = []
    for path in sorted(folder.glob("*.sql")):
        match = _FILE_NAME.match(path.name)
        if match is None:
            raise SchemaError(f"{path.name}: not named NNNN_words.sql")
        found.append(Migration(int(match[1]), match[2], path.read_text(encoding="utf-8")))
    numbers = [migration.version for migration in found]
    if numbers != list(range(1, len(numbers) + 1)):
        raise SchemaError(f"versions are not 1, 2, 3, ... without a gap: {numbers}")
    return found


def apply(url: str, wanted: list[Migration]) -> list[Migration]:
    """Bring the database at `url` to the last of `wanted`; return what was applied now."""
    options = f"-c lock_timeout={LOCK_TIMEOUT_S}s -c statement_timeout={STATEMENT_TIMEOUT_S}s"
    with psycopg.connect(url, autocommit=True, connect_timeout=10, options=options) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (ADVISORY_LOCK,))
        connection.execute(CREATE_VERSIONS)
        pending = _pending(connection, wanted)
        for migration in pending:
            with connection.transaction():
                # Without parameters libpq sends the file as it is, several statements at once.
                connection.execute(migration.sql.encode())
                connection.execute(
                    ADD_VERSION, (migration.version, migration.name, migration.sha256)
                )
            log.info("migration applied", version=migration.version, name=migration.name)
        return pending


def _pending(
    connection: psycopg.Connection[tuple[object, ...]], wanted: list[Migration]
) -> list[Migration]:
    by_version = {migration.version: migration for migration in wanted}
    applied = connection.execute(READ_VERSIONS).fetchall()
    for version, name, digest in applied:
        known = by_version.get(int(str(version)))
        if known is None:
            raise SchemaError(f"the database has version {version} ({name}), this checkout not")
        if known.sha256 != digest:
            raise SchemaError(f"version {version} ({name}) was changed after it was applied")
    return wanted[len(applied) :]
