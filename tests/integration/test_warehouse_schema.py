"""The warehouse's migrations against TimescaleDB: repeatable, locked, and tight on rights."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from streams.schema.runner import SchemaError, apply, migrations
from tests.fixtures.services import DatabaseServer

HYPERTABLES = """
SELECT hypertable_schema || '.' || hypertable_name
FROM timescaledb_information.hypertables WHERE hypertable_schema = 'raw' ORDER BY 1
"""


def connect(server: DatabaseServer, role: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(server.url(role), autocommit=True, connect_timeout=5)


def test_running_again_applies_nothing(analytics_database: DatabaseServer) -> None:
    url = analytics_database.url("giovang_warehouse_owner")
    with ThreadPoolExecutor(2) as both:
        runs = [both.submit(apply, url, migrations()) for _ in range(2)]
        assert [run.result(timeout=30) for run in runs] == [[], []]
    with connect(analytics_database, "giovang_warehouse_owner") as owner:
        found = owner.execute("SELECT version FROM schema_versions ORDER BY version").fetchall()
        assert [version for (version,) in found] == [each.version for each in migrations()]
        assert owner.execute(HYPERTABLES).fetchall() == [
            ("raw.payment_analytics",),
            ("raw.refunds",),
        ]


def test_a_changed_or_unknown_version_is_refused(
    analytics_database: DatabaseServer, tmp_path: Path
) -> None:
    url = analytics_database.url("giovang_warehouse_owner")
    shipped = migrations()
    (tmp_path / "0001_raw.sql").write_text(shipped[0].sql + "\n")
    with pytest.raises(SchemaError, match="was changed after it was applied"):
        apply(url, migrations(tmp_path) + shipped[1:])
    with pytest.raises(SchemaError, match="this checkout not"):
        apply(url, shipped[:1])


def test_a_failing_migration_leaves_nothing_behind(
    analytics_database: DatabaseServer, tmp_path: Path
) -> None:
    url = analytics_database.url("giovang_warehouse_owner")
    for migration in migrations():
        path = tmp_path / f"{migration.version:04d}_{migration.name}.sql"
        path.write_text(migration.sql, encoding="utf-8")
    number = len(migrations()) + 1
    (tmp_path / f"{number:04d}_broken.sql").write_text(
        "CREATE TABLE raw.half_done (id integer); SELECT 1 / 0;"
    )
    with pytest.raises(psycopg.errors.DivisionByZero):
        apply(url, migrations(tmp_path))
    with connect(analytics_database, "giovang_warehouse_owner") as owner:
        (row,) = owner.execute("SELECT to_regclass('raw.half_done')").fetchall()
        assert row == (None,)
    assert apply(url, migrations()) == []


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        ("giovang_dashboards", "SELECT 1 FROM raw.payment_analytics"),
        ("giovang_dashboards", "SELECT 1 FROM raw.merchants"),
        ("giovang_dashboards", "CREATE TEMPORARY TABLE t (id integer)"),
        ("giovang_dashboards", "CREATE SCHEMA mine"),
        ("giovang_streams", "DELETE FROM raw.payment_analytics"),
        ("giovang_streams", "UPDATE raw.payment_analytics SET status = 'x'"),
        ("giovang_streams", "DELETE FROM raw.watermark"),
        ("giovang_streams", "CREATE SCHEMA mine"),
        ("giovang_dbt", "INSERT INTO raw.merchants SELECT * FROM raw.merchants"),
        ("giovang_dbt", "CREATE TABLE raw.t (id integer)"),
    ],
)
def test_a_role_may_do_no_more_than_its_work(
    analytics_database: DatabaseServer, role: str, statement: str
) -> None:
    with connect(analytics_database, role) as held, pytest.raises(InsufficientPrivilege):
        held.execute(statement.encode())


def test_dbt_reads_raw_and_makes_its_own_schemas(analytics_database: DatabaseServer) -> None:
    with connect(analytics_database, "giovang_dbt") as dbt:
        dbt.execute("SELECT count(*) FROM raw.payment_analytics, raw.refunds, raw.merchants")
        dbt.execute("CREATE SCHEMA schema_test")
        dbt.execute("CREATE TABLE schema_test.t AS SELECT * FROM raw.watermark")
        dbt.execute("DROP SCHEMA schema_test CASCADE")
