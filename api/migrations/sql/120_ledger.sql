-- Modes, shards and holds: books of test and live apart, platform accounts that are never hot, and
-- money that is promised before it moves.
--
--   * An account has a path, `mode/owner/kind/asset/shard`, by which it is found and locked. All
--     legs of an entry are of one mode.
--   * The platform's accounts are 32 shards each, so that payments of different merchants do not
--     wait for each other. What leaves the pool is drawn from as many shards as it takes.
--   * A hold takes an amount out of what an account has available. It ends posted by the one entry
--     that moves exactly that amount, voided, or expired; and it always agrees with the refund,
--     payout or escrow payment it stands for.
--   * giovang_api places holds and may void them. It books no entry any more.

-- Who may make a step: giovang_api only those marked. The watcher and the operator may make all.
ALTER TABLE status_transitions ADD COLUMN api_may boolean NOT NULL DEFAULT false;
UPDATE status_transitions SET api_may = true
WHERE (subject, from_status, to_status) IN (
    ('payment', 'created', 'pending'),
    ('payment', 'escrow_held', 'awaiting_release'),
    ('payment', 'escrow_held', 'disputed'),
    ('payment', 'awaiting_release', 'disputed'),
    ('payout', 'requested', 'approved'),
    ('payout', 'requested', 'cancelled'),
    ('payout', 'approved', 'cancelled'));
INSERT INTO status_transitions (subject, from_status, to_status, api_may) VALUES
    ('payment', 'expired', 'confirming', false),    -- money that came late is accepted
    ('hold', 'pending', 'posted',  false),
    ('hold', 'pending', 'voided',  true),
    ('hold', 'pending', 'expired', false);

-- As in 010, and a step that is not the API's to make is refused to it.
CREATE OR REPLACE FUNCTION guard_status() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public
AS $$
DECLARE
    open_to_api boolean;
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.status <> TG_ARGV[1] THEN
            RAISE EXCEPTION 'a % begins as %, not as %', TG_ARGV[0], TG_ARGV[1], NEW.status
                USING ERRCODE = 'check_violation', CONSTRAINT = 'status_transitions';
        END IF;
        RETURN NEW;
    END IF;

    IF NEW.status <> OLD.status THEN
        SELECT allowed.api_may INTO open_to_api FROM status_transitions AS allowed
        WHERE allowed.subject = TG_ARGV[0]
          AND allowed.from_status = OLD.status
          AND allowed.to_status = NEW.status;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'a % may not go from % to %', TG_ARGV[0], OLD.status, NEW.status
                USING ERRCODE = 'check_violation', CONSTRAINT = 'status_transitions';
        END IF;
        IF NOT open_to_api AND current_user = 'giovang_api' THEN
            RAISE EXCEPTION 'giovang_api may not move a % from % to %',
                TG_ARGV[0], OLD.status, NEW.status
                USING ERRCODE = 'insufficient_privilege', CONSTRAINT = 'status_transitions';
        END IF;
        IF NEW.status_at = OLD.status_at THEN
            NEW.status_at := clock_timestamp();
        END IF;
    END IF;
    IF NEW.updated_at = OLD.updated_at THEN
        NEW.updated_at := clock_timestamp();
    END IF;
    RETURN NEW;
END
$$;


-- On the hot path: the same plan is right for every row, and making it anew each time is a tenth of
-- the work.
ALTER FUNCTION audit_write() SET plan_cache_mode = force_generic_plan;


-- Accounts.

ALTER TABLE ledger_accounts
    ADD COLUMN mode text NOT NULL DEFAULT 'test' CHECK (mode IN ('test', 'live')),
    ADD COLUMN shard smallint NOT NULL DEFAULT 0,
    ADD COLUMN held_minor bigint NOT NULL DEFAULT 0 CHECK (held_minor >= 0);

-- The release before kept one set of books. They are the live ones where live money was ever booked.
UPDATE ledger_accounts SET mode = 'live'
WHERE EXISTS (SELECT FROM ledger_entries AS e JOIN payments AS p ON p.id = e.payment_id
              WHERE p.mode = 'live');

