"""The SQL by which history enters the ledger, as named constants.

Rows walk the ledger's own gates: every payment is inserted as `created` and updated through each
status in order of time, so the guards, the event sequence, the audit trail and the balance triggers
do their work as they do for live payments. Only the moments are given instead of taken from the
clock, which is why the superuser loads: no application role may do that.
"""

# Progress lives beside the data and is written in the database transaction of each batch, so it can
# never say more or less than what is there. Nobody but the superuser can see it.
PREPARE = """
CREATE SCHEMA IF NOT EXISTS demo;
CREATE TABLE IF NOT EXISTS demo.history (
    singleton        boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    seed             bigint NOT NULL,
    until            timestamptz NOT NULL,
    days             int NOT NULL,
    payments_per_day double precision NOT NULL,
    begun_at         timestamptz NOT NULL DEFAULT now(),
    finished_at      timestamptz
);
CREATE TABLE IF NOT EXISTS demo.history_batches (
    slug      text NOT NULL,
    first_day date NOT NULL,
    part      int NOT NULL,
    loaded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (slug, first_day, part)
);
ALTER TABLE demo.history ENABLE ROW LEVEL SECURITY;
ALTER TABLE demo.history_batches ENABLE ROW LEVEL SECURITY;
"""

# One loader at a time; the number is arbitrary and belongs to this lock alone.
LOCK = "SELECT pg_try_advisory_lock(7405310672)"

# The first batch makes a period binding; until then another one may take its place.
BEGIN_HISTORY = """
INSERT INTO demo.history (seed, until, days, payments_per_day) VALUES (%s, %s, %s, %s)
ON CONFLICT (singleton) DO UPDATE
SET seed = EXCLUDED.seed, until = EXCLUDED.until, days = EXCLUDED.days,
    payments_per_day = EXCLUDED.payments_per_day, begun_at = now()
WHERE NOT EXISTS (SELECT FROM demo.history_batches)
"""
READ_HISTORY = "SELECT seed, until, days, payments_per_day, finished_at FROM demo.history"
FINISH_HISTORY = "UPDATE demo.history SET finished_at = now() WHERE finished_at IS NULL"
READ_BATCHES = "SELECT slug, first_day, part FROM demo.history_batches"
MARK_BATCH = "INSERT INTO demo.history_batches (slug, first_day, part) VALUES (%s, %s, %s)"

KNOWN_MERCHANTS = "SELECT id FROM merchants WHERE id = ANY (%s)"

SIGN = "SELECT set_config('giovang.actor', 'demo:history', false)"

STAGE = """
CREATE TEMPORARY TABLE staged_payments (LIKE public.payments INCLUDING DEFAULTS)
    ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE staged_refunds (LIKE public.refunds INCLUDING DEFAULTS)
    ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE staged_payouts (LIKE public.payouts INCLUDING DEFAULTS)
    ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE staged_steps (
    step           int PRIMARY KEY,
    subject        text NOT NULL,
    id             text NOT NULL,
    status         text NOT NULL,
    first          boolean NOT NULL,
    at             timestamptz NOT NULL,
    exception      text,
    received_minor bigint,
    payer_address  text,
    fee_minor      bigint,
    settled_minor  bigint,
    approved_by    text,
    reference      text
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE staged_entries (
    id text PRIMARY KEY, merchant_id text NOT NULL, kind text NOT NULL, payment_id text,
    payout_id text, refund_id text, idempotency_key text NOT NULL, description text NOT NULL,
    created_at timestamptz NOT NULL, posts_hold text
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE staged_postings (
    entry_id text NOT NULL, seq int NOT NULL, merchant_id text, kind text NOT NULL,
    asset text NOT NULL, amount_minor bigint NOT NULL, created_at timestamptz NOT NULL,
    path text
) ON COMMIT DELETE ROWS;
CREATE TEMPORARY TABLE staged_holds (
    id text PRIMARY KEY, merchant_id text NOT NULL, amount_minor bigint NOT NULL,
    idempotency_key text NOT NULL, refund_id text, payout_id text, created_at timestamptz NOT NULL,
    expires_at timestamptz
) ON COMMIT DELETE ROWS;
"""

COPY_PAYMENTS = """
COPY staged_payments (
    id, merchant_id, mode, status, amount_minor, currency, asset, asset_amount_minor, rate,
    rate_mid, rate_source, chain, recipient, mint, reference, payer_country, description, order_id,
    metadata, created_at, expires_at, status_at, updated_at
) FROM STDIN
"""
COPY_REFUNDS = """
COPY staged_refunds (
    id, merchant_id, payment_id, status, amount_minor, asset, reason, source, token,
    token_amount_minor, destination, requested_by, created_at, status_at, updated_at
) FROM STDIN
"""
COPY_PAYOUTS = """
COPY staged_payouts (
    id, merchant_id, mode, status, amount_minor, asset, destination, revision, requested_by,
    created_at, status_at, updated_at
) FROM STDIN
"""
COPY_STEPS = """
COPY staged_steps (
    step, subject, id, status, first, at, exception, received_minor, payer_address, fee_minor,
    settled_minor, approved_by, reference
) FROM STDIN
"""
COPY_ENTRIES = """
COPY staged_entries (
    id, merchant_id, kind, payment_id, payout_id, refund_id, idempotency_key, description,
    created_at, posts_hold
) FROM STDIN
"""
COPY_POSTINGS = """
COPY staged_postings (
    entry_id, seq, merchant_id, kind, asset, amount_minor, created_at
) FROM STDIN
"""
COPY_HOLDS = """
COPY staged_holds (
    id, merchant_id, amount_minor, idempotency_key, refund_id, payout_id, created_at, expires_at
) FROM STDIN
"""

