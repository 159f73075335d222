"""The audit trail under attack: rows altered, removed and slipped in behind the chain's back."""

import json
from datetime import UTC, datetime
from typing import LiteralString

import pytest
from psycopg import errors as pg

from api.audit.model import NO_LINK, Flaw
from tests.fixtures.audit import (
    ROWS,
    assert_gap_free,
    auditor,
    behind_the_back,
    head_digest,
    seal,
    verify,
    write_rows,
)
from tests.fixtures.ledgers import LedgerDatabase, ledger_of_its_own
from tests.fixtures.services import DatabaseServer

APPLICATION_ROLES = ("giovang_api", "giovang_operator", "giovang_watcher", "giovang_capture")

# Tables that no audit trigger watches, and why that loses nothing.
UNAUDITED = {
    "alembic_version": "the migrations' own mark",
    "audit_logs": "the trail itself",
    "audit_chain": "the trail's own chain",
    "audit_chain_head": "the trail's own chain",
    "status_transitions": "reference data, changed by migrations only",
    "idempotency_keys": "answers to requests whose effects are audited",
    "merchant_event_counters": "the number of a merchant's last event",
    "payment_events": "history itself, written by a trigger on audited tables",
    "merchant_events": "history itself, written by a trigger on audited tables",
    "ledger_accounts": "sums of postings, moved by a trigger only",
    "ledger_postings": "legs of an entry, which is audited; immutable",
    "chain_transfers": "copied from a public chain; what follows from one is audited",
    "chain_cursors": "how far the watcher has read a public chain",
    "chain_set_aside": "lines of a public chain to be read again; what follows is audited",
    "chain_strays": "history itself; the watcher audits each one it finds as the payment's",
    "chain_providers": "how the watcher's sources do at the moment",
    "capture_heartbeat": "capture's own pulse",
    "capture_backfill": "rows on their way into the log, told again; nothing is kept",
}


def test_a_sealed_trail_verifies(trail: LedgerDatabase) -> None:
    found = verify(trail)
    assert (found.intact, found.verified, found.waiting, found.archived) == (True, ROWS, 0, 0)
    assert (found.head_seq, found.head_digest) == (ROWS, head_digest(trail))
    with trail.superuser() as database:
        write_rows(database, 3)
        newest = database.execute(
            "SELECT event_time FROM audit_chain ORDER BY seq DESC LIMIT 1"
        ).fetchone()
    assert newest is not None
    later = verify(trail)
    assert (later.intact, later.verified, later.waiting) == (True, ROWS, 3)
    assert later.sealed_through == newest[0]
    assert seal(trail) == 3
    assert verify(trail).waiting == 0
    assert_gap_free(trail)


def test_an_empty_trail_verifies(ledger_cluster: DatabaseServer) -> None:
    with ledger_of_its_own(ledger_cluster) as empty:
        empty.migrate()
        assert seal(empty) == 0
        found = verify(empty, expected_head=NO_LINK)
        assert (found.intact, found.verified, found.head_digest) == (True, 0, NO_LINK.hex())


