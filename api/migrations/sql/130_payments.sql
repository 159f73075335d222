-- Escrow with disputes, exceptions with a way back, refunds of every kind, and one gap-free sequence
-- of events a merchant and mode for payments, refunds and payouts alike.

ALTER TABLE merchants
    ADD COLUMN tolerance_bps int NOT NULL DEFAULT 0 CHECK (tolerance_bps BETWEEN 0 AND 1000),
    ADD COLUMN escrow_days int NOT NULL DEFAULT 7 CHECK (escrow_days BETWEEN 1 AND 60);
GRANT INSERT (tolerance_bps, escrow_days), UPDATE (tolerance_bps, escrow_days)
    ON merchants TO giovang_api;
GRANT INSERT (id, name, trade, timezone, country, fee_bps, tolerance_bps, escrow_days),
    UPDATE (name, trade, timezone, country, fee_bps, tolerance_bps, escrow_days)
    ON merchants TO giovang_operator;


-- Payments. settled_minor is what the merchant is credited for it, fee included, or what escrow
-- holds for it; rate_mid is the rate before the spread, NULL where there was none.

ALTER TABLE payments
    ADD COLUMN is_escrow boolean NOT NULL DEFAULT false,
    ADD COLUMN escrow_release_due_at timestamptz,
    ADD COLUMN escrow_released_at timestamptz,
    ADD COLUMN escrow_released_by text,
    ADD COLUMN settled_minor bigint NOT NULL DEFAULT 0 CHECK (settled_minor >= 0),
    ADD COLUMN rate_mid numeric(20, 8) CHECK (rate_mid >= rate),
    ADD COLUMN exception_outcome text CHECK (exception_outcome IN ('accepted', 'refunded')),
    ADD CONSTRAINT payments_outcome_of_exception CHECK (
        exception_outcome IS NULL OR exception IS NOT NULL),
    ADD CONSTRAINT payments_escrow CHECK (
        is_escrow OR (status NOT IN ('escrow_held', 'awaiting_release', 'disputed', 'resolved')
                      AND escrow_release_due_at IS NULL AND escrow_released_at IS NULL)),
    ADD CONSTRAINT payments_escrow_released CHECK (
        (escrow_released_at IS NULL) = (escrow_released_by IS NULL)
        AND (escrow_released_at IS NOT NULL) = (is_escrow AND status = 'completed')),
    ADD CONSTRAINT payments_escrow_due CHECK (
        status <> 'awaiting_release' OR escrow_release_due_at IS NOT NULL);

-- What completed before was credited in full. The row's history needs no line for being told so.
ALTER TABLE payments DISABLE TRIGGER payments_audit;
ALTER TABLE payments DISABLE TRIGGER payments_guard;
UPDATE payments SET settled_minor = amount_minor WHERE status = 'completed';
ALTER TABLE payments ENABLE TRIGGER payments_guard;
ALTER TABLE payments ENABLE TRIGGER payments_audit;
CREATE INDEX payments_escrow_to_release ON payments (escrow_release_due_at)
    WHERE status = 'awaiting_release';
CREATE INDEX payments_by_order ON payments (merchant_id, order_id) WHERE order_id IS NOT NULL;

-- guard_status says which steps are the API's to make, so the API may now also edit the texts.
DROP POLICY api_only_shows ON payments;
GRANT INSERT (is_escrow, rate_mid) ON payments TO giovang_api;
GRANT UPDATE (description, order_id, metadata, escrow_release_due_at) ON payments TO giovang_api;
GRANT UPDATE (status, exception, exception_outcome, received_minor, payer_address, fee_minor,
              settled_minor, escrow_release_due_at, escrow_released_at, escrow_released_by)
    ON payments TO giovang_operator;
GRANT UPDATE (exception_outcome, settled_minor, escrow_release_due_at, escrow_released_at,
              escrow_released_by) ON payments TO giovang_watcher;

