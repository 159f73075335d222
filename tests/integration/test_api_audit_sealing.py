"""Sealing the audit trail: late commits, rivals, deaths, and how far a step goes."""

import asyncio
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import errors as pg

from api.audit import sealing
from api.audit.model import Flaw
from api.database import Database
from tests.fixtures.api import until
from tests.fixtures.audit import (
    ROWS,
    assert_gap_free,
    nothing_under_way,
    number,
    seal,
    verify,
    write_rows,
)
from tests.fixtures.ledgers import LedgerDatabase
from tests.fixtures.services import CHECKOUT, Server


def test_a_row_that_commits_late_is_sealed_late_and_never_skipped(trail: LedgerDatabase) -> None:
    with trail.superuser() as late, trail.superuser() as database:
        late.execute("BEGIN")
        write_rows(late, 4)
        write_rows(database, 6)
        # Its ids lie above those on their way; and the horizon cannot pass them.
        assert [seal(trail), seal(trail)] == [6, 0]
        found = verify(trail)
        assert (found.intact, found.verified, found.waiting) == (True, ROWS + 6, 0)
        write_rows(late, 1)
        write_rows(database, 2)
        late.execute("COMMIT")
        found = verify(trail)
        assert (found.intact, found.waiting) == (True, 7)
    assert seal(trail) == 7
    assert verify(trail).verified == ROWS + 13
    assert_gap_free(trail)
    with trail.superuser() as database:
        order = database.execute(
            "SELECT array_agg(log_id ORDER BY seq) FROM audit_chain WHERE seq > %s", (ROWS,)
        ).fetchone()
    assert order is not None
    assert order[0] != sorted(order[0]), "the late ones follow those that were sealed before them"


def test_rows_that_were_rolled_back_hold_nothing_up(trail: LedgerDatabase) -> None:
    with trail.superuser() as database:
        database.execute("BEGIN")
        write_rows(database, 5)
        database.execute("ROLLBACK")
        write_rows(database, 1)
    assert seal(trail) == 1
    with trail.superuser() as database:
        complete = "SELECT complete_id - (SELECT max(id) FROM audit_logs) FROM audit_chain_head"
        assert number(database, complete) == 0
    assert verify(trail).intact


def test_writers_and_two_sealers_at_once_make_one_chain(trail: LedgerDatabase) -> None:
    done = threading.Event()

    def write(writer: int) -> None:
        with psycopg.connect(trail.superuser_url) as database:
            for turn in range(25):
                write_rows(database, 1 + (writer + turn) % 4)
                if turn % 7 == writer:
                    database.rollback()
                elif turn % 3:
                    database.commit()

    def keep_sealing() -> int:
        async def work() -> int:
            url = trail.url("giovang_watcher")
            async with Database(url, application_name="test", pool_size=1) as pool:
                sealed = 0
                while not done.is_set():
                    sealed += await sealing.seal(pool)
                return sealed

        return asyncio.run(work())

    with ThreadPoolExecutor() as threads:
        sealers = [threads.submit(keep_sealing) for _ in range(2)]
        try:
            for writer in [threads.submit(write, number) for number in range(6)]:
                writer.result()
        finally:
            done.set()
        sealed = sum(sealer.result() for sealer in sealers)
    seal(trail)
    found = verify(trail)
    assert sealed > 0
    assert (found.intact, found.waiting) == (True, 0)
    assert found.verified == found.head_seq > ROWS
    assert_gap_free(trail)