ALTER TABLE ledger_accounts
    ALTER COLUMN mode DROP DEFAULT,
    ADD COLUMN path text NOT NULL GENERATED ALWAYS AS (
        mode || '/' || coalesce(merchant_id, 'platform') || '/' || kind || '/' || asset
        || '/' || shard::text) STORED,
    ADD CONSTRAINT ledger_accounts_path UNIQUE (path),
    DROP CONSTRAINT ledger_accounts_merchant_id_kind_asset_key,
    ADD CONSTRAINT ledger_accounts_shard CHECK (
        shard BETWEEN 0 AND 31 AND (shard = 0 OR (merchant_id IS NULL AND kind <> 'suspense'))),
    DROP CONSTRAINT ledger_accounts_owner,
    ADD CONSTRAINT ledger_accounts_owner CHECK (
        (merchant_id IS NOT NULL
            AND kind IN ('merchant_available', 'escrow_liability_pool', 'payer_excess',
                         -- before there were holds; both are empty now
                         'payouts_reserved', 'refunds_payable'))
        OR (merchant_id IS NULL
            AND kind IN ('crypto_pool', 'liquidity', 'fee_revenue', 'spread_revenue', 'rounding',
                         'suspense', 'chain_loss'))),
    -- Tokens held never fall below none; a debt never turns into a claim, and what is held of it is
    -- owed. Liquidity, the desk that trades tokens for dong, and roundings stand on either side;
    -- chain_loss stands debit: what merchants kept of money that the chain took back.
    DROP CONSTRAINT ledger_accounts_never_overdrawn,
    ADD CONSTRAINT ledger_accounts_never_overdrawn CHECK (
        CASE kind
            WHEN 'liquidity'   THEN held_minor = 0
            WHEN 'rounding'    THEN held_minor = 0
            WHEN 'crypto_pool' THEN posted_minor >= 0 AND held_minor = 0
            WHEN 'chain_loss'  THEN posted_minor >= 0 AND held_minor = 0
            ELSE posted_minor + held_minor <= 0
        END);
CREATE INDEX ledger_accounts_by_merchant ON ledger_accounts (merchant_id);

DROP TRIGGER ledger_accounts_keep_their_name ON ledger_accounts;
CREATE TRIGGER ledger_accounts_keep_their_name
    BEFORE UPDATE OF id, merchant_id, mode, kind, asset, shard ON ledger_accounts
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

DROP FUNCTION ledger_post_entry(text, text, text, text, text, text, text, text, text,
                                text[], text[], text[], bigint[]);
DROP FUNCTION ledger_account(text, text, text);

-- The path of an account. Platform accounts but suspense have shards; `shard_key` picks one. A body
-- that is parsed here, once, needs no search_path of its own, and PostgreSQL can inline it.
CREATE FUNCTION ledger_path(account_mode text, merchant text, kind text, asset text, shard_key text)
RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN account_mode || '/' || coalesce(merchant, 'platform') || '/' || kind || '/' || asset || '/'
    || CASE WHEN merchant IS NULL AND kind <> 'suspense'
            THEN (hashtextextended(shard_key, 0) & 31)::text ELSE '0' END;

-- Make the accounts of these paths that are not there yet.
CREATE FUNCTION ledger_open_accounts(paths text[]) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, public
AS $$
BEGIN
    INSERT INTO ledger_accounts (id, merchant_id, mode, kind, asset, shard)
    SELECT giovang_id('acc'), nullif(part[2], 'platform'), part[1], part[3], part[4],
           part[5]::smallint
    FROM (SELECT DISTINCT wanted.path, string_to_array(wanted.path, '/') AS part
          FROM unnest(paths) AS wanted (path)
          WHERE NOT EXISTS (SELECT FROM ledger_accounts AS a WHERE a.path = wanted.path)
          ORDER BY wanted.path) AS missing
    ON CONFLICT (path) DO NOTHING;
END
$$;


-- Entries.

ALTER TABLE ledger_entries
    DROP CONSTRAINT ledger_entries_kind_check,
    ADD CONSTRAINT ledger_entries_kind CHECK (kind IN (
        'payment_completed', 'payment_received', 'payment_overpaid',
        'transfer_suspended', 'transfer_assigned', 'transfer_returned',
        'escrow_held', 'escrow_released', 'escrow_resolved',
        'refund_completed', 'payout_completed', 'reversal', 'loss_covered', 'loss_recovered',
        -- before there were holds
        'refund_requested', 'refund_failed', 'payout_requested', 'payout_cancelled'));

