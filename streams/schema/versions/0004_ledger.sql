-- The ledger in the warehouse: entries with their postings, payouts, and what was deleted.
--
-- Money is an exact integer of minor units beside its asset, as the ledger has it. Entries and
-- postings never change, so what a posting is (entry and leg) makes it one row, whichever event
-- tells it; a payout has one row for each state it reached and each revision of its terms.

-- One row for each entry. merchant_id is NULL for an entry of the platform's own.
CREATE TABLE raw.ledger_entries (
    time          timestamptz NOT NULL,
    event_id      text        NOT NULL,
    entry_id      text        NOT NULL,
    merchant_id   text,
    kind          text        NOT NULL,
    payment_id    text,
    payout_id     text,
    refund_id     text,
    reverses_id   text,
    position      bigint      NOT NULL,
    ordinal       bigint      NOT NULL,
    committed_at  timestamptz NOT NULL,
    recorded_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ledger_entries_event_once UNIQUE (event_id, time),
    CONSTRAINT ledger_entries_entry_once UNIQUE (entry_id, time)
);
SELECT create_hypertable(
    'raw.ledger_entries', 'time',
    chunk_time_interval => INTERVAL '7 days', create_default_indexes => FALSE
);
CREATE INDEX ledger_entries_merchant_time ON raw.ledger_entries (merchant_id, time DESC);
CREATE INDEX ledger_entries_recorded_at ON raw.ledger_entries USING brin (recorded_at);

-- One row for each leg of an entry; debits are positive. Some six times as many as entries, so a
-- chunk is a day. They arrive in order, so a BRIN index finds arrivals at next to no cost a row.
CREATE TABLE raw.ledger_postings (
    time          timestamptz NOT NULL,
    event_id      text        NOT NULL,
    entry_id      text        NOT NULL,
    seq           integer     NOT NULL,
    merchant_id   text,
    account_id    text        NOT NULL,
    asset         text        NOT NULL,
    amount_minor  bigint      NOT NULL,
    position      bigint      NOT NULL,
    ordinal       bigint      NOT NULL,
    committed_at  timestamptz NOT NULL,
    recorded_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT ledger_postings_event_once UNIQUE (event_id, time),
    CONSTRAINT ledger_postings_leg_once UNIQUE (entry_id, seq, time)
);
SELECT create_hypertable(
    'raw.ledger_postings', 'time',
    chunk_time_interval => INTERVAL '1 day', create_default_indexes => FALSE
);
CREATE INDEX ledger_postings_merchant_time ON raw.ledger_postings (merchant_id, time DESC);
CREATE INDEX ledger_postings_recorded_at ON raw.ledger_postings USING brin (recorded_at);

-- One row for each state a payout reached and each revision of its terms, at the moment of the
-- state. mode is NULL in what was told before there were two sets of books.
CREATE TABLE raw.payouts (
    time          timestamptz NOT NULL,
    event_id      text        NOT NULL,
    payout_id     text        NOT NULL,
    merchant_id   text        NOT NULL,
    mode          text,
    status        text        NOT NULL,
    revision      integer     NOT NULL,
    asset         text        NOT NULL,
    amount_minor  bigint      NOT NULL,
    position      bigint      NOT NULL,
    ordinal       bigint      NOT NULL,
    committed_at  timestamptz NOT NULL,
    recorded_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT payouts_event_once UNIQUE (event_id, time),
    CONSTRAINT payouts_state_once UNIQUE (payout_id, status, revision, time)
);
SELECT create_hypertable(
    'raw.payouts', 'time',
    chunk_time_interval => INTERVAL '30 days', create_default_indexes => FALSE
);
CREATE INDEX payouts_merchant_time ON raw.payouts (merchant_id, time DESC);
CREATE INDEX payouts_recorded_at ON raw.payouts USING brin (recorded_at);

-- One row for each row that the ledger lost, which the product itself never does to any of these.
-- What was known of it stays in the tables above: a hypertable tells history.
CREATE TABLE raw.deletions (
    event_id      text PRIMARY KEY,
    table_name    text        NOT NULL,
    row_id        text        NOT NULL,
    merchant_id   text,
    position      bigint      NOT NULL,
    ordinal       bigint      NOT NULL,
    committed_at  timestamptz NOT NULL,
    recorded_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX deletions_row ON raw.deletions (table_name, row_id);

GRANT SELECT, INSERT
    ON raw.ledger_entries, raw.ledger_postings, raw.payouts, raw.deletions TO giovang_streams;

-- Row-level security, forced, for every table here that has a merchant: whoever is granted one of
-- them by mistake sees no row. It does not reach chunks, so the grants stay as tight as they are.
-- Not on raw.payment_analytics: a continuous aggregate refuses a hypertable that has it.
DO $$
DECLARE
    secured regclass;
BEGIN
    FOREACH secured IN ARRAY ARRAY[
        'raw.ledger_entries', 'raw.ledger_postings', 'raw.payouts', 'raw.deletions',
        'raw.refunds', 'raw.merchants']::regclass[]
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', secured);
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', secured);
        EXECUTE format(
            'CREATE POLICY pipeline_writes_all ON %s TO giovang_streams, CURRENT_USER '
            'USING (true) WITH CHECK (true)', secured);
        EXECUTE format(
            'CREATE POLICY modeller_reads_all ON %s FOR SELECT TO giovang_dbt USING (true)', secured);
    END LOOP;
END
$$;
