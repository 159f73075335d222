-- What capture reads from the log: the publication, and a row that beats so that an idle shop is
-- still known to be complete up to now.

CREATE TABLE capture_heartbeat (
    id       int PRIMARY KEY CHECK (id = 1),
    beat_at  timestamptz NOT NULL,
    sequence bigint NOT NULL
);
INSERT INTO capture_heartbeat (id, beat_at, sequence) VALUES (1, now(), 0);
GRANT SELECT, UPDATE (beat_at, sequence) ON capture_heartbeat TO giovang_capture;

CREATE PUBLICATION payment_gateway_publication FOR TABLE
    merchants, payments, ledger_entries, ledger_postings, refunds, payouts, capture_heartbeat;

-- Debezium keeps its offsets in tables of its own, here. The stack makes the schema for the role;
-- where nobody did, it is ours and the role may create in it.
DO $$
BEGIN
    IF to_regnamespace('capture') IS NULL THEN
        CREATE SCHEMA capture;
        GRANT USAGE, CREATE ON SCHEMA capture TO giovang_capture;
    END IF;
END
$$;
