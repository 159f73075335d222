-- What a payer's page is told as it happens.

-- The number of a payment's own last event. Every image of the row carries it, in the log and in
-- events' data alike, so whoever hears of a payment knows whether a step is new, known, or a gap.
ALTER TABLE payments ADD COLUMN event_seq bigint NOT NULL DEFAULT 0;
ALTER TABLE payments DISABLE TRIGGER payments_audit;
ALTER TABLE payments DISABLE TRIGGER payments_guard;
UPDATE payments AS p SET event_seq = own.count
FROM (SELECT payment_id, count(*) FROM merchant_events
      WHERE payment_id IS NOT NULL AND refund_id IS NULL AND payout_id IS NULL
      GROUP BY payment_id) AS own
WHERE own.payment_id = p.id;
ALTER TABLE payments ENABLE TRIGGER payments_guard;
ALTER TABLE payments ENABLE TRIGGER payments_audit;
-- A new payment's first event is written with it.
ALTER TABLE payments
    ALTER COLUMN event_seq SET DEFAULT 1,
    ADD CONSTRAINT payments_event_seq CHECK (event_seq >= 0);

CREATE FUNCTION count_payment_event() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public
AS $$
BEGIN
    NEW.event_seq := OLD.event_seq + 1;
    RETURN NEW;
END
$$;
-- Triggers of one kind run by name: this one after payments_guard and payments_stamp, so that it
-- judges the row as it will be written.
CREATE TRIGGER payments_stamp_event BEFORE UPDATE ON payments
    FOR EACH ROW WHEN (
        (OLD.status, OLD.exception, OLD.exception_outcome, OLD.received_minor, OLD.description,
         OLD.order_id, OLD.metadata)
        IS DISTINCT FROM
        (NEW.status, NEW.exception, NEW.exception_outcome, NEW.received_minor, NEW.description,
         NEW.order_id, NEW.metadata))
    EXECUTE FUNCTION count_payment_event();
-- What is an event is said once, above: one is recorded exactly where the number was raised.
DROP TRIGGER payments_event ON payments;
CREATE TRIGGER payments_event AFTER UPDATE ON payments
    FOR EACH ROW WHEN (OLD.event_seq <> NEW.event_seq)
    EXECUTE FUNCTION record_event('payment');

-- Steps of payments that pages watch, across merchants, in one question: who may watch which was
-- decided before, and a step tells no more than its payer may see. Up to `most` steps after a number;
-- only the last step after a null, or after a number that the payment has not reached. Numbers are counted, since the data of events from
-- before this revision does not carry them.
CREATE FUNCTION live_steps(ids text[], afters bigint[], most int)
RETURNS TABLE (payment_id text, seq bigint, type text, created_at timestamptz, payment jsonb)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    SELECT watched.id, step.seq, step.type, step.created_at,
           jsonb_build_object(
               'id', watched.id,
               'status', step.data -> 'status',
               'exception', step.data -> 'exception',
               'exception_outcome', step.data -> 'exception_outcome',
               'asset', step.data -> 'asset',
               'asset_amount_minor', step.data -> 'asset_amount_minor',
               'received_minor', step.data -> 'received_minor',
               'settled_minor', coalesce(step.data -> 'settled_minor', '0'),
               'amount_minor', step.data -> 'amount_minor',
               'currency', step.data -> 'currency',
               'expires_at', step.data -> 'expires_at',
               'is_escrow', coalesce(step.data -> 'is_escrow', 'false'),
               'updated_at', step.data -> 'updated_at')
    FROM unnest(ids, afters) AS watched (id, after)
    JOIN payments AS p ON p.id = watched.id AND p.event_seq IS DISTINCT FROM watched.after
    CROSS JOIN LATERAL (
        SELECT row_number() OVER (ORDER BY e.seq) AS seq, e.type, e.created_at, e.data
        FROM merchant_events AS e
        WHERE e.payment_id = watched.id AND e.refund_id IS NULL AND e.payout_id IS NULL
    ) AS step
    WHERE CASE WHEN watched.after < p.event_seq
               THEN step.seq > watched.after AND step.seq <= watched.after + most
               ELSE step.seq = p.event_seq END
    ORDER BY watched.id, step.seq;
END
$$;
GRANT EXECUTE ON FUNCTION live_steps(text[], bigint[], int) TO giovang_api;