-- A date of release is set once, with delivery, and nobody moves it to take the payer's time away.
CREATE FUNCTION keep_release_date() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public
AS $$
BEGIN
    IF OLD.escrow_release_due_at IS NOT NULL
       OR NEW.status <> 'awaiting_release' OR NEW.escrow_release_due_at < now() + interval '1 hour' THEN
        RAISE EXCEPTION 'payment %: the date of release is set once, with delivery', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payments_escrow_due_once';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER payments_escrow_due_once BEFORE UPDATE OF escrow_release_due_at ON payments
    FOR EACH ROW WHEN (OLD.escrow_release_due_at IS DISTINCT FROM NEW.escrow_release_due_at)
    EXECUTE FUNCTION keep_release_date();


-- Disputes: opened by payer or merchant, resolved by an admin with a reason.

CREATE TABLE disputes (
    id                text PRIMARY KEY CHECK (id ~ '^dsp_[0-9a-hjkmnp-tv-z]{26}$'),
    merchant_id       text NOT NULL REFERENCES merchants,
    payment_id        text NOT NULL UNIQUE REFERENCES payments,
    opened_by         text NOT NULL,
    reason            text NOT NULL CHECK (length(reason) BETWEEN 1 AND 1000),
    opened_at         timestamptz NOT NULL DEFAULT now(),
    outcome           text CHECK (outcome IN ('merchant', 'payer', 'split')),
    merchant_minor    bigint CHECK (merchant_minor >= 0),
    resolved_by       text,
    resolution_reason text CHECK (length(resolution_reason) BETWEEN 1 AND 1000),
    resolved_at       timestamptz,
    updated_at        timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT disputes_resolved_whole CHECK (
        num_nonnulls(outcome, merchant_minor, resolved_by, resolution_reason, resolved_at) IN (0, 5))
);
CREATE INDEX disputes_by_merchant ON disputes (merchant_id, id);
CREATE INDEX disputes_open ON disputes (id) WHERE outcome IS NULL;
CALL close_tenant_table('disputes');
GRANT SELECT ON disputes TO giovang_api, giovang_operator, giovang_watcher;
GRANT INSERT (id, merchant_id, payment_id, opened_by, reason) ON disputes
    TO giovang_api, giovang_operator;
GRANT UPDATE (outcome, merchant_minor, resolved_by, resolution_reason, resolved_at)
    ON disputes TO giovang_operator;
CREATE TRIGGER disputes_stamp BEFORE UPDATE ON disputes
    FOR EACH ROW EXECUTE FUNCTION stamp_updated();
CREATE TRIGGER disputes_audit AFTER INSERT OR UPDATE OR DELETE ON disputes
    FOR EACH ROW EXECUTE FUNCTION audit_write('dispute');
CREATE FUNCTION keep_resolution() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public
AS $$
BEGIN
    IF OLD.outcome IS NOT NULL THEN
        RAISE EXCEPTION 'dispute % is resolved', OLD.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'disputes_resolved_once';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER disputes_resolved_once BEFORE UPDATE ON disputes
    FOR EACH ROW EXECUTE FUNCTION keep_resolution();


-- Refunds: of the payment (dong, from the merchant), of what came too much (token, payer_excess), of
-- what waits in suspense (token). token and token_amount_minor are what is sent, to destination.

ALTER TABLE refunds
    ADD COLUMN source text NOT NULL DEFAULT 'payment'
        CHECK (source IN ('payment', 'excess', 'suspense')),
    ADD COLUMN token text CHECK (token IN ('USDC', 'USDT')),
    ADD COLUMN token_amount_minor bigint CHECK (token_amount_minor >= 0),
    ADD COLUMN destination text CHECK (length(destination) BETWEEN 1 AND 200),
    ADD COLUMN signature text UNIQUE CHECK (length(signature) BETWEEN 1 AND 200),
    ADD COLUMN requested_by text,
    ADD COLUMN failure_reason text CHECK (length(failure_reason) BETWEEN 1 AND 1000),
    DROP CONSTRAINT refunds_asset_check,
    ADD CONSTRAINT refunds_asset CHECK (
        CASE source WHEN 'payment' THEN asset = 'VND' ELSE asset = token END);
UPDATE refunds AS r
SET token = p.asset,
    token_amount_minor = (p.asset_amount_minor::numeric * r.amount_minor / p.amount_minor)::bigint,
    destination = p.payer_address,
    requested_by = 'release_0_1'
