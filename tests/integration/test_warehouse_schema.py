"""The warehouse's migrations against TimescaleDB: repeatable, locked, and tight on rights."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg.errors import InsufficientPrivilege

from streams.contract import Table
from streams.schema.runner import SchemaError, apply, migrations
from tests.fixtures.services import DatabaseServer

HYPERTABLES = """
SELECT hypertable_schema || '.' || hypertable_name
FROM timescaledb_information.hypertables WHERE hypertable_schema = 'raw'
"""
# Every table of raw that says whose its rows are. A continuous aggregate refuses a hypertable with
# row-level security, so the one it is made of has grants alone.
OPEN_TABLES = """
SELECT c.relname
FROM pg_class AS c
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'merchant_id' AND NOT a.attisdropped
WHERE c.relnamespace = 'raw'::regnamespace AND c.relkind IN ('r', 'p')
  AND c.relname <> 'payment_analytics'
  AND NOT (
      c.relrowsecurity AND c.relforcerowsecurity
      AND EXISTS (
          SELECT FROM pg_policies AS p WHERE p.schemaname = 'raw' AND p.tablename = c.relname)
      AND NOT EXISTS (
          SELECT FROM pg_policies AS p
          WHERE p.schemaname = 'raw' AND p.tablename = c.relname
            AND NOT p.roles <@ '{giovang_streams, giovang_dbt, giovang_warehouse_owner}'::name[]))
ORDER BY 1
"""
# Tables and chunks alike: policies do not reach chunks, so grants must be as tight there.
READABLE = """
SELECT c.oid::regclass::text, r.rolname
FROM pg_class AS c
CROSS JOIN pg_roles AS r
WHERE c.relkind IN ('r', 'p')
  AND (c.relnamespace = 'raw'::regnamespace
       OR c.oid IN (
           SELECT show_chunks(format('%I.%I', hypertable_schema, hypertable_name)::regclass)
           FROM timescaledb_information.hypertables WHERE hypertable_schema = 'raw'))
  AND NOT r.rolsuper
  AND r.rolname NOT IN ('giovang_streams', 'giovang_dbt', 'giovang_warehouse_owner')
  AND r.rolname !~ '^pg_'
  AND has_table_privilege(r.oid, c.oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, TRIGGER')
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
        hypertables = {str(name) for (name,) in owner.execute(HYPERTABLES).fetchall()}
    assert hypertables >= {
        Table.PAYMENT_ANALYTICS,
        Table.REFUNDS,
        Table.PAYOUTS,
        Table.LEDGER_ENTRIES,
        Table.LEDGER_POSTINGS,
    }


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


def test_every_table_with_a_merchant_is_secured(analytics_database: DatabaseServer) -> None:
    url = analytics_database.superuser_url("analytics")
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as database:
        assert database.execute(OPEN_TABLES).fetchall() == []
        for opening in (
            "CREATE TABLE raw.new_one (merchant_id text)",
            "ALTER TABLE raw.ledger_postings NO FORCE ROW LEVEL SECURITY",
            "ALTER TABLE raw.payouts DISABLE ROW LEVEL SECURITY",
            "CREATE POLICY everybody ON raw.merchants USING (true)",
        ):
            with database.transaction(force_rollback=True):
                database.execute(opening.encode())
                assert len(database.execute(OPEN_TABLES).fetchall()) == 1, opening


def test_a_table_granted_by_mistake_shows_nothing(analytics_database: DatabaseServer) -> None:
    posting = (
        "INSERT INTO raw.ledger_postings (time, event_id, entry_id, seq, merchant_id, account_id,"
        " asset, amount_minor, position, ordinal, committed_at)"
        " VALUES (now(), 'secured', 'ent_secured', 1, 'mer_1', 'acc_1', 'VND', 5, 1, 1, now())"
    )
    count = "SELECT count(*) FROM raw.ledger_postings WHERE entry_id = 'ent_secured'"
    url = analytics_database.superuser_url("analytics")
    with psycopg.connect(url, connect_timeout=5) as database:
        database.execute(posting)
        assert database.execute(READABLE).fetchall() == []
        database.execute("GRANT USAGE ON SCHEMA raw TO giovang_dashboards")
        database.execute("GRANT SELECT ON raw.ledger_postings TO giovang_dashboards")
        assert database.execute(READABLE).fetchall() != []
        seen = {}
        for role in ("giovang_dashboards", "giovang_dbt", "giovang_streams"):
            database.execute(f"SET LOCAL ROLE {role}".encode())
            seen[role] = database.execute(count).fetchone()
        database.rollback()
    assert seen == {"giovang_dashboards": (0,), "giovang_dbt": (1,), "giovang_streams": (1,)}


def test_a_warehouse_with_rows_is_brought_forward(analytics_cluster: DatabaseServer) -> None:
    """As release 0.1.0 left it: rows, chunks, and three versions."""
    name = "warehouse_of_0_1"
    with psycopg.connect(analytics_cluster.superuser_url(), autocommit=True) as cluster:
        cluster.execute(f"CREATE DATABASE {name} OWNER giovang_warehouse_owner".encode())
    try:
        superuser_url = analytics_cluster.superuser_url(name)
        with psycopg.connect(superuser_url, autocommit=True) as database:
            database.execute("CREATE EXTENSION timescaledb")
        url = analytics_cluster.url("giovang_warehouse_owner", name)
        assert len(apply(url, migrations()[:3])) == 3
        refund = (
            "INSERT INTO raw.refunds (time, event_id, refund_id, payment_id, merchant_id,"
            " amount_vnd, status, position, ordinal, committed_at)"
            " VALUES (now(), %s, 'rfd_1', 'pay_1', 'mer_1', 5, 'requested', 1, 1, now())"
        )
        streams_url = analytics_cluster.url("giovang_streams", name)
        with psycopg.connect(streams_url, autocommit=True) as streams:
            streams.execute(refund, ("before",))
        assert apply(url, migrations()) == migrations()[3:]
        with psycopg.connect(streams_url, autocommit=True) as streams:
            streams.execute(refund, ("after",))
            assert streams.execute("SELECT count(*) FROM raw.refunds").fetchone() == (2,)
    finally:
        with psycopg.connect(analytics_cluster.superuser_url(), autocommit=True) as cluster:
            cluster.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


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
        ("giovang_dashboards", "SELECT 1 FROM raw.ledger_postings"),
        ("giovang_streams", "UPDATE raw.ledger_postings SET amount_minor = 1"),
        ("giovang_streams", "DELETE FROM raw.deletions"),
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
        dbt.execute("SELECT count(*) FROM raw.ledger_postings, raw.ledger_entries, raw.payouts")
        dbt.execute("CREATE SCHEMA schema_test")
        dbt.execute("CREATE TABLE schema_test.t AS SELECT * FROM raw.watermark")
        dbt.execute("DROP SCHEMA schema_test CASCADE")
