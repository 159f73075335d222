"""Schema changes under capture: what readers need stays or capture stops; the rest flows through.

A ledger database of the module's own, so that its tables may be changed, with the real engine on
it; and `python -m ingest.check` on scratch copies of it, as a migration is checked before it runs.
"""

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import jsonschema  # type: ignore[import-untyped]
import pytest
from psycopg import sql

import ingest.contract
from infra.stack.process import base_environment
from ingest.contract import HEADER_ENDS
from tests.fixtures.capture import CaptureRoom, Stored, capture_room
from tests.fixtures.ledger_writers import ENTRY, PAYMENT
from tests.fixtures.ledgers import LedgerDatabase, ledger_of_its_own
from tests.fixtures.services import CHECKOUT, BrokerServer, DatabaseServer

SCHEMA = json.loads(
    Path(ingest.contract.__file__).with_name("envelope.schema.json").read_text(encoding="utf-8")
)
PAYER = "5dAn7tcy9XPrJQxVgHqW"
# What the next release's `ingest/columns.py` would say, given to the process that starts.
NEXT_RELEASE = "import ingest.columns\ndel ingest.columns.NEEDED['payments']['payer_country']\n"


class Elsewhere:
    """The cluster, seen as if its ledger were another of its databases."""

    def __init__(self, ledger: LedgerDatabase) -> None:
        self._ledger = ledger

    def url(self, role: str) -> str:
        return self._ledger.url(role)

    def superuser_url(self, _: str) -> str:
        return self._ledger.superuser_url


@pytest.fixture(scope="module")
def migrated(ledger_cluster: DatabaseServer) -> Iterator[LedgerDatabase]:
    with ledger_of_its_own(ledger_cluster) as made:
        made.migrate()
        yield made


@pytest.fixture
def ledger(ledger_cluster: DatabaseServer, migrated: LedgerDatabase) -> Iterator[LedgerDatabase]:
    with ledger_of_its_own(ledger_cluster, copied_from=migrated) as copied:
        yield copied


@pytest.fixture
def room(ledger: LedgerDatabase, broker: BrokerServer, tmp_path: Path) -> Iterator[CaptureRoom]:
    with capture_room(cast("DatabaseServer", Elsewhere(ledger)), broker, tmp_path) as made:
        yield made


def rows_of(messages: list[Stored], tag: str) -> list[dict[str, Any]]:
    return [
        stored.event.row
        for stored in messages
        if str(stored.event.row.get("reference", "")).startswith(tag)
    ]


def test_columns_come_and_go_and_one_that_is_needed_stops_capture(
    room: CaptureRoom, tmp_path: Path
) -> None:
    room.engine.start()
    with room.connect(autocommit=True) as writer:
        writer.execute(PAYMENT, {"prefix": room.tag + "old", "count": 3})
        writer.execute(
            "ALTER TABLE payments ADD COLUMN tier text NOT NULL DEFAULT 'silver', "
            "ADD COLUMN notes text[], ADD COLUMN scan bytea, ADD COLUMN counts bigint[], "
            "ADD COLUMN files bytea[], ADD COLUMN seats int"
        )
        _large_values_of_every_kind(writer, room.tag)
        writer.execute(
            "UPDATE payments SET status = 'pending' WHERE reference LIKE %s || '%%'",
            (room.tag + "old",),
        )
        writer.execute("ALTER TABLE payments DROP COLUMN scan, DROP COLUMN order_id CASCADE")
        writer.execute(PAYMENT, {"prefix": room.tag + "new", "count": 2})
        writer.execute(ENTRY, {"prefix": room.tag + "entry"})
    before = room.drain()
    _is_as_its_schema_says(before)
    old = [row for row in rows_of(before, room.tag + "old") if row["status"] == "pending"]
    large = [row for row in rows_of(before, room.tag + "old") if row.get("notes")]
    assert len(old) == 3
    for name in ("metadata", "notes", "scan", "counts", "files"):
        assert len(str(old[0][name])) > 4000, "the value was not large enough to be left out"
        assert [row[name] for row in old] == [row[name] for row in large[:3]]
    assert b"giovang_unchanged" not in b"".join(stored.payload for stored in before)
    assert [row["tier"] for row in rows_of(before, room.tag + "new")] == ["silver"] * 2
    assert not {"scan", "order_id"} & rows_of(before, room.tag + "new")[0].keys()

    with room.connect(autocommit=True) as writer:
        writer.execute("ALTER TABLE payments DROP COLUMN payer_country CASCADE")
        payment = PAYMENT.replace("payer_country, ", "").replace("'VN', ", "")
        writer.execute(payment, {"prefix": room.tag + "stopped", "count": 2})
        writer.execute(ENTRY, {"prefix": room.tag + "behind"})
    assert room.engine.wait_for_exit() == 1
    assert (
        "payments.payer_country is missing, which breaks raw.payment_analytics.payer_country"
        in (room.engine.reasons()[-1])
    )
    held = room.ledger.messages()
    assert not rows_of(held, room.tag + "stopped")
    assert held[: len(before)] == before

    # The release whose readers do without it goes on where this one stopped.
    (tmp_path / "sitecustomize.py").write_text(NEXT_RELEASE)
    room.engine.env["PYTHONPATH"] = f"{tmp_path}:{CHECKOUT}"
    room.engine.start()
    after = room.drain()
    assert len(rows_of(after, room.tag + "stopped")) == 2
    assert [stored.subject for stored in after].count("ledger.posting.recorded") == 4
    _is_as_its_schema_says(after)