@pytest.mark.parametrize("locked", ["audit_chain", "audit_chain_head", "audit_logs"])
def test_a_sealer_that_dies_leaves_nothing_half_done(trail: LedgerDatabase, locked: str) -> None:
    with trail.superuser() as database, trail.superuser() as obstacle:
        write_rows(database, 5)
        obstacle.execute("BEGIN")
        obstacle.execute(f"LOCK TABLE {locked} IN ACCESS EXCLUSIVE MODE")
        with ThreadPoolExecutor() as threads:
            sealer = threads.submit(seal, trail)

            def kill() -> bool | None:
                """Kill it where it stands: waiting inside audit_seal."""
                killed = database.execute(
                    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                       WHERE datname = current_database() AND usename = 'giovang_watcher'
                         AND wait_event_type = 'Lock' AND query LIKE '%audit_seal%'"""
                ).fetchone()
                return True if killed else None

            until(kill, what="a sealer that waits", pause_s=0.01)
            with pytest.raises(Exception, match="try again in a moment"):
                sealer.result()
        obstacle.execute("ROLLBACK")
        assert number(database, "SELECT max(seq) FROM audit_chain") == ROWS
    found = verify(trail)
    assert (found.intact, found.waiting) == (True, 5)
    assert seal(trail) == 5
    assert_gap_free(trail)


def test_a_step_is_bounded_and_the_next_goes_on(trail: LedgerDatabase) -> None:
    with trail.superuser() as database:
        write_rows(database, 10)
    nothing_under_way(trail)
    step: LiteralString = "SELECT linked, more FROM audit_seal(4)"
    with trail.connect("giovang_watcher") as watcher:
        steps = [watcher.execute(step).fetchone() for _ in range(8)]
    assert [done for done in steps if done and done[0]] == [(4, True), (4, True), (2, True)]
    assert steps[-1] == (0, False)
    assert_gap_free(trail)
    with trail.superuser() as database:
        assert number(database, "SELECT complete_id FROM audit_chain_head") == ROWS + 10


def test_rows_of_a_server_that_was_restored_elsewhere_go_on(trail: LedgerDatabase) -> None:
    """A dump keeps the head; the new server counts its database transactions from the start."""
    with trail.superuser() as database:
        database.execute("UPDATE audit_chain_head SET horizon_xact = '9000000000000'")
        write_rows(database, 3)
    assert seal(trail) == 3
    with trail.superuser() as database:
        assert number(database, "SELECT complete_id FROM audit_chain_head") == ROWS + 3


def test_sealing_comes_before_any_write_of_its_unit_of_work(sealed_trail: LedgerDatabase) -> None:
    with sealed_trail.connect("giovang_watcher") as database:
        database.execute("BEGIN")
        database.execute("SELECT audit_record('x', 'x', 'x', NULL)")
        with pytest.raises(pg.InvalidTransactionState):
            database.execute("SELECT audit_seal(10)")


def test_the_watcher_seals_though_the_chain_does_not_answer(
    trail: LedgerDatabase, tmp_path: Path
) -> None:
    with trail.superuser() as database:
        write_rows(database, 5)
    nobody = "http://127.0.0.1:9"
    watcher = Server(
        name="watcher",
        command=(sys.executable, "-m", "api.watcher"),
        folder=tmp_path,
        cwd=CHECKOUT,
        probe=lambda: True,
        env={
            "GIOVANG_API_WATCHER_DATABASE_URL": trail.url("giovang_watcher"),
            "GIOVANG_API_SOLANA_RPC_URL": nobody,
            "GIOVANG_API_COLLECTION_WALLET": "1" * 32,
            "GIOVANG_API_REDIS_URL": nobody,
            "GIOVANG_API_PUBLIC_URL": nobody,
        },
    )
    watcher.start()
    try:
        with trail.superuser() as database:

            def sealed_all() -> bool | None:
                seq = number(database, "SELECT seq FROM audit_chain_head")
                return True if seq == ROWS + 5 else None

            until(sealed_all, what="sealing by the watcher")
    finally:
        watcher.stop()
    assert verify(trail).intact


def test_a_sealer_waits_its_turn_and_survives_a_refusal(trail: LedgerDatabase) -> None:
    async def work(database: psycopg.Connection[Any]) -> list[int]:
        url = trail.url("giovang_watcher")
        async with Database(url, application_name="test", pool_size=1) as pool:
            patient = sealing.Sealer(pool, period_s=3600)
            first = await patient.seal_when_due()
            write_rows(database, 1)
            again = await patient.seal_when_due()
            # A link that somebody forged stands where the next one belongs.
            database.execute(
                """INSERT INTO audit_chain
                   SELECT seq + 1, 999, now(), row_digest, chain_digest FROM audit_chain
                   ORDER BY seq DESC LIMIT 1"""
            )
            return [first, again, await sealing.Sealer(pool).seal_when_due()]

    with trail.superuser() as database:
        write_rows(database, 1)
        assert asyncio.run(work(database)) == [1, 0, 0]
        assert number(database, "SELECT seq FROM audit_chain_head") == ROWS + 1
    found = verify(trail)
    assert found.first is not None
    assert found.first.flaw is Flaw.HEAD_CHANGED