FROM payments AS p WHERE p.id = r.payment_id;
ALTER TABLE refunds
    ALTER COLUMN source DROP DEFAULT,
    ALTER COLUMN token SET NOT NULL,
    ALTER COLUMN token_amount_minor SET NOT NULL,
    ALTER COLUMN requested_by SET NOT NULL;
GRANT INSERT (source, token, token_amount_minor, destination, requested_by) ON refunds TO giovang_api;
GRANT INSERT (id, merchant_id, payment_id, amount_minor, asset, reason, source, token,
              token_amount_minor, destination, requested_by) ON refunds TO giovang_operator;
GRANT UPDATE (status, signature, destination, failure_reason) ON refunds TO giovang_operator;

-- Never more than there is, however many ask at once: the payment's row lock puts the refunds of one
-- payment in a queue. Of what waits in suspense or came too much, the ledger itself says how much.
CREATE OR REPLACE FUNCTION refund_within_payment() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
DECLARE
    paid payments;
    returned bigint;
    limit_minor bigint := 0;
BEGIN
    SELECT * INTO STRICT paid FROM payments WHERE id = NEW.payment_id FOR NO KEY UPDATE;
    SELECT coalesce(sum(amount_minor), 0) INTO returned
    FROM refunds
    WHERE payment_id = NEW.payment_id AND source = NEW.source AND asset = NEW.asset
      AND status <> 'failed';

    IF NEW.source = 'payment' THEN
        IF paid.status IN ('completed', 'resolved') AND NEW.asset = paid.currency THEN
            limit_minor := paid.settled_minor;
        END IF;
    ELSIF NEW.source = 'excess' OR paid.status NOT IN ('created', 'pending', 'confirming') THEN
        limit_minor := held_for_payment(NEW.payment_id, NEW.source, NEW.asset);
    END IF;

    IF paid.merchant_id <> NEW.merchant_id OR returned + NEW.amount_minor > limit_minor THEN
        RAISE EXCEPTION 'refund of % exceeds what payment % can return', NEW.amount_minor, paid.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'refunds_within_payment';
    END IF;
    RETURN NEW;
END
$$;

-- What the ledger ever set aside for a payment as `source` (excess or suspense), less what was used
-- for it, before refunds; in units of the token, and in the books of the payment's mode alone.
CREATE FUNCTION held_for_payment(payment text, source text, token text) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
BEGIN
    IF NOT (coalesce(giovang_tenant(), '') = '' AND session_user <> 'giovang_api')
       AND giovang_tenant() IS DISTINCT FROM (SELECT merchant_id FROM payments WHERE id = payment) THEN
        RETURN 0;
    END IF;
    RETURN coalesce((
        SELECT -sum(p.amount_minor)
        FROM ledger_entries AS e
        JOIN ledger_postings AS p ON p.entry_id = e.id
        JOIN ledger_accounts AS a ON a.id = p.account_id
        WHERE e.payment_id = payment AND e.refund_id IS NULL AND p.asset = token
          AND a.kind = CASE source WHEN 'excess' THEN 'payer_excess' ELSE 'suspense' END
          AND a.mode = (SELECT mode FROM payments WHERE id = payment)), 0);
END
$$;
GRANT EXECUTE ON FUNCTION held_for_payment(text, text, text)
    TO giovang_api, giovang_operator, giovang_watcher;


-- Events.

ALTER TABLE payment_events RENAME TO merchant_events;
ALTER INDEX payment_events_pkey RENAME TO merchant_events_pkey;
ALTER INDEX payment_events_by_payment RENAME TO merchant_events_by_payment;
ALTER TRIGGER payment_events_are_history ON merchant_events RENAME TO merchant_events_are_history;
ALTER TRIGGER payment_events_stay ON merchant_events RENAME TO merchant_events_stay;
ALTER TABLE merchant_events
    ADD COLUMN mode text NOT NULL DEFAULT 'test' CHECK (mode IN ('test', 'live')),
    ADD COLUMN refund_id text REFERENCES refunds,
    ADD COLUMN payout_id text REFERENCES payouts,
    ALTER COLUMN payment_id DROP NOT NULL;