-- Balances follow postings; sum zero is checked with them. Set-based, so a bulk load pays once a
-- statement and not once a row. Every statement must leave the entries it touches balanced: checked
-- only at commit, a check could be passed early (SET CONSTRAINTS) and a leg added after it. Legs of
-- earlier statements balanced by themselves, so those of this one are all there is to sum.
CREATE OR REPLACE FUNCTION ledger_apply_postings() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    culprit text;
BEGIN
    SELECT entry_id || ': ' || asset || ' ' || sum(amount_minor) INTO culprit
    FROM fresh GROUP BY entry_id, asset HAVING sum(amount_minor) <> 0 LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'entry % does not balance', culprit
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_entries_sum_zero';
    END IF;

    -- A foreign key looks past row-level security; this does not.
    SELECT fresh.entry_id INTO culprit
    FROM fresh JOIN ledger_accounts AS account ON account.id = fresh.account_id
    GROUP BY fresh.entry_id
    HAVING bool_or(account.merchant_id IS DISTINCT FROM fresh.merchant_id)
        OR min(account.mode) <> max(account.mode)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'entry %: a posting carries the merchant of its account, and all are of one mode',
            culprit USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_postings_merchant';
    END IF;

    UPDATE ledger_accounts AS account
    SET posted_minor = account.posted_minor + moved.amount_minor
    FROM (SELECT account_id, sum(amount_minor)::bigint AS amount_minor
          FROM fresh GROUP BY account_id) AS moved
    WHERE account.id = moved.account_id;
    RETURN NULL;
END
$$;

-- What is left for the end: an entry has postings at all.
DROP TRIGGER ledger_postings_sum_zero ON ledger_postings;
CREATE OR REPLACE FUNCTION ledger_check_balance() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM ledger_postings WHERE entry_id = NEW.id) THEN
        RAISE EXCEPTION 'entry % has no postings', NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_entries_sum_zero';
    END IF;
    RETURN NULL;
END
$$;


-- Holds.

CREATE TABLE ledger_holds (
    id              text PRIMARY KEY CHECK (id ~ '^hld_[0-9a-hjkmnp-tv-z]{26}$'),
    merchant_id     text REFERENCES merchants,
    account_id      text NOT NULL,
    asset           text NOT NULL,
    amount_minor    bigint NOT NULL CHECK (amount_minor > 0),
    status          text NOT NULL DEFAULT 'pending'
                    CHECK (status IN ('pending', 'posted', 'voided', 'expired')),
    idempotency_key text NOT NULL UNIQUE,
    payment_id      text REFERENCES payments,
    refund_id       text REFERENCES refunds,
    payout_id       text REFERENCES payouts,
    entry_id        text UNIQUE REFERENCES ledger_entries,
    expires_at      timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    status_at       timestamptz NOT NULL DEFAULT now(),
    updated_at      timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (account_id, asset) REFERENCES ledger_accounts (id, asset),
    CONSTRAINT ledger_holds_one_subject CHECK (num_nonnulls(payment_id, refund_id, payout_id) = 1),
    CONSTRAINT ledger_holds_posted_by CHECK ((status = 'posted') = (entry_id IS NOT NULL))
);
CREATE UNIQUE INDEX ledger_holds_one_pending ON ledger_holds
    ((coalesce(payment_id, refund_id, payout_id))) WHERE status = 'pending';
CREATE INDEX ledger_holds_by_subject ON ledger_holds ((coalesce(payment_id, refund_id, payout_id)));
CREATE INDEX ledger_holds_by_account ON ledger_holds (account_id) WHERE status = 'pending';
CREATE INDEX ledger_holds_to_expire ON ledger_holds (expires_at) WHERE status = 'pending';
CALL close_tenant_table('ledger_holds');

CREATE TRIGGER ledger_holds_guard BEFORE INSERT OR UPDATE ON ledger_holds
    FOR EACH ROW EXECUTE FUNCTION guard_status('hold', 'pending');
