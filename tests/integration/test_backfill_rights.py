"""The passage by which rows are told again: capture's alone, and of published tables only."""

import psycopg
import pytest
from psycopg import errors as pg

from tests.fixtures.services import DatabaseServer


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM backfill_tell(1, 'payments', NULL, NULL, NULL, NULL, 10)",
        "SELECT backfill_tell_gone(1, 'payments', '{}')",
        "SELECT backfill_clear()",
        "SELECT * FROM backfill_shape('payments')",
        "SELECT * FROM capture_backfill",
        "INSERT INTO capture_backfill VALUES (1, 'payments', 'delete', '{}')",
        "TRUNCATE capture_backfill",
    ],
)
@pytest.mark.parametrize(
    "role", ["giovang_api", "giovang_operator", "giovang_watcher", "giovang_capture"]
)
def test_the_passage_is_captures_alone(
    ledger_database: DatabaseServer, role: str, statement: str
) -> None:
    name = statement.partition("(")[0]
    may = role == "giovang_capture" and name.endswith(("_tell", "_gone", "_clear"))
    with psycopg.connect(ledger_database.url(role)) as database:
        if may:
            database.execute(statement.encode())
        else:
            with pytest.raises(pg.InsufficientPrivilege):
                database.execute(statement.encode())


def test_the_passage_tells_published_tables_only(ledger_database: DatabaseServer) -> None:
    with psycopg.connect(ledger_database.url("giovang_capture"), autocommit=True) as database:
        for table in ("api_keys", "audit_logs", "capture_heartbeat", "capture_backfill"):
            with pytest.raises(pg.UndefinedTable, match="is not published"):
                database.execute(
                    "SELECT * FROM backfill_tell(1, %s, NULL, NULL, NULL, NULL, 10)", (table,)
                )
    with psycopg.connect(ledger_database.superuser_url("giovang")) as database:
        closed = database.execute(
            "SELECT relrowsecurity AND relforcerowsecurity, relacl FROM pg_class "
            "WHERE relname = 'capture_backfill'"
        ).fetchone()
        assert closed == (True, None)
        policies = database.execute(
            "SELECT roles::text FROM pg_policies WHERE tablename = 'capture_backfill'"
        ).fetchall()
        assert policies == [("{giovang_owner}",)]
        for statement in ("UPDATE capture_backfill SET run = 2", "DELETE FROM capture_backfill"):
            with pytest.raises(pg.ObjectNotInPrerequisiteState), database.transaction():
                database.execute(statement.encode())
