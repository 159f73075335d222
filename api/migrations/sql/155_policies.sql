-- How sure the chain must be of a receipt before it is booked, and what is done where that was not
-- sure enough.
--
--   * Policies are data, an admin's to change. Without one, everything waits for finalized.
--   * A receipt booked at confirmed is marked on its row until the chain finalizes it or drops it.
--     Nothing goes back to a payer on the strength of it.
--   * One that vanishes is reversed. What its merchant was paid out by then is a loss of ours, on an
--     account of its own.

-- Which payments (of whom, in which books, in which token, up to how many dong) are booked at which
-- commitment. NULL is all of them. Of the policies that fit, the one that says most decides: a
-- merchant before a mode before a token, and then the narrowest band.
CREATE TABLE confirmation_policies (
    id          text PRIMARY KEY CHECK (id ~ '^cfp_[0-9a-hjkmnp-tv-z]{26}$'),
    merchant_id text REFERENCES merchants,
    mode        text CHECK (mode IN ('test', 'live')),
    asset       text CHECK (asset IN ('USDC', 'USDT')),
    up_to_minor bigint NOT NULL CHECK (up_to_minor > 0),
    commitment  text NOT NULL CHECK (commitment IN ('confirmed', 'finalized')),
    reason      text NOT NULL CHECK (length(reason) BETWEEN 1 AND 1000),
    set_by      text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    updated_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT confirmation_policies_one_a_band
        UNIQUE NULLS NOT DISTINCT (merchant_id, mode, asset, up_to_minor)
);
CALL close_tenant_table('confirmation_policies');
-- What holds for every merchant, every merchant may read.
CREATE POLICY for_all ON confirmation_policies FOR SELECT TO giovang_api
    USING (merchant_id IS NULL);
GRANT SELECT ON confirmation_policies TO giovang_api, giovang_operator, giovang_watcher;
GRANT INSERT (id, merchant_id, mode, asset, up_to_minor, commitment, reason, set_by),
    UPDATE (commitment, reason, set_by), DELETE ON confirmation_policies TO giovang_operator;
CREATE TRIGGER confirmation_policies_stamp BEFORE UPDATE ON confirmation_policies
    FOR EACH ROW EXECUTE FUNCTION stamp_updated();
CREATE TRIGGER confirmation_policies_audit AFTER INSERT OR UPDATE OR DELETE ON confirmation_policies
    FOR EACH ROW EXECUTE FUNCTION audit_write('confirmation_policy');


-- Receipts. A chain transaction that a fork removed may land again and then do something else, so
-- what it brought is what it brought where it was seen last.
ALTER TABLE chain_transfers
    ADD COLUMN booked_early boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT chain_transfers_booked_early CHECK (
        NOT booked_early OR (payment_id IS NOT NULL AND commitment <> 'dropped'));
GRANT UPDATE (booked_early, amount_minor, payer_address) ON chain_transfers TO giovang_watcher;

CREATE OR REPLACE FUNCTION keep_finalized() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    IF OLD.commitment = 'finalized'
       AND (NEW.commitment <> 'finalized' OR NEW.amount_minor <> OLD.amount_minor
            OR NEW.booked_early <> OLD.booked_early
            OR (OLD.payment_id IS NOT NULL AND NEW.payment_id IS DISTINCT FROM OLD.payment_id)) THEN
        RAISE EXCEPTION 'transfer % is final', OLD.signature
            USING ERRCODE = 'check_violation', CONSTRAINT = 'chain_transfers_finalized_stays';
    END IF;
    RETURN NEW;
END
$$;


-- Payments. A completed payment whose money vanished has failed; it completes after all when the
-- money comes.
INSERT INTO status_transitions (subject, from_status, to_status, api_may) VALUES
    ('payment', 'completed', 'failed',     false),
    ('payment', 'failed',    'confirming', false);

CREATE FUNCTION unstamp_completed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    NEW.completed_at := NULL;
    RETURN NEW;
END
$$;
CREATE TRIGGER payments_unstamp BEFORE UPDATE ON payments
    FOR EACH ROW WHEN (OLD.status = 'completed' AND NEW.status = 'failed')
    EXECUTE FUNCTION unstamp_completed();

-- As in 130, with two more words: an entry that was reversed counts for nothing, and a payment that
-- failed keeps no entry that says it was paid. Asked at commit of the payment as it then stands,
-- since one unit of work may take it through several statuses.
CREATE OR REPLACE FUNCTION payment_is_booked() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
DECLARE
    wanted CONSTANT text := CASE NEW.status
        WHEN 'completed' THEN
            CASE WHEN NEW.is_escrow THEN 'escrow_released' ELSE 'payment_completed' END
        WHEN 'failed' THEN 'payment_completed'
        WHEN 'escrow_held' THEN 'escrow_held'
        WHEN 'resolved' THEN 'escrow_resolved' END;
    stands CONSTANT boolean := EXISTS (
        SELECT FROM ledger_entries AS e
        WHERE e.payment_id = NEW.id AND e.kind = wanted
          AND NOT EXISTS (SELECT FROM ledger_entries AS r WHERE r.reverses_id = e.id));
BEGIN
    IF stands <> (NEW.status <> 'failed')
       AND NEW.status = (SELECT status FROM payments WHERE id = NEW.id) THEN
        RAISE EXCEPTION 'payment % is % and its entries say otherwise (%)', NEW.id, NEW.status, wanted
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payments_completed_is_booked';
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER payments_failed_is_reversed AFTER UPDATE OF status ON payments
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.status = 'completed' AND NEW.status = 'failed')
    EXECUTE FUNCTION payment_is_booked();