CREATE TRIGGER ledger_holds_keep_their_terms
    BEFORE UPDATE OF id, merchant_id, account_id, asset, amount_minor, idempotency_key,
        payment_id, refund_id, payout_id, created_at ON ledger_holds
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_holds_ended_stay BEFORE UPDATE ON ledger_holds
    FOR EACH ROW WHEN (OLD.status <> 'pending') EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_holds_stay BEFORE DELETE ON ledger_holds
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_holds_are_kept BEFORE TRUNCATE ON ledger_holds
    EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_holds_audit AFTER INSERT OR UPDATE ON ledger_holds
    FOR EACH ROW EXECUTE FUNCTION audit_write('hold');

CREATE FUNCTION ledger_apply_hold() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
BEGIN
    UPDATE ledger_accounts AS account
    SET held_minor = account.held_minor
        + CASE WHEN TG_OP = 'INSERT' THEN NEW.amount_minor ELSE -NEW.amount_minor END
    WHERE account.id = NEW.account_id AND account.merchant_id IS NOT DISTINCT FROM NEW.merchant_id;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'a hold must carry the merchant of its account'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_holds_merchant';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER ledger_holds_take AFTER INSERT ON ledger_holds
    FOR EACH ROW EXECUTE FUNCTION ledger_apply_hold();
CREATE TRIGGER ledger_holds_give_back AFTER UPDATE ON ledger_holds
    FOR EACH ROW WHEN (OLD.status = 'pending' AND NEW.status <> 'pending')
    EXECUTE FUNCTION ledger_apply_hold();

-- Hold an amount of an account's available balance; under the same key and terms it is held once.
CREATE FUNCTION ledger_place_hold(
    hold_id text, hold_mode text, merchant text, account_kind text, account_asset text,
    amount bigint, hold_key text, for_payment text, for_refund text, for_payout text,
    hold_until timestamptz
) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, public
AS $$
DECLARE
    held_path CONSTANT text := ledger_path(hold_mode, merchant, account_kind, account_asset, '');
    placed_id text;
BEGIN
    INSERT INTO ledger_holds (id, merchant_id, account_id, asset, amount_minor, idempotency_key,
                              payment_id, refund_id, payout_id, expires_at)
    SELECT hold_id, a.merchant_id, a.id, a.asset, amount, hold_key,
           for_payment, for_refund, for_payout, hold_until
    FROM ledger_accounts AS a WHERE a.path = held_path
    ON CONFLICT (idempotency_key) DO NOTHING
    RETURNING id INTO placed_id;
    IF FOUND THEN
        RETURN placed_id;
    END IF;

    SELECT h.id INTO placed_id
    FROM ledger_holds AS h JOIN ledger_accounts AS a ON a.id = h.account_id
    WHERE h.idempotency_key = hold_key AND a.path = held_path AND h.amount_minor = amount;
    IF FOUND THEN
        RETURN placed_id;
    END IF;
    IF EXISTS (SELECT FROM ledger_holds WHERE idempotency_key = hold_key) THEN
        RAISE EXCEPTION 'key % already holds something else', hold_key
            USING ERRCODE = 'unique_violation', CONSTRAINT = 'ledger_holds_idempotency_key_key';
    END IF;
    RAISE EXCEPTION 'nothing was ever booked on %', held_path
        USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_accounts_never_overdrawn';
END
$$;


-- Booking.

-- Book one entry; the only way the product writes to the ledger. Legs come as parallel arrays.
-- Returns the entry's id: the one given, or that of the entry booked earlier under the same key
-- with the same legs; the same key with other legs is refused. `posts_hold` ends that hold with this
-- entry. Tokens that leave the pool are drawn from the entry's own shard first, then from the
-- fullest ones.
CREATE FUNCTION ledger_post_entry(
    entry_id text, entry_mode text, entry_merchant text, entry_kind text, entry_key text,
    entry_description text, for_payment text, for_payout text, for_refund text, posts_hold text,
    leg_merchants text[], leg_kinds text[], leg_assets text[], leg_amounts bigint[]
) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, public
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    shard_key CONSTANT text := coalesce(for_payment, entry_key);
    paths     text[];
    amounts   bigint[] := leg_amounts;
    draws     boolean;
    our_paths text[];
    wanted    int;
    booked_id text;
    is_same   boolean;
