-- Money that will leave: refunds to payers and payouts to merchants. Asking reserves it.

INSERT INTO status_transitions (subject, from_status, to_status) VALUES
    ('refund', 'requested', 'completed'),
    ('refund', 'requested', 'failed'),
    ('payout', 'requested', 'approved'),
    ('payout', 'requested', 'cancelled'),
    ('payout', 'requested', 'failed'),
    ('payout', 'approved',  'sent'),
    ('payout', 'approved',  'cancelled'),
    ('payout', 'approved',  'failed'),
    ('payout', 'sent',      'settled'),
    ('payout', 'sent',      'failed');

-- amount_minor is in the payment's currency.
CREATE TABLE refunds (
    id           text PRIMARY KEY CHECK (id ~ '^rfd_[0-9a-hjkmnp-tv-z]{26}$'),
    merchant_id  text NOT NULL REFERENCES merchants,
    payment_id   text NOT NULL REFERENCES payments,
    status       text NOT NULL DEFAULT 'requested'
                 CHECK (status IN ('requested', 'completed', 'failed')),
    amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    asset        text NOT NULL CHECK (asset = 'VND'),
    reason       text,
    created_at   timestamptz NOT NULL DEFAULT now(),
    status_at    timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE refunds REPLICA IDENTITY FULL;
CREATE INDEX refunds_by_payment ON refunds (payment_id);
CREATE INDEX refunds_by_merchant ON refunds (merchant_id, id);
CALL close_tenant_table('refunds');
GRANT SELECT ON refunds TO giovang_api, giovang_watcher, giovang_capture;
GRANT INSERT (id, merchant_id, payment_id, amount_minor, asset, reason) ON refunds TO giovang_api;

CREATE TABLE payouts (
    id           text PRIMARY KEY CHECK (id ~ '^pyo_[0-9a-hjkmnp-tv-z]{26}$'),
    merchant_id  text NOT NULL REFERENCES merchants,
    status       text NOT NULL DEFAULT 'requested' CHECK (status IN (
                     'requested', 'approved', 'sent', 'settled', 'failed', 'cancelled')),
    amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    asset        text NOT NULL CHECK (asset = 'VND'),
    destination  text NOT NULL CHECK (length(destination) BETWEEN 1 AND 200),
    created_at   timestamptz NOT NULL DEFAULT now(),
    status_at    timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE payouts REPLICA IDENTITY FULL;
CREATE INDEX payouts_by_merchant ON payouts (merchant_id, id);
CALL close_tenant_table('payouts');
GRANT SELECT ON payouts TO giovang_api, giovang_watcher, giovang_capture;
GRANT INSERT (id, merchant_id, amount_minor, asset, destination) ON payouts TO giovang_api;

ALTER TABLE ledger_entries
    ADD FOREIGN KEY (payout_id) REFERENCES payouts,
    ADD FOREIGN KEY (refund_id) REFERENCES refunds;

CREATE TRIGGER refunds_guard BEFORE INSERT OR UPDATE ON refunds
    FOR EACH ROW EXECUTE FUNCTION guard_status('refund', 'requested');
CREATE TRIGGER refunds_audit AFTER INSERT OR UPDATE OR DELETE ON refunds
    FOR EACH ROW EXECUTE FUNCTION audit_write('refund');
CREATE CONSTRAINT TRIGGER refunds_requested_is_booked AFTER INSERT ON refunds
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION must_be_booked();
CREATE TRIGGER payouts_guard BEFORE INSERT OR UPDATE ON payouts
    FOR EACH ROW EXECUTE FUNCTION guard_status('payout', 'requested');
CREATE TRIGGER payouts_audit AFTER INSERT OR UPDATE OR DELETE ON payouts
    FOR EACH ROW EXECUTE FUNCTION audit_write('payout');
CREATE CONSTRAINT TRIGGER payouts_requested_is_booked AFTER INSERT ON payouts
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION must_be_booked();

-- Never more than was paid. The payment's row lock puts refunds of one payment in a queue, so that
-- two of them cannot both see the same remainder.
CREATE FUNCTION refund_within_payment() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
DECLARE
    paid payments;
    returned bigint;
BEGIN
    SELECT * INTO STRICT paid FROM payments WHERE id = NEW.payment_id FOR NO KEY UPDATE;
    SELECT coalesce(sum(amount_minor), 0) INTO returned
    FROM refunds WHERE payment_id = NEW.payment_id AND status <> 'failed';

    IF paid.merchant_id <> NEW.merchant_id OR paid.currency <> NEW.asset
       OR paid.status <> 'completed' OR returned + NEW.amount_minor > paid.amount_minor THEN
        RAISE EXCEPTION 'refund of % exceeds what payment % can return', NEW.amount_minor, paid.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'refunds_within_payment';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER refunds_within_payment BEFORE INSERT ON refunds
    FOR EACH ROW EXECUTE FUNCTION refund_within_payment();