@pytest.mark.parametrize(
    ("tampering", "flaw", "log_id", "flaws"),
    [
        ("UPDATE audit_logs SET actor = 'nobody' WHERE id = 7", Flaw.ROW_CHANGED, 7, 1),
        ("UPDATE audit_logs SET after = after - 'name' WHERE id = 7", Flaw.ROW_CHANGED, 7, 1),
        ("UPDATE audit_logs SET before = '{}' WHERE id = 7", Flaw.ROW_CHANGED, 7, 1),
        ("UPDATE audit_logs SET merchant_id = NULL WHERE id IN (9, 30)", Flaw.ROW_CHANGED, 9, 2),
        ("UPDATE audit_logs SET request_id = '' WHERE id = 7", Flaw.ROW_CHANGED, 7, 1),
        # The same letters in all, moved from one column to the next.
        (
            "UPDATE audit_logs SET actor = actor || 'm', action = substr(action, 2) WHERE id = 7",
            Flaw.ROW_CHANGED,
            7,
            1,
        ),
        ("DELETE FROM audit_logs WHERE id = 7", Flaw.ROW_REMOVED, 7, 1),
        ("DELETE FROM audit_logs WHERE id >= 31", Flaw.ROW_REMOVED, 31, 10),
        (
            "UPDATE audit_logs SET event_time = event_time + interval '1 microsecond' WHERE id = 7",
            Flaw.ROW_REMOVED,
            7,
            2,
        ),
        (
            """INSERT INTO audit_logs (id, actor, action, subject_type, subject_id)
               OVERRIDING SYSTEM VALUE VALUES (0, 'admin', 'x', 'merchant', 'mer')""",
            Flaw.ROW_INSERTED,
            0,
            1,
        ),
        (
            """INSERT INTO audit_logs (id, actor, action, subject_type, subject_id)
               OVERRIDING SYSTEM VALUE VALUES (-5, 'admin', 'x', 'merchant', 'mer')""",
            Flaw.ROW_INSERTED,
            -5,
            1,
        ),
        (
            """INSERT INTO audit_logs (id, actor, action, subject_type, subject_id)
               OVERRIDING SYSTEM VALUE VALUES (9000, 'admin', 'x', 'merchant', 'mer')""",
            Flaw.ROW_INSERTED,
            9000,
            1,
        ),
        (
            """INSERT INTO audit_logs (id, actor, action, subject_type, subject_id)
               OVERRIDING SYSTEM VALUE SELECT 7, actor, action, subject_type, subject_id
               FROM audit_logs WHERE id = 7""",
            Flaw.ROW_INSERTED,
            7,
            1,
        ),
        (
            "UPDATE audit_chain SET row_digest = sha256('x') WHERE seq = 7",
            Flaw.LINK_CHANGED,
            7,
            2,
        ),
        (
            "UPDATE audit_chain SET chain_digest = sha256('x') WHERE seq = 7",
            Flaw.LINK_CHANGED,
            7,
            2,
        ),
        ("DELETE FROM audit_chain WHERE seq = 7", Flaw.ROW_INSERTED, 7, 2),
        ("DELETE FROM audit_chain WHERE seq > 37", Flaw.ROW_INSERTED, 38, 6),
        ("DELETE FROM audit_chain", Flaw.ROW_INSERTED, 1, 80),
        (
            "UPDATE audit_chain_head SET chain_digest = sha256('x')",
            Flaw.HEAD_CHANGED,
            None,
            1,
        ),
        (
            """WITH gone AS (DELETE FROM audit_logs WHERE id = 7)
               DELETE FROM audit_chain WHERE seq = 7""",
            Flaw.LINK_REMOVED,
            None,
            1,
        ),
    ],
)
def test_tampering_is_found_and_named(
    trail: LedgerDatabase,
    tampering: LiteralString,
    flaw: Flaw,
    log_id: int | None,
    flaws: int,
) -> None:
    with behind_the_back(trail) as database:
        assert database.execute(tampering).rowcount > 0
    found = verify(trail)
    assert found.first is not None
    assert (found.first.flaw, found.first.log_id) == (flaw, log_id)
    assert (found.intact, found.flaws) == (False, flaws)


REWRITE = """
    DO $$
    DECLARE
        previous bytea := sha256('');
        link record;
    BEGIN
        FOR link IN SELECT * FROM audit_chain ORDER BY seq LOOP
            UPDATE audit_chain
            SET row_digest = audit_row_digest(log),
                chain_digest = sha256(previous || audit_row_digest(log))
            FROM audit_logs AS log
            WHERE seq = link.seq AND log.id = log_id
            RETURNING chain_digest INTO previous;
        END LOOP;
        UPDATE audit_chain_head SET chain_digest = previous;
    END
    $$
"""


def test_a_chain_written_anew_does_not_have_the_head_that_was_noted(trail: LedgerDatabase) -> None:
    noted = head_digest(trail)
    with trail.superuser() as database:
        write_rows(database, 5)
    seal(trail)
    found = verify(trail, expected_head=bytes.fromhex(noted))
    assert (found.intact, found.expected_head_seq, found.head_seq) == (True, ROWS, ROWS + 5)
    with behind_the_back(trail) as database:
        database.execute("UPDATE audit_logs SET actor = 'nobody' WHERE id = 7")
        database.execute(REWRITE)
    assert verify(trail).intact
    found = verify(trail, expected_head=bytes.fromhex(noted))
    assert found.first is not None
    assert (found.intact, found.first.flaw) == (False, Flaw.HEAD_UNKNOWN)


def test_the_command_says_what_it_found(trail: LedgerDatabase) -> None:
    noted = head_digest(trail)
    answer = auditor(trail, "--expect-head", noted)
    assert answer.returncode == 0, answer.stderr
    assert "intact" in answer.stdout
    assert noted in answer.stdout
    with behind_the_back(trail) as database:
        database.execute("UPDATE audit_logs SET actor = 'nobody' WHERE id IN (7, 20, 21)")
    answer = auditor(trail)
    assert answer.returncode == 1
    assert "audit row 7 of 20" in answer.stdout
    assert "was changed after it was sealed" in answer.stdout
    assert "and 2 more" in answer.stdout
    answer = auditor(trail, "--json", "--expect-head", "ab" * 32)
    assert answer.returncode == 1
    told = json.loads(answer.stdout)
    assert (told["intact"], told["verified_rows"], told["flaws"]) == (False, ROWS - 3, 4)
    assert told["flaws_by_kind"] == {"row_changed": 3, "head_unknown": 1}
    assert (told["first"]["flaw"], told["first"]["log_id"]) == ("row_changed", 7)
    assert told["head"] == {"seq": ROWS, "digest": noted}


