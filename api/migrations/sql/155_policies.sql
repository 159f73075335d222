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