-- One sequence a merchant became one a mode. Numbers given before stay as they are, so where a
-- merchant had used both modes, the numbers of the past have gaps.
ALTER TABLE merchant_events DISABLE TRIGGER merchant_events_are_history;
UPDATE merchant_events AS e SET mode = 'live'
FROM payments AS p WHERE p.id = e.payment_id AND p.mode = 'live';
ALTER TABLE merchant_events ENABLE TRIGGER merchant_events_are_history;
ALTER TABLE merchant_events
    ALTER COLUMN mode DROP DEFAULT,
    DROP CONSTRAINT merchant_events_pkey,
    ADD CONSTRAINT merchant_events_pkey PRIMARY KEY (merchant_id, mode, seq);

ALTER TABLE merchant_event_counters
    ADD COLUMN mode text NOT NULL DEFAULT 'test' CHECK (mode IN ('test', 'live')),
    DROP CONSTRAINT merchant_event_counters_pkey,
    ADD CONSTRAINT merchant_event_counters_pkey PRIMARY KEY (merchant_id, mode);
INSERT INTO merchant_event_counters (merchant_id, mode, last_seq)
SELECT merchant_id, 'live', last_seq FROM merchant_event_counters;
ALTER TABLE merchant_event_counters ALTER COLUMN mode DROP DEFAULT;

CREATE OR REPLACE FUNCTION open_event_counter() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
BEGIN
    INSERT INTO merchant_event_counters (merchant_id, mode)
    VALUES (NEW.id, 'test'), (NEW.id, 'live');
    RETURN NULL;
END
$$;

DROP TRIGGER payments_event_first ON payments;
DROP TRIGGER payments_event ON payments;
DROP FUNCTION record_payment_event();

-- One event for each state a subject reaches, its data the row as it stood at that moment. A refund
-- is of its payment's mode.
CREATE FUNCTION record_event() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    subject CONSTANT text := TG_ARGV[0];
    moved CONSTANT boolean := TG_OP = 'INSERT' OR NEW.status <> OLD.status;
    new_row CONSTANT jsonb := to_jsonb(NEW);
    of_payment text;
    event_mode text;
    next_seq bigint;
BEGIN
    CASE subject
        WHEN 'payment' THEN of_payment := NEW.id; event_mode := NEW.mode;
        WHEN 'payout' THEN event_mode := NEW.mode;
        WHEN 'refund' THEN
            of_payment := NEW.payment_id;
            SELECT mode INTO STRICT event_mode FROM payments WHERE id = of_payment;
    END CASE;

    UPDATE merchant_event_counters SET last_seq = last_seq + 1
    WHERE merchant_id = NEW.merchant_id AND mode = event_mode
    RETURNING last_seq INTO STRICT next_seq;

    INSERT INTO merchant_events (merchant_id, mode, seq, id, payment_id, refund_id, payout_id, type,
                                 data, created_at)
    VALUES (NEW.merchant_id, event_mode, next_seq, giovang_id('evt'), of_payment,
            CASE subject WHEN 'refund' THEN NEW.id END, CASE subject WHEN 'payout' THEN NEW.id END,
            subject || '.' || CASE WHEN moved THEN NEW.status ELSE 'updated' END, new_row,
            CASE WHEN moved THEN NEW.status_at ELSE NEW.updated_at END);
    RETURN NULL;
END
$$;
CREATE TRIGGER payments_event_first AFTER INSERT ON payments
    FOR EACH ROW EXECUTE FUNCTION record_event('payment');
CREATE TRIGGER payments_event AFTER UPDATE ON payments
    FOR EACH ROW WHEN (
        (OLD.status, OLD.exception, OLD.exception_outcome, OLD.received_minor, OLD.description,
         OLD.order_id, OLD.metadata)
        IS DISTINCT FROM
        (NEW.status, NEW.exception, NEW.exception_outcome, NEW.received_minor, NEW.description,
         NEW.order_id, NEW.metadata))
    EXECUTE FUNCTION record_event('payment');
