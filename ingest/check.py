"""Compare a database's published tables with what the stream's readers need of them.

`python -m ingest.check` is asked before a migration reaches the ledger, of a scratch database that
the migration was applied to, or of the running one. It changes nothing and prints one line for each
difference: what is missing, of another type, or not published, and who would break. It ends with
0 where nothing would, 1 where something would, and 2 where it cannot tell.
"""

import argparse
import os
import sys
from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ingest.columns import differences, published_columns
from ingest.errors import ProvisionRefused

ALL_WELL: Final = 0
DIFFERS: Final = 1
CANNOT_TELL: Final = 2
URL_VARIABLE: Final = "GIOVANG_INGEST_DATABASE_URL"
PUBLICATION: Final = "payment_gateway_publication"
CONNECT_TIMEOUT_S: Final = 10
STATEMENT_TIMEOUT_MS: Final = 10_000


def check(url: str, publication: str) -> list[str]:
    """Return what differs, a line each; `psycopg.Error` where the database cannot be read."""
    with psycopg.connect(
        url,
        connect_timeout=CONNECT_TIMEOUT_S,
        application_name="giovang capture check",
        options=f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c default_transaction_read_only=on",
    ) as database:
        try:
            return differences(published_columns(database, publication))
        except ProvisionRefused as refused:
            return [str(refused)]


def main(arguments: list[str] | None = None) -> int:
    """Check the database of the URL given, or of the environment; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m ingest.check", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--database-url",
        default=os.environ.get(URL_VARIABLE),
        help=f"libpq URL; without it, {URL_VARIABLE}, which keeps the password out of `ps`",
    )
    parser.add_argument("--publication", default=PUBLICATION)
    told = parser.parse_args(arguments)
    if not told.database_url:
        return _cannot_tell(f"no database: give --database-url, or set {URL_VARIABLE}")
    try:
        name = conninfo_to_dict(told.database_url).get("dbname", "")
        found = check(told.database_url, told.publication)
    except psycopg.Error as error:
        return _cannot_tell(" ".join(str(error).split()))
    for line in found:
        sys.stdout.write(f"{line}\n")
    if not found:
        sys.stdout.write(f"every column that readers need is published by database {name}\n")
    return DIFFERS if found else ALL_WELL


def _cannot_tell(reason: str) -> int:
    sys.stderr.write(f"cannot tell: {reason}\n")
    return CANNOT_TELL


if __name__ == "__main__":
    sys.exit(main())
