-- Payments, and the gap-free sequence of events in which each merchant sees them move.

INSERT INTO status_transitions (subject, from_status, to_status) VALUES
    ('payment', 'created',          'pending'),
    ('payment', 'created',          'expired'),
    ('payment', 'created',          'failed'),
    ('payment', 'pending',          'confirming'),
    ('payment', 'pending',          'expired'),
    ('payment', 'pending',          'failed'),
    ('payment', 'confirming',       'pending'),     -- the transfer vanished in a reorganisation
    ('payment', 'confirming',       'completed'),
    ('payment', 'confirming',       'failed'),
    ('payment', 'confirming',       'escrow_held'),
    ('payment', 'escrow_held',      'awaiting_release'),
    ('payment', 'escrow_held',      'disputed'),
    ('payment', 'awaiting_release', 'completed'),
    ('payment', 'awaiting_release', 'disputed'),
    ('payment', 'disputed',         'resolved');

CREATE TABLE payments (
    id                 text PRIMARY KEY CHECK (id ~ '^pay_[0-9a-hjkmnp-tv-z]{26}$'),
    merchant_id        text NOT NULL REFERENCES merchants,
    mode               text NOT NULL CHECK (mode IN ('test', 'live')),
    status             text NOT NULL DEFAULT 'created' CHECK (status IN (
                           'created', 'pending', 'confirming', 'completed', 'expired', 'failed',
                           'escrow_held', 'awaiting_release', 'disputed', 'resolved')),
    exception          text CHECK (exception IN ('underpaid', 'overpaid', 'late', 'wrong_asset')),
    amount_minor       bigint NOT NULL CHECK (amount_minor > 0),
    currency           text NOT NULL CHECK (currency = 'VND'),
    asset              text NOT NULL CHECK (asset IN ('USDC', 'USDT')),
    asset_amount_minor bigint NOT NULL CHECK (asset_amount_minor > 0),
    received_minor     bigint NOT NULL DEFAULT 0 CHECK (received_minor >= 0),
    rate               numeric(20, 8) NOT NULL CHECK (rate > 0),
    rate_source        text NOT NULL,
    chain              text NOT NULL CHECK (chain = 'solana'),
    recipient          text NOT NULL,
    mint               text NOT NULL,
    reference          text NOT NULL UNIQUE,
    payer_address      text,
    payer_country      char(2) CHECK (payer_country ~ '^[A-Z]{2}$'),
    description        text,
    order_id           text,
    metadata           jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    fee_minor          bigint NOT NULL DEFAULT 0 CHECK (fee_minor BETWEEN 0 AND amount_minor),
    created_at         timestamptz NOT NULL DEFAULT now(),
    expires_at         timestamptz NOT NULL CHECK (expires_at > created_at),
    status_at          timestamptz NOT NULL DEFAULT now(),
    completed_at       timestamptz,
    updated_at         timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE payments REPLICA IDENTITY FULL;
CREATE INDEX payments_by_merchant ON payments (merchant_id, id);
CREATE INDEX payments_by_status ON payments (merchant_id, status, id);
CREATE INDEX payments_to_expire ON payments (expires_at) WHERE status IN ('created', 'pending');

CALL close_tenant_table('payments');
GRANT SELECT ON payments TO giovang_api, giovang_watcher, giovang_capture;
GRANT INSERT (id, merchant_id, mode, amount_minor, currency, asset, asset_amount_minor, rate,
              rate_source, chain, recipient, mint, reference, payer_country, description, order_id,
              metadata, expires_at) ON payments TO giovang_api;
GRANT UPDATE (status) ON payments TO giovang_api;
GRANT UPDATE (status, exception, received_minor, payer_address, fee_minor)
    ON payments TO giovang_watcher;
-- Over HTTP a payment is only ever shown to its payer; that money came is the watcher's to say.
CREATE POLICY api_only_shows ON payments AS RESTRICTIVE FOR UPDATE TO giovang_api
    USING (true) WITH CHECK (status = 'pending');

CREATE TRIGGER payments_guard BEFORE INSERT OR UPDATE ON payments
    FOR EACH ROW EXECUTE FUNCTION guard_status('payment', 'created');

CREATE FUNCTION stamp_completed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    NEW.completed_at := NEW.status_at;
    RETURN NEW;
END
$$;
-- Triggers fire in order of name: this one after the guard, which sets status_at.
CREATE TRIGGER payments_stamp BEFORE UPDATE ON payments
    FOR EACH ROW WHEN (NEW.status = 'completed' AND NEW.completed_at IS NULL)
    EXECUTE FUNCTION stamp_completed();

CREATE TRIGGER payments_audit AFTER INSERT OR UPDATE OR DELETE ON payments
    FOR EACH ROW EXECUTE FUNCTION audit_write('payment');

-- The counter's row lock is what makes the sequence gap-free: a number is taken and committed with
-- its event, or neither. It also puts the events of a merchant in commit order.
CREATE TABLE merchant_event_counters (
    merchant_id text PRIMARY KEY REFERENCES merchants,
    last_seq    bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);
CALL close_tenant_table('merchant_event_counters');

CREATE TABLE payment_events (
    merchant_id text NOT NULL REFERENCES merchants,
    seq         bigint NOT NULL CHECK (seq > 0),
    id          text NOT NULL UNIQUE,
    payment_id  text NOT NULL REFERENCES payments,
    type        text NOT NULL,
    data        jsonb NOT NULL,
    created_at  timestamptz NOT NULL,
    PRIMARY KEY (merchant_id, seq)
);
CREATE INDEX payment_events_by_payment ON payment_events (payment_id, seq);
CALL close_tenant_table('payment_events');
GRANT SELECT ON payment_events TO giovang_api, giovang_watcher;
CREATE TRIGGER payment_events_are_history BEFORE UPDATE OR DELETE ON payment_events
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER payment_events_stay BEFORE TRUNCATE ON payment_events
    EXECUTE FUNCTION refuse_change();

CREATE FUNCTION open_event_counter() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
BEGIN
    INSERT INTO merchant_event_counters (merchant_id) VALUES (NEW.id);
    RETURN NULL;
END
$$;
CREATE TRIGGER merchants_open_counter AFTER INSERT ON merchants
    FOR EACH ROW EXECUTE FUNCTION open_event_counter();

-- One event for each state a payment reaches, its data the row as it stood at that moment.
CREATE FUNCTION record_payment_event() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
DECLARE
    moved CONSTANT boolean := TG_OP = 'INSERT' OR NEW.status <> OLD.status;
    next_seq bigint;
BEGIN
    UPDATE merchant_event_counters SET last_seq = last_seq + 1
    WHERE merchant_id = NEW.merchant_id
    RETURNING last_seq INTO STRICT next_seq;

    INSERT INTO payment_events (merchant_id, seq, id, payment_id, type, data, created_at)
    VALUES (NEW.merchant_id, next_seq, giovang_id('evt'), NEW.id,
            'payment.' || CASE WHEN moved THEN NEW.status ELSE 'updated' END,
            to_jsonb(NEW),
            CASE WHEN moved THEN NEW.status_at ELSE NEW.updated_at END);
    RETURN NULL;
END
$$;
CREATE TRIGGER payments_event_first AFTER INSERT ON payments
    FOR EACH ROW EXECUTE FUNCTION record_payment_event();
CREATE TRIGGER payments_event AFTER UPDATE ON payments
    FOR EACH ROW WHEN (
        (OLD.status, OLD.exception, OLD.received_minor)
        IS DISTINCT FROM (NEW.status, NEW.exception, NEW.received_minor))
    EXECUTE FUNCTION record_payment_event();

-- The payer's page knows a payment's id and nothing else; the id is its capability.
CREATE FUNCTION merchant_of_payment(payment_id text) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
BEGIN
    RETURN (SELECT p.merchant_id FROM payments AS p WHERE p.id = payment_id);
END
$$;
GRANT EXECUTE ON FUNCTION merchant_of_payment(text) TO giovang_api;
