"""Migrations of a database in use: readers, writers, rivals, tables that are not to be had."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from psycopg import sql

from tests.fixtures.audit import number
from tests.fixtures.ledgers import LedgerDatabase
from tests.fixtures.releases import (
    RELEASED,
    TIMEOUT_S,
    as_a_process,
    check_books,
    migrations,
    mode_of,
    revision_of,
    revisions,
    rows_of,
    shape_of,
    write_payment,
)


def test_readers_and_writers_work_on_while_it_is_upgraded(old_ledger: LedgerDatabase) -> None:
    done, ready = threading.Event(), threading.Barrier(5)
    mode = mode_of(old_ledger)

    def write(merchant: str) -> list[str]:
        written: list[str] = []
        with closing(as_a_process(old_ledger, "giovang_api")) as database:
            while not done.is_set():
                database.execute("SELECT set_config('giovang.merchant_id', %s, true)", (merchant,))
                payment = write_payment(database, merchant, mode)
                database.execute("UPDATE payments SET status = 'pending' WHERE id = %s", (payment,))
                database.commit()
                if not written:
                    ready.wait(TIMEOUT_S)
                written.append(payment)
        return written

    def read() -> int:
        reads = 0
        with closing(as_a_process(old_ledger, "giovang_watcher")) as database:
            while not done.is_set():
                for table in ("payments", "ledger_accounts", "merchants", "refunds", "payouts"):
                    database.execute(
                        sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
                    )
                database.commit()
                if not reads:
                    ready.wait(TIMEOUT_S)
                reads += 1
        return reads

    with ThreadPoolExecutor() as threads:
        writers = [threads.submit(write, f"mer_{n:026}") for n in (1, 1, 2)]
        reader = threads.submit(read)
        try:
            ready.wait(TIMEOUT_S)
            answer = migrations(old_ledger)
        finally:
            done.set()
        written = [payment for writer in writers for payment in writer.result()]
        assert reader.result() > 1
    assert answer.returncode == 0, answer.stderr
    with old_ledger.superuser() as database:
        found = database.execute(
            "SELECT count(*) FROM payments WHERE id = ANY (%s) AND status = 'pending'", (written,)
        ).fetchone()
    assert found == (len(written),)
    check_books(old_ledger)


def test_tables_in_use_stop_it_cleanly_and_it_can_be_run_again(old_ledger: LedgerDatabase) -> None:
    shape, rows = shape_of(old_ledger), rows_of(old_ledger)
    with (
        old_ledger.superuser() as long_reader,
        closing(as_a_process(old_ledger, "giovang_watcher")) as other,
    ):
        long_reader.execute("BEGIN")
        long_reader.execute("SELECT count(*) FROM payments")
        with ThreadPoolExecutor() as threads:
            upgrade = threads.submit(migrations, old_ledger, GIOVANG_API_MIGRATION_LOCK_WAIT_S="6")
            while not upgrade.done():
                # Others wait for a try of it at the most, never for all of them.
                other.execute("SET LOCAL statement_timeout = '5s'")
                other.execute("SELECT count(*) FROM payments")
                other.commit()
            answer = upgrade.result()
        long_reader.execute("COMMIT")
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1] == (
        "migrations: the tables were in use for 6 s; end long database transactions;"
        " this revision has changed nothing, run it again"
    )
    assert revision_of(old_ledger) == RELEASED
    assert (shape_of(old_ledger), rows_of(old_ledger)) == (shape, rows)
    assert migrations(old_ledger).returncode == 0
    assert revision_of(old_ledger) == revisions().get_current_head()


def test_a_revision_that_is_refused_leaves_those_before_it(empty_ledger: LedgerDatabase) -> None:
    with empty_ledger.connect("giovang_owner") as database:
        database.execute("CREATE TABLE audit_chain (in_the_way int)")
    answer = migrations(empty_ledger)
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[-1] == (
        'migrations: DuplicateTable: relation "audit_chain" already exists'
    )
    assert "Traceback" not in answer.stderr
    assert revision_of(empty_ledger) == "0002"
    with empty_ledger.superuser() as database:
        assert number(database, "SELECT count(*) FROM pg_class WHERE relname LIKE 'audit_chain%'")
        made = "SELECT count(*) FROM pg_proc WHERE proname = 'audit_seal'"
        assert number(database, made) == 0
        database.execute("DROP TABLE audit_chain")
    assert migrations(empty_ledger).returncode == 0
    assert revision_of(empty_ledger) == revisions().get_current_head()


def test_two_upgrades_at_once_are_one(old_ledger: LedgerDatabase) -> None:
    with ThreadPoolExecutor() as threads:
        answers = [
            one.result() for one in [threads.submit(migrations, old_ledger) for _ in range(2)]
        ]
    assert [answer.returncode for answer in answers] == [0, 0], answers
    applied = [
        line.split()[0]
        for answer in answers
        for line in answer.stderr.splitlines()
        if line.endswith(" s")
    ]
    after_released = [one.revision for one in revisions().walk_revisions()][:-1]
    assert sorted(applied) == sorted(after_released)
    check_books(old_ledger)


def test_a_database_that_is_not_there_is_told_in_one_sentence(empty_ledger: LedgerDatabase) -> None:
    nowhere = "postgresql://giovang_owner:x@127.0.0.1:9/giovang"
    for variables in ({"GIOVANG_API_MIGRATION_URL": nowhere}, {"GIOVANG_API_MIGRATION_URL": "x"}):
        answer = migrations(empty_ledger, **variables)
        assert (answer.returncode, answer.stdout) == (1, "")
        assert answer.stderr.splitlines()[-1].startswith("migrations: ")
        assert "Traceback" not in answer.stderr