BEGIN
    -- The entry, its indexes and its audit row need no account, so they are written before any is
    -- locked: what one merchant's entries do one after the other is the less.
    INSERT INTO ledger_entries (id, merchant_id, kind, payment_id, payout_id, refund_id,
                                idempotency_key, description)
    VALUES (entry_id, entry_merchant, entry_kind, for_payment, for_payout, for_refund,
            entry_key, entry_description)
    ON CONFLICT (idempotency_key) DO NOTHING
    RETURNING id INTO booked_id;
    IF NOT FOUND THEN
        -- Shards are left out: what was drawn from the pool then may come from elsewhere now.
        SELECT e.id, NOT EXISTS (
                   SELECT FROM (
                       SELECT coalesce(merchant, '') AS merchant, kind, asset, -sum(amount) AS amount
                       FROM unnest(leg_merchants, leg_kinds, leg_assets, leg_amounts)
                            AS l (merchant, kind, asset, amount) GROUP BY 1, 2, 3
                       UNION ALL
                       SELECT coalesce(a.merchant_id, ''), a.kind, a.asset, sum(p.amount_minor)
                       FROM ledger_postings AS p JOIN ledger_accounts AS a ON a.id = p.account_id
                       WHERE p.entry_id = e.id AND a.mode = entry_mode GROUP BY 1, 2, 3) AS leg
                   GROUP BY leg.merchant, leg.kind, leg.asset HAVING sum(leg.amount) <> 0)
        INTO booked_id, is_same
        FROM ledger_entries AS e
        WHERE e.idempotency_key = entry_key AND e.kind = entry_kind;
        IF is_same IS NOT TRUE THEN
            RAISE EXCEPTION 'key % already booked another entry', entry_key
                USING ERRCODE = 'unique_violation', CONSTRAINT = 'ledger_entries_idempotency_key_key';
        END IF;
        RETURN booked_id;
    END IF;

    SELECT array_agg(path ORDER BY leg), count(DISTINCT path),
           bool_or(kind = 'crypto_pool' AND amount < 0)
    INTO paths, wanted, draws
    FROM (SELECT leg, kind, amount,
                 ledger_path(entry_mode, merchant, kind, asset, shard_key) AS path
          FROM unnest(leg_merchants, leg_kinds, leg_assets, leg_amounts) WITH ORDINALITY
               AS l (merchant, kind, asset, amount, leg)) AS legs;

    -- To open an account may mean to wait for another who opens it, so it comes before any lock.
    IF wanted <> (SELECT count(*) FROM ledger_accounts AS a WHERE a.path = ANY (paths)) THEN
        PERFORM ledger_open_accounts(paths);
    END IF;

    -- Accounts before postings. The other way round each foreign key first takes a weaker lock on
    -- the account and then has to raise it: less than half as many entries a second.
    IF draws THEN
        WITH ours AS (
            SELECT a.path FROM ledger_accounts AS a
            WHERE a.path = ANY (paths)
               OR (a.merchant_id IS NULL AND a.mode = entry_mode AND a.kind = 'crypto_pool'
                   AND a.asset = ANY (leg_assets))
            ORDER BY a.path FOR NO KEY UPDATE)
        SELECT array_agg(ours.path) INTO our_paths FROM ours;
        SELECT array_agg(d.path), array_agg(d.amount) INTO paths, amounts
        FROM ledger_draw(paths, amounts, our_paths) AS d;
    ELSE
        PERFORM FROM ledger_accounts AS a
        WHERE a.path = ANY (paths) ORDER BY a.path FOR NO KEY UPDATE;
    END IF;

    IF posts_hold IS NOT NULL THEN
        UPDATE ledger_holds SET status = 'posted', entry_id = booked_id
        WHERE id = posts_hold AND status = 'pending';
        IF NOT FOUND THEN
            RAISE EXCEPTION 'hold % is not pending', posts_hold
                USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_holds_pending';
        END IF;
    END IF;
    INSERT INTO ledger_postings (entry_id, seq, merchant_id, account_id, asset, amount_minor)
    SELECT booked_id, leg, a.merchant_id, a.id, a.asset, amount
    FROM unnest(paths, amounts) WITH ORDINALITY AS l (path, amount, leg)
    JOIN ledger_accounts AS a ON a.path = l.path;
    RETURN booked_id;
END
$$;