def _large_values_of_every_kind(writer: Any, tag: str) -> None:
    noise = random.Random(20260131).randbytes(4000)
    writer.execute(
        "UPDATE payments SET metadata = jsonb_build_object('noise', %(text)s::text), "
        "notes = ARRAY[%(text)s::text], scan = %(raw)s, files = ARRAY[%(raw)s::bytea], "
        "counts = (SELECT array_agg((random() * 1e15)::bigint) FROM generate_series(1, 900)) "
        "WHERE reference LIKE %(prefix)s || '%%'",
        {"text": noise.hex(), "raw": noise, "prefix": tag + "old"},
    )


def _is_as_its_schema_says(messages: list[Stored]) -> None:
    """Every message fits the JSON Schema, and each database transaction has one end, its last."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    for stored in messages:
        validator.validate(json.loads(stored.payload))
    for _, group in groupby(messages, key=lambda stored: stored.event.position):
        whole = list(group)
        assert [stored.event.ends for stored in whole] == [False] * (len(whole) - 1) + [True]
        assert [HEADER_ENDS in stored.headers for stored in whole] == [
            stored.event.ends for stored in whole
        ]


def test_masked_columns_never_leave_the_process(room: CaptureRoom) -> None:
    room.engine.env |= {
        "GIOVANG_INGEST_MASK": json.dumps(
            {"payments.payer_address": "hash", "payments.metadata": "remove"}
        ),
        "GIOVANG_INGEST_MASK_KEY": "6b" * 32,
    }
    room.engine.start()
    with room.connect(autocommit=True) as writer:
        writer.execute(PAYMENT, {"prefix": room.tag, "count": 2})
        ours = {"payer": PAYER, "prefix": room.tag + "%"}
        writer.execute(
            "UPDATE payments SET payer_address = %(payer)s, "
            "metadata = jsonb_build_object('mail', repeat('lan@example.vn ', 900)) "
            "WHERE reference LIKE %(prefix)s",
            ours,
        )
        writer.execute("UPDATE payments SET fee_minor = 7 WHERE reference LIKE %(prefix)s", ours)
        # A row told again, by hand: what a backfill does for a whole table.
        writer.execute(
            "INSERT INTO capture_backfill (run, table_name, operation, image) "
            "SELECT 7, 'payments', 'snapshot', (to_jsonb(p) || jsonb_build_object('amount_minor', "
            "amount_minor::text, 'settled_minor', settled_minor::text, 'fee_minor', "
            "fee_minor::text, 'received_minor', received_minor::text, 'asset_amount_minor', "
            "asset_amount_minor::text, 'metadata', metadata::text, 'created_at', m, 'expires_at', "
            "m, 'status_at', m, 'updated_at', m))::text "
            "FROM payments p, (SELECT '2026-01-31T17:30:00.000000Z' AS m) AS moment "
            "WHERE reference LIKE %(prefix)s",
            ours,
        )
        writer.execute("DELETE FROM payments WHERE reference LIKE %(prefix)s", ours)
    messages = room.drain()
    _is_as_its_schema_says(messages)
    told = b"".join(stored.payload for stored in messages)
    assert PAYER.encode() not in told
    assert b"lan@" not in told
    # As `printf 5dAn7tcy9XPrJQxVgHqW | openssl dgst -sha256 -mac HMAC -macopt hexkey:6b6b…` says.
    hashed = "masked-e6367ae45432bd259673cccbee653f018fe36e323de443727edb74eabcdcf67f"
    ours_told = [s.event for s in messages if s.event.table == "payments"]
    assert [event.operation.value for event in ours_told] == [
        operation
        for operation in ("insert", "update", "update", "snapshot", "delete")
        for _ in "12"
    ]
    for event in ours_told[2:]:
        assert event.row["payer_address"] == hashed
        assert event.row["metadata"] is None
    assert {event.before["payer_address"] for event in ours_told[4:6] if event.before} == {hashed}
    assert [event.backfill for event in ours_told[6:8]] == [7, 7]

    room.engine.stop()
    room.engine.env["GIOVANG_INGEST_MASK"] = '{"payments.amount_minor": "remove"}'
    room.engine.start(ready=False)
    assert room.engine.wait_for_exit() == 1
    assert "cannot remove payments.amount_minor" in room.engine.reasons()[-1]


def check(url: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m ingest.check`."""
    return subprocess.run(
        [sys.executable, "-m", "ingest.check", "--database-url", url],
        cwd=CHECKOUT,
        env=base_environment(CHECKOUT),
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_the_checkouts_migrations_publish_what_readers_need(migrated: LedgerDatabase) -> None:
    found = check(migrated.url("giovang_capture"))
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("every column that readers need is published")


PUBLICATION = "ALTER PUBLICATION payment_gateway_publication"


@pytest.mark.parametrize(
    ("migration", "told"),
    [
        (
            "ALTER TABLE refunds DROP COLUMN source CASCADE",
            "refunds.source is missing, which breaks raw.refunds.amount_vnd",
        ),
        (
            "ALTER TABLE payments RENAME COLUMN payer_address TO wallet",
            "payments.payer_address is missing, which breaks raw.payment_analytics.payer_address",
        ),
        (
            "ALTER TABLE merchants ALTER COLUMN timezone TYPE integer USING 7",
            "merchants.timezone is integer where text is needed",
        ),
        ("ALTER TABLE merchants REPLICA IDENTITY DEFAULT", "merchants lacks REPLICA IDENTITY FULL"),
        (f"{PUBLICATION} DROP TABLE refunds", "refunds is not published, which raw.refunds, "),
        (
            f"{PUBLICATION} SET TABLE merchants (id), payments, refunds",
            "merchants.name is missing, which breaks raw.merchants.name",
        ),
        (f"{PUBLICATION} SET TABLE payments WHERE (mode = 'live')", "leaves out rows of payments"),
        (f"{PUBLICATION} SET (publish = 'insert')", "leaves out insertions, updates or deletions"),
        ("DROP PUBLICATION payment_gateway_publication", "is missing: run the migrations first"),
    ],
)
def test_a_migration_that_breaks_a_reader_is_named(
    ledger: LedgerDatabase, migration: str, told: str
) -> None:
    with ledger.superuser() as database:
        database.execute(sql.SQL(cast("Any", migration)))
    found = check(ledger.url("giovang_capture"))
    assert found.returncode == 1
    assert any(told in line for line in found.stdout.splitlines())
    assert found.stderr == ""


def test_a_database_that_does_not_answer_is_no_answer(migrated: LedgerDatabase) -> None:
    found = check(migrated.superuser_url.replace(migrated.name, "nowhere"))
    assert (found.returncode, found.stdout) == (2, "")
    assert "cannot tell:" in found.stderr