CREATE TRIGGER refunds_event_first AFTER INSERT ON refunds
    FOR EACH ROW EXECUTE FUNCTION record_event('refund');
CREATE TRIGGER refunds_event AFTER UPDATE ON refunds
    FOR EACH ROW WHEN (OLD.status IS DISTINCT FROM NEW.status)
    EXECUTE FUNCTION record_event('refund');


-- What was promised has its entry and its hold. Deferred, so that rows may be written in any order.

DROP TRIGGER refunds_requested_is_booked ON refunds;
DROP TRIGGER payouts_requested_is_booked ON payouts;
DROP TRIGGER payments_completed_is_booked ON payments;
DROP FUNCTION must_be_booked();

-- A payment that says it was paid has the entry that says so, not reversed, and one that failed keeps
-- none. Asked at commit of the payment as it then stands, since one unit of work may take it through
-- several statuses.
CREATE FUNCTION payment_is_booked() RETURNS trigger
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
CREATE CONSTRAINT TRIGGER payments_completed_is_booked AFTER UPDATE OF status ON payments
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.status <> OLD.status AND NEW.status IN ('completed', 'escrow_held', 'resolved'))
    EXECUTE FUNCTION payment_is_booked();

-- A subject and its holds agree: money that will leave is pending on the very account it leaves from,
-- money that left is posted, and of what will not leave nothing is held. Asked whenever either
-- changes.
CREATE FUNCTION holds_agree() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
DECLARE
    subject_id text;
    wanted text;
    amount bigint;
    held_path text;
    pending bigint;
    pending_minor bigint;
    posted bigint;
    posted_minor bigint;
    elsewhere bigint;
BEGIN
    IF TG_TABLE_NAME = 'ledger_holds' THEN
        subject_id := coalesce(NEW.payment_id, NEW.refund_id, NEW.payout_id);
    ELSE
        subject_id := NEW.id;
    END IF;
    CASE left(subject_id, 4)
        WHEN 'rfd_' THEN
            SELECT CASE r.status WHEN 'requested' THEN 'pending' WHEN 'completed' THEN 'posted' END,
                   r.amount_minor,
                   CASE r.source
                       WHEN 'payment' THEN
                           ledger_path(p.mode, r.merchant_id, 'merchant_available', r.asset, '')
                       WHEN 'excess' THEN
                           ledger_path(p.mode, r.merchant_id, 'payer_excess', r.asset, '')
                       ELSE ledger_path(p.mode, NULL, 'suspense', r.asset, '') END
            INTO STRICT wanted, amount, held_path
            FROM refunds AS r JOIN payments AS p ON p.id = r.payment_id WHERE r.id = subject_id;
        WHEN 'pyo_' THEN
            SELECT CASE WHEN status IN ('requested', 'approved', 'sent') THEN 'pending'
                        WHEN status = 'settled' THEN 'posted' END,
                   amount_minor, ledger_path(mode, merchant_id, 'merchant_available', asset, '')
            INTO STRICT wanted, amount, held_path FROM payouts WHERE id = subject_id;
        WHEN 'pay_' THEN
            SELECT CASE WHEN status IN ('escrow_held', 'awaiting_release', 'disputed') THEN 'pending'
                        WHEN status IN ('completed', 'resolved') AND is_escrow THEN 'posted' END,
                   CASE WHEN status <> 'resolved' THEN settled_minor END,
                   ledger_path(mode, merchant_id, 'escrow_liability_pool', currency, '')
            INTO STRICT wanted, amount, held_path FROM payments WHERE id = subject_id;
    END CASE;

    SELECT count(*) FILTER (WHERE h.status = 'pending'), count(*) FILTER (WHERE h.status = 'posted'),
           sum(h.amount_minor) FILTER (WHERE h.status = 'pending'),
           sum(h.amount_minor) FILTER (WHERE h.status = 'posted'),
           count(*) FILTER (WHERE h.status IN ('pending', 'posted') AND a.path <> held_path)
    INTO pending, posted, pending_minor, posted_minor, elsewhere
    FROM ledger_holds AS h JOIN ledger_accounts AS a ON a.id = h.account_id
    WHERE coalesce(h.payment_id, h.refund_id, h.payout_id) = subject_id;

    IF elsewhere > 0
       OR (wanted = 'pending' AND (pending, posted, pending_minor) IS DISTINCT FROM (1::bigint, 0::bigint, amount))
       OR (wanted = 'posted' AND ((pending, posted) <> (0, 1) OR posted_minor <> amount))
       OR (wanted IS NULL AND (pending, posted) <> (0, 0)) THEN
        RAISE EXCEPTION '%: its holds do not agree with what it promises', subject_id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_holds_agree';
    END IF;

    -- NEW has these columns in a hold only, so this cannot be one condition with the one above.
    IF TG_TABLE_NAME = 'ledger_holds' THEN
        IF NEW.status = 'posted' AND NOT EXISTS (
               SELECT FROM ledger_entries AS e JOIN ledger_postings AS p ON p.entry_id = e.id
               WHERE e.id = NEW.entry_id AND p.account_id = NEW.account_id
                 AND (NEW.payment_id IS NULL OR e.payment_id = NEW.payment_id)
                 AND e.refund_id IS NOT DISTINCT FROM NEW.refund_id
                 AND e.payout_id IS NOT DISTINCT FROM NEW.payout_id
               HAVING sum(p.amount_minor) = NEW.amount_minor) THEN
            RAISE EXCEPTION 'hold %: an entry of its subject must move its amount', NEW.id
                USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_holds_posted_in_full';
        END IF;
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER ledger_holds_agree AFTER INSERT OR UPDATE OF status ON ledger_holds
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION holds_agree();
CREATE CONSTRAINT TRIGGER refunds_hold AFTER INSERT OR UPDATE OF status ON refunds
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION holds_agree();
CREATE CONSTRAINT TRIGGER payouts_hold AFTER INSERT OR UPDATE OF status, amount_minor ON payouts
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION holds_agree();
CREATE CONSTRAINT TRIGGER payments_hold AFTER UPDATE OF status, settled_minor ON payments
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.is_escrow) EXECUTE FUNCTION holds_agree();