-- The same legs, with what leaves the pool spread over shards that have it, of those that are locked:
-- one opened since by another may hold tokens too, and to wait for it now could be a deadlock.
CREATE FUNCTION ledger_draw(paths text[], amounts bigint[], locked text[])
RETURNS TABLE (path text, amount bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, public
AS $$
#variable_conflict use_column
DECLARE
    leg record;
    missing bigint;
BEGIN
    FOR leg IN SELECT w.path, w.amount FROM unnest(paths, amounts) AS w (path, amount) LOOP
        IF leg.amount > 0 OR split_part(leg.path, '/', 3) <> 'crypto_pool' THEN
            path := leg.path;
            amount := leg.amount;
            RETURN NEXT;
            CONTINUE;
        END IF;
        missing := -leg.amount;
        FOR path, amount IN
            SELECT a.path, a.posted_minor FROM ledger_accounts AS a
            WHERE a.path = ANY (locked)
              AND a.merchant_id IS NULL AND a.mode = split_part(leg.path, '/', 1)
              AND a.kind = 'crypto_pool' AND a.asset = split_part(leg.path, '/', 4)
              AND a.posted_minor > 0
            ORDER BY (a.path = leg.path) DESC, a.posted_minor DESC, a.path
        LOOP
            EXIT WHEN missing = 0;
            amount := -least(amount, missing);
            missing := missing + amount;
            RETURN NEXT;
        END LOOP;
        IF missing > 0 THEN
            RAISE EXCEPTION 'the pool lacks % of %', missing, leg.path
                USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_accounts_never_overdrawn';
        END IF;
    END LOOP;
END
$$;

-- Undo an entry by its mirror image. An entry is reversed once; asked again under the same key, the id
-- of the first reversal is returned. It moves the very accounts that the entry moved, and tokens that
-- leave the pool by it are drawn like any others: what an entry brought into a shard may have left
-- through that shard for another payment since.
CREATE FUNCTION ledger_reverse_entry(
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


-- Grants. The API's role loses what it had: it asks and reserves, and the operator books.

DROP POLICY api_only_reserves ON ledger_entries;
REVOKE INSERT (id, merchant_id, kind, asset) ON ledger_accounts FROM giovang_api;
REVOKE UPDATE (asset) ON ledger_accounts FROM giovang_api;
REVOKE INSERT (id, merchant_id, kind, payment_id, payout_id, refund_id, idempotency_key,
               reverses_id, description) ON ledger_entries FROM giovang_api;
REVOKE INSERT (entry_id, seq, merchant_id, account_id, asset, amount_minor)
    ON ledger_postings FROM giovang_api;

GRANT INSERT (id, merchant_id, mode, kind, asset, shard) ON ledger_accounts
    TO giovang_operator, giovang_watcher;
GRANT UPDATE (asset) ON ledger_accounts TO giovang_operator;
GRANT INSERT (id, merchant_id, kind, payment_id, payout_id, refund_id, idempotency_key,
              reverses_id, description) ON ledger_entries TO giovang_operator;
GRANT INSERT (entry_id, seq, merchant_id, account_id, asset, amount_minor)
    ON ledger_postings TO giovang_operator;
GRANT SELECT ON ledger_holds TO giovang_api, giovang_operator, giovang_watcher;
GRANT INSERT (id, merchant_id, account_id, asset, amount_minor, idempotency_key, payment_id,
              refund_id, payout_id, expires_at)
    ON ledger_holds TO giovang_api, giovang_operator, giovang_watcher;
GRANT UPDATE (status) ON ledger_holds TO giovang_api;
GRANT UPDATE (status, entry_id, expires_at) ON ledger_holds TO giovang_operator, giovang_watcher;
GRANT EXECUTE ON FUNCTION ledger_path(text, text, text, text, text),
    ledger_place_hold(text, text, text, text, text, bigint, text, text, text, text, timestamptz)
    TO giovang_api, giovang_operator, giovang_watcher;
GRANT EXECUTE ON FUNCTION ledger_open_accounts(text[]), ledger_draw(text[], bigint[], text[]),
    ledger_post_entry(text, text, text, text, text, text, text, text, text, text,
                      text[], text[], text[], bigint[]),
    ledger_reverse_entry(text, text, text, text)
    TO giovang_operator, giovang_watcher;
