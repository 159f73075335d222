-- Payouts with two people: one asks, another approves what exactly was asked, then money moves.

ALTER TABLE payouts
    ADD COLUMN mode text NOT NULL DEFAULT 'test' CHECK (mode IN ('test', 'live')),
    ADD COLUMN revision int NOT NULL DEFAULT 1 CHECK (revision > 0),
    ADD COLUMN requested_by text NOT NULL DEFAULT 'release_0_1',
    ADD COLUMN approved_by text,
    ADD COLUMN approved_revision int,
    ADD COLUMN approved_at timestamptz,
    ADD COLUMN bank_reference text CHECK (length(bank_reference) BETWEEN 1 AND 200),
    ADD COLUMN reason text CHECK (length(reason) BETWEEN 1 AND 1000);
UPDATE payouts AS p
SET mode = coalesce((SELECT a.mode FROM ledger_accounts AS a
                     WHERE a.merchant_id = p.merchant_id AND a.kind = 'payouts_reserved'), 'test'),
    requested_by = 'release_0_1_asked',
    approved_by = CASE WHEN status IN ('approved', 'sent', 'settled') THEN 'release_0_1' END,
    approved_revision = CASE WHEN status IN ('approved', 'sent', 'settled') THEN 1 END,
    approved_at = CASE WHEN status IN ('approved', 'sent', 'settled') THEN status_at END;
ALTER TABLE payouts
    ALTER COLUMN mode DROP DEFAULT,
    ALTER COLUMN requested_by DROP DEFAULT,
    -- A key may ask; only a person may approve, never the one who asked, and never another revision.
    ADD CONSTRAINT payouts_second_person CHECK (
        approved_by IS NULL
        OR (approved_by <> requested_by
            AND (approved_by ~ '^(stf|adm)_' OR approved_by = 'release_0_1'))),
    ADD CONSTRAINT payouts_approved_revision CHECK (
        num_nonnulls(approved_by, approved_revision, approved_at) IN (0, 3)
        AND (approved_revision IS NULL OR approved_revision = revision)),
    ADD CONSTRAINT payouts_approved CHECK (
        status NOT IN ('approved', 'sent', 'settled') OR approved_by IS NOT NULL);
DROP INDEX payouts_by_merchant;
CREATE INDEX payouts_by_merchant ON payouts (merchant_id, mode, id);
CREATE INDEX payouts_open ON payouts (id) WHERE status IN ('requested', 'approved', 'sent');

GRANT INSERT (mode, requested_by) ON payouts TO giovang_api;
GRANT UPDATE (status, amount_minor, destination, revision, requested_by, approved_by,
              approved_revision, approved_at, reason) ON payouts TO giovang_api;
GRANT UPDATE (status, approved_by, approved_revision, approved_at, bank_reference, reason)
    ON payouts TO giovang_operator;
GRANT UPDATE (status, reason) ON payouts TO giovang_watcher;

-- Terms change only before approval, and each change is a revision of its own with its own asker.
CREATE FUNCTION guard_payout_terms() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public
AS $$
DECLARE
    changed CONSTANT boolean :=
        (OLD.amount_minor, OLD.destination) IS DISTINCT FROM (NEW.amount_minor, NEW.destination);
BEGIN
    IF (changed AND (OLD.status <> 'requested' OR NEW.status <> 'requested'))
       OR NEW.revision <> OLD.revision + changed::int
       OR (NOT changed AND NEW.requested_by <> OLD.requested_by)
       OR (OLD.approved_by IS NOT NULL
           AND (NEW.approved_by, NEW.approved_revision, NEW.approved_at)
               IS DISTINCT FROM (OLD.approved_by, OLD.approved_revision, OLD.approved_at))
       OR (NEW.approved_by IS DISTINCT FROM OLD.approved_by AND NEW.status <> 'approved') THEN
        RAISE EXCEPTION 'payout %: its terms changed without a revision, or after approval', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payouts_terms';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER payouts_terms BEFORE UPDATE ON payouts
    FOR EACH ROW EXECUTE FUNCTION guard_payout_terms();

CREATE TRIGGER payouts_event_first AFTER INSERT ON payouts
    FOR EACH ROW EXECUTE FUNCTION record_event('payout');
CREATE TRIGGER payouts_event AFTER UPDATE ON payouts
    FOR EACH ROW WHEN ((OLD.status, OLD.revision) IS DISTINCT FROM (NEW.status, NEW.revision))
    EXECUTE FUNCTION record_event('payout');


-- What the release before had reserved by an entry is given back by its reversal and held instead.
-- Its one set of books may hold a refund of the other mode than the books have become: nothing in
-- the books of its own mode could be held for it, so it ends.
DO $$
DECLARE
    open_one record;
BEGIN
    FOR open_one IN
        SELECT p.id, p.merchant_id, p.amount_minor, p.asset, p.mode, e.id AS entry_id,
               NULL::text AS refund_id, p.id AS payout_id, false AS is_astray
        FROM payouts AS p
        JOIN ledger_entries AS e ON e.payout_id = p.id AND e.kind = 'payout_requested'
        WHERE p.status IN ('requested', 'approved', 'sent')
        UNION ALL
        SELECT r.id, r.merchant_id, r.amount_minor, r.asset, a.mode, e.id, r.id, NULL,
               paid.mode <> a.mode
        FROM refunds AS r
        JOIN payments AS paid ON paid.id = r.payment_id
        JOIN ledger_entries AS e ON e.refund_id = r.id AND e.kind = 'refund_requested'
        JOIN ledger_accounts AS a
            ON a.merchant_id = r.merchant_id AND a.kind = 'refunds_payable' AND a.asset = r.asset
        WHERE r.status = 'requested'
        ORDER BY id
    LOOP
        PERFORM ledger_reverse_entry(giovang_id('ent'), open_one.entry_id,
                                     'held_instead:' || open_one.id, 'held instead of moved');
        IF open_one.is_astray THEN
            UPDATE refunds
            SET status = 'failed', failure_reason = 'the books of its mode began without its money'
            WHERE id = open_one.id;
            CONTINUE;
        END IF;
        PERFORM ledger_place_hold(
            giovang_id('hld'), open_one.mode, open_one.merchant_id, 'merchant_available',
            open_one.asset, open_one.amount_minor, 'held:' || open_one.id,
            NULL, open_one.refund_id, open_one.payout_id, NULL);
    END LOOP;
END
$$;
SET CONSTRAINTS ALL IMMEDIATE;