-- What the desk took of a payer's tokens for a payment, less what a dispute gave back; before refunds.
-- The API's role cannot see the desk's account, and a refund of the payment returns a share of this.
CREATE FUNCTION taken_for_payment(payment text) RETURNS TABLE (token text, amount_minor bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
#variable_conflict use_column
BEGIN
    IF NOT (coalesce(giovang_tenant(), '') = '' AND session_user <> 'giovang_api')
       AND giovang_tenant() IS DISTINCT FROM (SELECT merchant_id FROM payments WHERE id = payment) THEN
        RETURN;
    END IF;
    RETURN QUERY
    SELECT p.asset, (-sum(p.amount_minor))::bigint
    FROM ledger_entries AS e
    JOIN ledger_postings AS p ON p.entry_id = e.id
    JOIN ledger_accounts AS a ON a.id = p.account_id
    WHERE e.payment_id = payment AND e.refund_id IS NULL AND a.kind = 'liquidity'
      AND a.asset <> 'VND'
    GROUP BY p.asset
    HAVING sum(p.amount_minor) < 0;
END
$$;
GRANT EXECUTE ON FUNCTION taken_for_payment(text)
    TO giovang_api, giovang_operator, giovang_watcher;


-- Receipts that name nobody are assigned by an admin, once.

CREATE INDEX chain_transfers_unassigned ON chain_transfers (slot, signature, token_account)
    WHERE payment_id IS NULL AND commitment = 'finalized';
GRANT UPDATE (payment_id) ON chain_transfers TO giovang_operator;

CREATE OR REPLACE FUNCTION keep_finalized() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    IF OLD.commitment = 'finalized'
       AND (NEW.commitment <> 'finalized'
            OR (OLD.payment_id IS NOT NULL AND NEW.payment_id IS DISTINCT FROM OLD.payment_id)) THEN
        RAISE EXCEPTION 'transfer % is final', OLD.signature
            USING ERRCODE = 'check_violation', CONSTRAINT = 'chain_transfers_finalized_stays';
    END IF;
    RETURN NEW;
END
$$;