def test_the_command_says_why_it_could_not_verify(ledger_cluster: DatabaseServer) -> None:
    with ledger_of_its_own(ledger_cluster) as empty:
        for arguments in (("--since", "yesterday"), ("--expect-head", "abc"), ("--nothing",)):
            answer = auditor(empty, *arguments)
            assert (answer.returncode, answer.stdout) == (2, "")
        answer = auditor(empty)
        assert answer.returncode == 2
        assert answer.stderr.startswith("audit: not verified: the database has no audit chain yet")
    answer = auditor(empty)
    assert (answer.returncode, answer.stderr.count("\n")) == (2, 1)


def test_since_begins_in_the_middle(trail: LedgerDatabase) -> None:
    with trail.superuser() as database:
        row = database.execute("SELECT event_time FROM audit_logs WHERE id = 31").fetchone()
    assert row is not None
    found = verify(trail, since=row[0])
    assert (found.intact, found.verified, found.head_seq) == (True, ROWS - 30, ROWS)
    with behind_the_back(trail) as database:
        database.execute("UPDATE audit_logs SET actor = 'nobody' WHERE id IN (7, 35)")
    found = verify(trail, since=row[0])
    assert found.first is not None
    assert (found.flaws, found.first.log_id) == (1, 35)
    assert verify(trail, since=datetime(2100, 1, 1, tzinfo=UTC)).head_seq == ROWS


def test_a_year_in_the_archive_keeps_its_links(trail: LedgerDatabase) -> None:
    with behind_the_back(trail) as database:
        for year in (2022, 2023):
            database.execute(
                f"""CREATE TABLE audit_logs_{year} PARTITION OF audit_logs
                    FOR VALUES FROM ('{year}-01-01Z') TO ('{year + 1}-01-01Z')"""
            )
            database.execute(
                """INSERT INTO audit_logs (event_time, actor, action, subject_type, subject_id)
                   SELECT make_date(%s, 3, n), 'admin', 'x', 'merchant', 'mer'
                   FROM generate_series(1, 4) AS n""",
                (year,),
            )
    assert seal(trail) == 8
    assert verify(trail).verified == ROWS + 8
    with trail.superuser() as database:
        database.execute("ALTER TABLE audit_logs DETACH PARTITION audit_logs_2022")
        found = verify(trail)
        assert (found.intact, found.verified, found.archived) == (True, ROWS + 4, 4)
        # This year's rows are in no archive yet.
        year = datetime.now(UTC).year
        database.execute(f"ALTER TABLE audit_logs DETACH PARTITION audit_logs_{year}")
        found = verify(trail)
        assert found.first is not None
        assert (found.first.flaw, found.flaws) == (Flaw.ROW_REMOVED, ROWS)
        # And an archive's rows cannot go one by one.
        database.execute("SET session_replication_role = replica")
        database.execute("DELETE FROM audit_logs_2023 WHERE event_time > '2023-03-02Z'")
        found = verify(trail)
        assert (found.flaws, found.archived) == (ROWS + 2, 4)


@pytest.mark.parametrize("role", APPLICATION_ROLES)
@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO audit_logs (actor, action, subject_type, subject_id) VALUES ('a','b','c','d')",
        "UPDATE audit_logs SET actor = 'nobody'",
        "DELETE FROM audit_logs",
        "TRUNCATE audit_logs",
        "DELETE FROM audit_logs_2026",
        "DROP TABLE audit_logs_2024",
        "ALTER TABLE audit_logs DETACH PARTITION audit_logs_2024",
        "ALTER TABLE audit_logs DISABLE TRIGGER ALL",
        "INSERT INTO audit_chain VALUES (99999, 99999, now(), sha256('a'), sha256('b'))",
        "UPDATE audit_chain SET chain_digest = sha256('x')",
        "DELETE FROM audit_chain",
        "TRUNCATE audit_chain",
        "UPDATE audit_chain_head SET complete_id = 0",
        "DELETE FROM audit_chain_head",
        "SELECT setval('audit_logs_id_seq', 1)",
        "SELECT audit_link(0, 100, 10)",
        "DROP FUNCTION audit_write() CASCADE",
    ],
)
def test_no_role_may_touch_the_trail(
    sealed_trail: LedgerDatabase, role: str, statement: LiteralString
) -> None:
    with sealed_trail.connect(role) as database, pytest.raises(pg.InsufficientPrivilege):
        database.execute(statement)


