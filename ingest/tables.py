"""The tables in schema `capture`: what capture remembers in the ledger database, and nowhere else.

The migrations make the schema and let the capture role build in it; provisioning makes the tables,
each as that role, and making them again changes nothing. A missing schema raises
`ProvisionRefused`; a table that a later version widens is widened here, never made anew.
"""

from typing import Final, LiteralString

from psycopg import Connection, sql
from psycopg.rows import TupleRow

from ingest.errors import ProvisionRefused
from ingest.settings import IngestSettings

SCHEMA: Final = "capture"
ORIGIN_TABLE: Final = "slot_origin"
GAP_TABLE: Final = "gap"
PROCESS_TABLE: Final = "process"

# The columns and their order are those that Debezium's JDBC offset store writes.
_OFFSET: Final = """
    CREATE TABLE IF NOT EXISTS {} (
        id                text NOT NULL,
        offset_key        text,
        offset_val        text,
        record_insert_ts  timestamp NOT NULL,
        record_insert_seq integer NOT NULL
    )
"""
_OFFSET_TRIGGER: Final = """
    CREATE OR REPLACE TRIGGER never_goes_back BEFORE INSERT ON {}
    FOR EACH ROW EXECUTE FUNCTION capture.offset_never_goes_back({})
"""
# Positions are bytes of log. What capture was never told lies after `after`, up to `until`; NULL is
# "from the beginning" and "not known".
_STATED: Final[tuple[LiteralString, ...]] = (
    """
    CREATE TABLE IF NOT EXISTS capture.slot_origin (
        slot    text PRIMARY KEY,
        began   bigint NOT NULL,
        made_at timestamptz NOT NULL DEFAULT clock_timestamp()
    )
    """,
    "ALTER TABLE capture.slot_origin ADD COLUMN IF NOT EXISTS furthest text",
    # A capture process that was frozen, or whose last statement PostgreSQL carries out late, stores
    # the offset it had, by a connection it opens anew. Both offsets are true, and the further one
    # stays: a lower one would leave the slot ahead of it, from where nobody may resume. To refuse
    # it would not do, since Debezium tries again without end. The slot's row is locked first, so
    # two writers come one after the other; the second could not see, and so not delete, what the
    # first one stored.
    """
    CREATE OR REPLACE FUNCTION capture.offset_never_goes_back() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog AS $$
    DECLARE
        kept text;
    BEGIN
        SELECT furthest INTO kept FROM capture.slot_origin WHERE slot = TG_ARGV[0] FOR UPDATE;
        EXECUTE format('DELETE FROM %I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME);
        IF (NEW.offset_val::jsonb ->> 'lsn_commit')::bigint
            < (kept::jsonb ->> 'lsn_commit')::bigint
        THEN
            NEW.offset_val := kept;
        ELSE
            UPDATE capture.slot_origin SET furthest = NEW.offset_val WHERE slot = TG_ARGV[0];
        END IF;
        RETURN NEW;
    END
    $$
    """,
    """
    CREATE TABLE IF NOT EXISTS capture.gap (
        id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        slot      text NOT NULL,
        after     bigint,
        until     bigint,
        found_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
        reason    text NOT NULL,
        closed_at timestamptz,
        closed_by text,
        CHECK ((closed_at IS NULL) = (closed_by IS NULL))
    )
    """,
    # `next_key` is the key up to which rows are told, `after_gap` the last gap known when it began.
    """
    CREATE TABLE IF NOT EXISTS capture.backfill_run (
        id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        slot        text NOT NULL,
        table_name  text NOT NULL,
        range_from  text,
        range_to    text,
        merchant_id text,
        deletes     boolean NOT NULL,
        after_gap   bigint NOT NULL,
        state       text NOT NULL DEFAULT 'open'
                    CHECK (state IN ('open', 'paused', 'cancelled', 'finished')),
        phase       text NOT NULL DEFAULT 'rows' CHECK (phase IN ('rows', 'gone', 'told')),
        next_key    text[],
        rows        bigint NOT NULL DEFAULT 0,
        gone        bigint NOT NULL DEFAULT 0,
        bytes       bigint NOT NULL DEFAULT 0,
        estimate    bigint NOT NULL,
        started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
        updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
        finished_at timestamptz,
        reason      text,
        CHECK ((finished_at IS NULL) = (state IN ('open', 'paused')))
    )
    """,
    # Unlogged: a beat a second is worth nothing after a crash of the server, and would be the only
    # thing in an idle shop's log.
    """
    CREATE UNLOGGED TABLE IF NOT EXISTS capture.process (
        instance       text PRIMARY KEY,
        slot           text NOT NULL,
        role           text NOT NULL CHECK (role IN ('active', 'standby')),
        host           text NOT NULL,
        pid            integer NOT NULL,
        backend        integer NOT NULL,
        version        text NOT NULL,
        started_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
        beat_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
        ended_at       timestamptz,
        position       bigint,
        committed_at   timestamptz,
        events         bigint NOT NULL DEFAULT 0,
        passed_over    bigint NOT NULL DEFAULT 0,
        rate_per_s     double precision NOT NULL DEFAULT 0,
        lag_bytes      bigint,
        lag_ms         bigint,
        retained_bytes bigint,
        level          text,
        forecast_s     bigint,
        last_error     text,
        last_error_at  timestamptz
    ) WITH (fillfactor = 50)
    """,
)


def make_tables(database: Connection[TupleRow], settings: IngestSettings) -> None:
    """Make the tables that are not there yet, all or none."""
    if not database.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (SCHEMA,)).fetchone():
        raise ProvisionRefused(f"schema {SCHEMA} is missing: run `python -m api.migrations` first")
    offset_table = sql.Identifier(SCHEMA, settings.offset_table)
    with database.transaction():
        database.execute(sql.SQL(_OFFSET).format(offset_table))
        for statement in _STATED:
            database.execute(statement)
        database.execute(sql.SQL(_OFFSET_TRIGGER).format(offset_table, sql.Literal(settings.slot)))
