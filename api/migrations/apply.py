"""Run the SQL files of a revision inside Alembic's database transaction.

The files go to PostgreSQL as they are written, several statements at a time, so that what is
reviewed is what runs. The first error ends the revision and leaves nothing of it behind.

A live database is not harmed: every table is locked before the first statement, in tries so short
that whoever reads and writes waits a fraction of a second at the most and no deadlock can come of
it. Between tries the others go on. Once all locks are held they wait until the revision commits.
Where the locks are not to be had in time, because somebody keeps a database transaction open,
TablesAreBusy says so and nothing has changed.
"""

import time
from pathlib import Path
from typing import Final, cast

import psycopg
from alembic import context, op
from psycopg import sql

_FOLDER: Final = Path(__file__).parent / "sql"
# Shorter than PostgreSQL's deadlock_timeout (1 s): we step back before anybody is chosen to die.
_TRY_MS: Final = 300
# The order in which work itself goes through the tables. So whoever is under way when we begin to
# wait needs nothing that we hold, finishes, and whoever comes then waits holding nothing.
_LOCKED_FIRST: Final = (
    "idempotency_keys",
    "chain_cursors",
    "chain_transfers",
    "payments",
    "refunds",
    "payouts",
    "merchants",
)
_LOCKED_LAST: Final = (
    "ledger_accounts",
    "ledger_entries",
    "ledger_postings",
    "merchant_event_counters",
    "payment_events",
    "merchant_events",
    "audit_logs",
)
DEFAULT_LOCK_WAIT_S: Final = 30.0
LOCK_WAIT_ATTRIBUTE: Final = "lock_wait_s"


class TablesAreBusy(Exception):  # noqa: N818 - told to a person as it stands
    """The tables could not be locked in time; nothing has changed, and it may be run again."""


def sqlalchemy_url(url: str) -> str:
    """Return a libpq URL in the form that SQLAlchemy, and so Alembic, takes for psycopg 3."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in {"postgresql", "postgres"}:
        raise ValueError("a database URL starts with postgresql://")
    return f"postgresql+psycopg://{rest}"


def apply_sql(*names: str) -> None:
    """Execute the named files of `migrations/sql` in the order given; raises TablesAreBusy."""
    driver = cast("psycopg.Connection[tuple[str]]", op.get_bind().connection.driver_connection)
    wait_s = context.config.attributes.get(LOCK_WAIT_ATTRIBUTE, DEFAULT_LOCK_WAIT_S)
    _lock_all_tables(driver, wait_s)
    for name in names:
        driver.execute((_FOLDER / name).read_bytes())


def _lock_all_tables(driver: "psycopg.Connection[tuple[str]]", wait_s: float) -> None:
    found = driver.execute(
        """SELECT relname::text FROM pg_class
           WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
             AND NOT relispartition AND relname <> 'alembic_version'
             AND relowner = current_user::regrole"""
    ).fetchall()
    tables = sorted((name for (name,) in found), key=_place)
    if not tables:
        return
    names = sql.SQL(", ").join(sql.Identifier("public", name) for name in tables)
    lock = sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(names)
    deadline = time.monotonic() + wait_s
    while True:
        driver.execute("SAVEPOINT before_locks")
        driver.execute(
            sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(f"{_TRY_MS}ms")),
        )
        try:
            driver.execute(lock)
        except psycopg.errors.LockNotAvailable as busy:
            # This gives every lock back, and lets in who waited behind us.
            driver.execute("ROLLBACK TO SAVEPOINT before_locks")
            driver.execute("RELEASE SAVEPOINT before_locks")
            if time.monotonic() > deadline:
                raise TablesAreBusy(
                    f"the tables were in use for {wait_s:g} s; end long database transactions"
                ) from busy
        else:
            driver.execute("RELEASE SAVEPOINT before_locks")
            return


def _place(table: str) -> tuple[int, str]:
    if table in _LOCKED_FIRST:
        return _LOCKED_FIRST.index(table) - len(_LOCKED_FIRST), table
    return _LOCKED_LAST.index(table) + 1 if table in _LOCKED_LAST else 0, table