# Step by step in order of time, so that each merchant's events are numbered in that order too. An
# update that meets no row is a hole in the history and stops the batch.
WALK_STEPS = """
DO $$
DECLARE
    now_at staged_steps;
BEGIN
    FOR now_at IN SELECT * FROM staged_steps ORDER BY step LOOP
        CASE
            WHEN now_at.subject = 'payment' AND now_at.first THEN
                INSERT INTO payments SELECT * FROM staged_payments WHERE id = now_at.id;
            WHEN now_at.subject = 'payment' THEN
                UPDATE payments
                SET status = now_at.status, status_at = now_at.at, updated_at = now_at.at,
                    exception = now_at.exception, received_minor = now_at.received_minor,
                    payer_address = now_at.payer_address, fee_minor = now_at.fee_minor,
                    settled_minor = now_at.settled_minor
                WHERE id = now_at.id;
            WHEN now_at.subject = 'refund' AND now_at.first THEN
                INSERT INTO refunds SELECT * FROM staged_refunds WHERE id = now_at.id;
            WHEN now_at.subject = 'refund' THEN
                UPDATE refunds
                SET status = now_at.status, status_at = now_at.at, updated_at = now_at.at,
                    signature = now_at.reference
                WHERE id = now_at.id;
            WHEN now_at.subject = 'payout' AND now_at.first THEN
                INSERT INTO payouts SELECT * FROM staged_payouts WHERE id = now_at.id;
            WHEN now_at.subject = 'payout' THEN
                UPDATE payouts
                SET status = now_at.status, status_at = now_at.at, updated_at = now_at.at,
                    approved_by = coalesce(approved_by, now_at.approved_by),
                    approved_revision = coalesce(
                        approved_revision, CASE now_at.status WHEN 'approved' THEN revision END),
                    approved_at = coalesce(
                        approved_at, CASE now_at.status WHEN 'approved' THEN now_at.at END),
                    bank_reference = coalesce(bank_reference, now_at.reference)
                WHERE id = now_at.id;
        END CASE;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'history step % found no % to move', now_at.step, now_at.subject;
        END IF;
    END LOOP;
END
$$
"""
# All accounts of a batch are locked at once and in the ledger's own order, before the first moves.
NAME_ACCOUNTS = """
UPDATE staged_postings AS p
SET path = ledger_path('test', p.merchant_id, p.kind, p.asset,
                       coalesce(e.payment_id, e.idempotency_key))
FROM staged_entries AS e WHERE e.id = p.entry_id
"""
OPEN_ACCOUNTS = "SELECT ledger_open_accounts(array_agg(DISTINCT path)) FROM staged_postings"
LOCK_ACCOUNTS = """
SELECT FROM ledger_accounts WHERE path IN (SELECT path FROM staged_postings)
ORDER BY path FOR NO KEY UPDATE
"""
BOOK_ENTRIES = """
INSERT INTO ledger_entries (
    id, merchant_id, kind, payment_id, payout_id, refund_id, idempotency_key, description,
    created_at
)
SELECT id, merchant_id, kind, payment_id, payout_id, refund_id, idempotency_key, description,
       created_at
FROM staged_entries ORDER BY created_at, id
"""
# First what comes in, then the holds on it and their end, then what leaves: no balance falls below
# what is held at any point on the way.
BOOK_POSTINGS = """
INSERT INTO ledger_postings (
    entry_id, seq, merchant_id, account_id, asset, amount_minor, created_at
)
SELECT p.entry_id, p.seq, p.merchant_id, a.id, p.asset, p.amount_minor, p.created_at
FROM staged_postings AS p
JOIN staged_entries AS e ON e.id = p.entry_id
JOIN ledger_accounts AS a ON a.path = p.path
WHERE (e.posts_hold IS NOT NULL) = %s
ORDER BY p.created_at, p.entry_id, p.seq
"""
PLACE_HOLDS = """
INSERT INTO ledger_holds (
    id, merchant_id, account_id, asset, amount_minor, idempotency_key, refund_id, payout_id,
    expires_at, created_at, status_at, updated_at
)
SELECT h.id, h.merchant_id, a.id, a.asset, h.amount_minor, h.idempotency_key, h.refund_id,
       h.payout_id, h.expires_at, h.created_at, h.created_at, h.created_at
FROM staged_holds AS h
JOIN ledger_accounts AS a
    ON a.path = ledger_path('test', h.merchant_id, 'merchant_available', 'VND', '')
ORDER BY h.created_at, h.id
"""
POST_HOLDS = """
UPDATE ledger_holds AS h
SET status = 'posted', entry_id = e.id, status_at = e.created_at, updated_at = e.created_at
FROM staged_entries AS e WHERE h.id = e.posts_hold
"""