-- Refunds wait until what they return is final. The lock is the one under which receipts are booked.
CREATE FUNCTION refund_waits_for_final() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
BEGIN
    PERFORM FROM payments WHERE id = NEW.payment_id FOR NO KEY UPDATE;
    IF EXISTS (SELECT FROM chain_transfers
               WHERE payment_id = NEW.payment_id AND booked_early AND commitment = 'confirmed') THEN
        RAISE EXCEPTION 'payment % is booked and not final yet', NEW.payment_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'refunds_wait_for_final';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER refunds_wait_for_final BEFORE INSERT ON refunds
    FOR EACH ROW EXECUTE FUNCTION refund_waits_for_final();


-- The ledger. chain_loss stands debit: what merchants kept of money that the chain took back.
ALTER TABLE ledger_entries
    DROP CONSTRAINT ledger_entries_kind,
    ADD CONSTRAINT ledger_entries_kind CHECK (kind IN (
        'payment_completed', 'payment_received', 'payment_overpaid',
        'transfer_suspended', 'transfer_assigned', 'transfer_returned',
        'escrow_held', 'escrow_released', 'escrow_resolved',
        'refund_completed', 'payout_completed', 'reversal', 'loss_covered', 'loss_recovered',
        -- before there were holds
        'refund_requested', 'refund_failed', 'payout_requested', 'payout_cancelled'));
ALTER TABLE ledger_accounts
    DROP CONSTRAINT ledger_accounts_owner,
    ADD CONSTRAINT ledger_accounts_owner CHECK (
        (merchant_id IS NOT NULL
            AND kind IN ('merchant_available', 'escrow_liability_pool', 'payer_excess',
                         -- before there were holds; both are empty now
                         'payouts_reserved', 'refunds_payable'))
        OR (merchant_id IS NULL
            AND kind IN ('crypto_pool', 'liquidity', 'fee_revenue', 'spread_revenue', 'rounding',
                         'suspense', 'chain_loss'))),
    DROP CONSTRAINT ledger_accounts_never_overdrawn,
    ADD CONSTRAINT ledger_accounts_never_overdrawn CHECK (
        CASE kind
            WHEN 'liquidity'   THEN held_minor = 0
            WHEN 'rounding'    THEN held_minor = 0
            WHEN 'crypto_pool' THEN posted_minor >= 0 AND held_minor = 0
            WHEN 'chain_loss'  THEN posted_minor >= 0 AND held_minor = 0
            ELSE posted_minor + held_minor <= 0
        END);

-- As in 120, and tokens that leave the pool by a reversal are drawn like any others: what an entry
-- brought into a shard may have left through that shard for another payment since.
CREATE OR REPLACE FUNCTION ledger_reverse_entry(
    reversal_id text, original_id text, entry_key text, entry_description text
) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, public
AS $$
DECLARE
    original ledger_entries;
    booked_id text;
    paths text[];
    amounts bigint[];
    pool_assets text[];
    our_paths text[];
BEGIN
    SELECT * INTO STRICT original FROM ledger_entries WHERE id = original_id;
    SELECT array_agg(a.path ORDER BY p.seq), array_agg(-p.amount_minor ORDER BY p.seq),
           array_agg(a.mode || '/' || a.asset)
               FILTER (WHERE a.kind = 'crypto_pool' AND p.amount_minor > 0)
    INTO paths, amounts, pool_assets
    FROM ledger_postings AS p JOIN ledger_accounts AS a ON a.id = p.account_id
    WHERE p.entry_id = original_id;
    WITH ours AS (
        SELECT a.path FROM ledger_accounts AS a
        WHERE a.path = ANY (paths)
           OR (a.merchant_id IS NULL AND a.kind = 'crypto_pool'
               AND a.mode || '/' || a.asset = ANY (pool_assets))
        ORDER BY a.path FOR NO KEY UPDATE)
    SELECT array_agg(ours.path) INTO our_paths FROM ours;

    INSERT INTO ledger_entries (id, merchant_id, kind, payment_id, payout_id, refund_id,
                                idempotency_key, reverses_id, description)
    VALUES (reversal_id, original.merchant_id, 'reversal', original.payment_id, original.payout_id,
            original.refund_id, entry_key, original_id, entry_description)
    ON CONFLICT (idempotency_key) DO NOTHING
    RETURNING id INTO booked_id;
    IF FOUND THEN
        INSERT INTO ledger_postings (entry_id, seq, merchant_id, account_id, asset, amount_minor)
        SELECT booked_id, drawn.seq, a.merchant_id, a.id, a.asset, drawn.amount
        FROM ledger_draw(paths, amounts, our_paths) WITH ORDINALITY AS drawn (path, amount, seq)
        JOIN ledger_accounts AS a ON a.path = drawn.path;
        RETURN booked_id;
    END IF;
    SELECT id INTO booked_id FROM ledger_entries
    WHERE idempotency_key = entry_key AND reverses_id = original_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'key % already booked another entry', entry_key
            USING ERRCODE = 'unique_violation', CONSTRAINT = 'ledger_entries_idempotency_key_key';
    END IF;
    RETURN booked_id;
END
$$;