@pytest.mark.parametrize("role", ["giovang_api", "giovang_operator", "giovang_capture"])
def test_only_the_watcher_seals(sealed_trail: LedgerDatabase, role: str) -> None:
    with sealed_trail.connect(role) as database, pytest.raises(pg.InsufficientPrivilege):
        database.execute("SELECT audit_seal(10)")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_logs SET actor = 'nobody'",
        "DELETE FROM audit_logs",
        "TRUNCATE audit_logs",
        "TRUNCATE audit_logs_2026",
        "UPDATE audit_chain SET chain_digest = sha256('x')",
        "DELETE FROM audit_chain",
        "TRUNCATE audit_chain",
        "DELETE FROM audit_chain_head",
    ],
)
def test_even_the_owner_is_refused(sealed_trail: LedgerDatabase, statement: LiteralString) -> None:
    with (
        sealed_trail.connect("giovang_owner") as database,
        pytest.raises(pg.RestrictViolation, match="history"),
    ):
        database.execute(statement)


def test_who_did_it_is_the_unit_of_works_to_say(trail: LedgerDatabase) -> None:
    with trail.connect("giovang_api") as database:
        database.execute("BEGIN")
        database.execute(
            """SELECT set_config('giovang.actor', 'key_1', true),
                      set_config('giovang.merchant_id', 'mer_1', true),
                      set_config('giovang.request_id', 'req_2', true)"""
        )
        database.execute("""SELECT audit_record('a.b', 'a', 'id', '{"c": 1}')""")
        database.execute("COMMIT")
        database.execute("SELECT audit_record('a.b', 'a', 'unsigned', NULL)")
    with trail.superuser() as database:
        rows = database.execute(
            """SELECT actor, merchant_id, request_id, after FROM audit_logs
               WHERE action = 'a.b' ORDER BY id"""
        ).fetchall()
    assert rows == [
        ("key_1", "mer_1", "req_2", {"c": 1}),
        ("role:giovang_api", None, None, None),
    ]


def test_partitions_are_made_ahead(trail: LedgerDatabase) -> None:
    year = datetime.now(UTC).year
    insert: LiteralString = """
        INSERT INTO audit_logs (event_time, actor, action, subject_type, subject_id)
        VALUES (make_timestamptz(%s, 1, 1, 0, 0, 0, 'UTC'), 'a', 'b', 'c', 'd')
        RETURNING tableoid::regclass::text
    """
    with trail.superuser() as database:
        for ahead in (0, 1, 2):
            placed = database.execute(insert, (year + ahead,)).fetchone()
            assert placed == (f"audit_logs_{year + ahead}",)
        with pytest.raises(pg.CheckViolation, match="no partition"):
            database.execute(insert, (year + 3,))
        # A watcher that runs when the year turns makes the next one.
        with trail.connect("giovang_watcher") as watcher:
            assert watcher.execute("SELECT audit_make_partitions()").fetchone() == (0,)
            assert watcher.execute("SELECT audit_make_partitions(3)").fetchone() == (1,)
        assert database.execute(insert, (year + 3,)).fetchone() == (f"audit_logs_{year + 3}",)
        with pytest.raises(pg.RestrictViolation):
            database.execute(f"TRUNCATE audit_logs_{year + 3}")
        closed = database.execute(
            """SELECT count(*) FILTER (WHERE NOT (relrowsecurity AND relforcerowsecurity))
               FROM pg_class JOIN pg_inherits ON inhrelid = oid
               WHERE inhparent = 'audit_logs'::regclass"""
        ).fetchone()
    assert closed == (0,)


def test_every_table_is_audited_or_says_why_not(sealed_trail: LedgerDatabase) -> None:
    with sealed_trail.superuser() as database:
        tables = dict(
            database.execute(
                """SELECT c.relname, (
                       SELECT coalesce(bit_or(t.tgtype), 0) FROM pg_trigger AS t
                       JOIN pg_proc AS p ON p.oid = t.tgfoid
                       WHERE t.tgrelid = c.oid AND p.proname = 'audit_write'
                         AND t.tgenabled = 'O' AND t.tgqual IS NULL)::int
                   FROM pg_class AS c
                   WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p')
                     AND NOT c.relispartition"""
            ).fetchall()
        )
    # pg_trigger.tgtype: a row's (1) insert (4), delete (8) and update (16).
    every, insert, update = 1 | 4 | 8 | 16, 1 | 4, 16
    missing = {name: every & ~kind for name, kind in tables.items() if every & ~kind}
    assert missing == {
        **dict.fromkeys(set(UNAUDITED) & set(tables), every),
        "ledger_entries": every & ~insert,  # refuses to be changed or deleted
        "ledger_holds": every & ~insert & ~update,  # refuses to be deleted
        "sessions": every & ~insert & ~update,  # only what has expired can be deleted
    }
    assert {"payments", "refunds", "payouts", "merchants", "api_keys"} <= set(tables) - set(missing)
