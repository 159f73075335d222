-- The ledger: accounts, entries, postings. Money is what these three tables say.
--
--   * An entry sums to zero in each asset, or its database transaction does not commit.
--   * An entry is sealed by the database transaction that made it: no leg can join it later, and
--     nothing in it can change. A correction is a reversing entry.
--   * A balance is the sum of its postings, because only a trigger on postings moves it.
--   * No account is overdrawn, whoever asks and however many ask at once.
--   * A merchant's role can only move money between that merchant's own accounts, and each of those
--     is a debt of the house that never turns; so a merchant cannot make money, even in raw SQL.
--
-- Signs: a debit is positive, a credit negative. What we hold stands positive, what we owe negative.

CREATE TABLE ledger_accounts (
    id           text PRIMARY KEY CHECK (id ~ '^acc_[0-9a-hjkmnp-tv-z]{26}$'),
    merchant_id  text REFERENCES merchants,
    kind         text NOT NULL,
    asset        text NOT NULL CHECK (asset IN ('USDC', 'USDT', 'VND', 'USD')),
    posted_minor bigint NOT NULL DEFAULT 0,
    UNIQUE NULLS NOT DISTINCT (merchant_id, kind, asset),
    UNIQUE (id, asset),

    -- Each kind belongs to one side: these to a merchant, those to the platform (merchant NULL).
    CONSTRAINT ledger_accounts_owner CHECK (
        (merchant_id IS NOT NULL
            AND kind IN ('merchant_available', 'payouts_reserved', 'refunds_payable', 'payer_excess'))
        OR (merchant_id IS NULL
            AND kind IN ('crypto_pool', 'liquidity', 'fee_revenue', 'suspense'))),

    -- Tokens held never fall below none; a debt never turns into a claim. Liquidity is the desk that
    -- trades tokens for dong: it stands on either side.
    CONSTRAINT ledger_accounts_never_overdrawn CHECK (
        CASE kind
            WHEN 'liquidity'   THEN true
            WHEN 'crypto_pool' THEN posted_minor >= 0
            ELSE posted_minor <= 0
        END)
) WITH (fillfactor = 50);

CREATE TABLE ledger_entries (
    id              text PRIMARY KEY CHECK (id ~ '^ent_[0-9a-hjkmnp-tv-z]{26}$'),
    merchant_id     text REFERENCES merchants,
    kind            text NOT NULL CHECK (kind IN (
                        'payment_completed', 'payment_received', 'payment_overpaid',
                        'transfer_suspended', 'refund_requested', 'refund_completed',
                        'refund_failed', 'payout_requested', 'payout_completed',
                        'payout_cancelled', 'reversal')),
    payment_id      text REFERENCES payments,
    payout_id       text,
    refund_id       text,
    idempotency_key text NOT NULL UNIQUE,
    reverses_id     text UNIQUE REFERENCES ledger_entries,
    description     text NOT NULL DEFAULT '',
    created_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (id, created_at)
);
CREATE INDEX ledger_entries_by_payment ON ledger_entries (payment_id) WHERE payment_id IS NOT NULL;
CREATE INDEX ledger_entries_by_payout ON ledger_entries (payout_id) WHERE payout_id IS NOT NULL;
CREATE INDEX ledger_entries_by_refund ON ledger_entries (refund_id) WHERE refund_id IS NOT NULL;
CREATE INDEX ledger_entries_by_merchant ON ledger_entries (merchant_id, id);

CREATE TABLE ledger_postings (
    entry_id     text NOT NULL,
    seq          int NOT NULL CHECK (seq > 0),
    merchant_id  text,
    account_id   text NOT NULL,
    asset        text NOT NULL,
    amount_minor bigint NOT NULL CHECK (amount_minor <> 0),
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (entry_id, seq),
    FOREIGN KEY (account_id, asset) REFERENCES ledger_accounts (id, asset),
    -- The seal. created_at is the start of the database transaction on both sides, and no
    -- application role has a grant to set it; so a leg fits only the entry born in its own.
    CONSTRAINT ledger_postings_sealed
        FOREIGN KEY (entry_id, created_at) REFERENCES ledger_entries (id, created_at)
);
CREATE INDEX ledger_postings_by_account ON ledger_postings (account_id, created_at);

CALL close_tenant_table('ledger_accounts');
CALL close_tenant_table('ledger_entries');
CALL close_tenant_table('ledger_postings');

GRANT SELECT ON ledger_accounts, ledger_entries, ledger_postings TO giovang_api, giovang_watcher;
GRANT SELECT ON ledger_entries, ledger_postings TO giovang_capture;
GRANT INSERT (id, merchant_id, kind, asset) ON ledger_accounts TO giovang_api, giovang_watcher;
GRANT INSERT (id, merchant_id, kind, payment_id, payout_id, refund_id, idempotency_key,
              reverses_id, description) ON ledger_entries TO giovang_api, giovang_watcher;
GRANT INSERT (entry_id, seq, merchant_id, account_id, asset, amount_minor)
    ON ledger_postings TO giovang_api, giovang_watcher;
-- PostgreSQL lets a role lock a row only if it may update something in it. This is that something,
-- and the trigger below keeps it from ever changing.
GRANT UPDATE (asset) ON ledger_accounts TO giovang_api, giovang_watcher;

-- Over HTTP money is only ever reserved. It arrives, and leaves, by the watcher and by people.
CREATE POLICY api_only_reserves ON ledger_entries AS RESTRICTIVE FOR INSERT TO giovang_api
    WITH CHECK (kind IN ('refund_requested', 'payout_requested'));


-- Immutability.

CREATE TRIGGER ledger_entries_are_history BEFORE UPDATE OR DELETE ON ledger_entries
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_entries_stay BEFORE TRUNCATE ON ledger_entries
    EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_postings_are_history BEFORE UPDATE OR DELETE ON ledger_postings
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_postings_stay BEFORE TRUNCATE ON ledger_postings
    EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_accounts_keep_their_name
    BEFORE UPDATE OF id, merchant_id, kind, asset ON ledger_accounts
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_accounts_stay BEFORE DELETE ON ledger_accounts
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER ledger_entries_audit AFTER INSERT ON ledger_entries
    FOR EACH ROW EXECUTE FUNCTION audit_write('entry');


-- Balances follow postings. Set-based, so a bulk load pays once a statement and not once a row.

CREATE FUNCTION ledger_apply_postings() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
BEGIN
    -- Everyone locks in the order of id, so two entries wait for each other and never deadlock.
    PERFORM FROM ledger_accounts
    WHERE id IN (SELECT account_id FROM fresh)
    ORDER BY id FOR NO KEY UPDATE;

    -- A foreign key looks past row-level security; this does not.
    PERFORM FROM fresh JOIN ledger_accounts AS account ON account.id = fresh.account_id
    WHERE account.merchant_id IS DISTINCT FROM fresh.merchant_id;
    IF FOUND THEN
        RAISE EXCEPTION 'a posting must carry the merchant of its account'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_postings_merchant';
    END IF;

    UPDATE ledger_accounts AS account
    SET posted_minor = account.posted_minor + moved.amount_minor
    FROM (SELECT account_id, sum(amount_minor)::bigint AS amount_minor
          FROM fresh GROUP BY account_id) AS moved
    WHERE account.id = moved.account_id;
    RETURN NULL;
END
$$;
CREATE TRIGGER ledger_postings_apply AFTER INSERT ON ledger_postings
    REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_apply_postings();


-- Sum zero. Checked at commit for every leg, not once an entry: SET CONSTRAINTS could otherwise be
-- used to pass the check early and add a leg after it. The entry's own check refuses an empty one.

CREATE FUNCTION ledger_check_balance() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
DECLARE
    entry text;
    legs int;
    off_balance text;
BEGIN
    IF TG_TABLE_NAME = 'ledger_entries' THEN
        entry := NEW.id;
    ELSE
        entry := NEW.entry_id;
    END IF;

    SELECT coalesce(sum(asset_legs), 0), string_agg(asset || ' ' || asset_sum, ', ')
               FILTER (WHERE asset_sum <> 0)
    INTO legs, off_balance
    FROM (SELECT asset, count(*) AS asset_legs, sum(amount_minor) AS asset_sum
          FROM ledger_postings WHERE entry_id = entry GROUP BY asset) AS by_asset;

    IF legs = 0 OR off_balance IS NOT NULL THEN
        RAISE EXCEPTION 'entry % does not balance: %', entry, coalesce(off_balance, 'no postings')
            USING ERRCODE = 'check_violation', CONSTRAINT = 'ledger_entries_sum_zero';
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER ledger_entries_sum_zero AFTER INSERT ON ledger_entries
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ledger_check_balance();
CREATE CONSTRAINT TRIGGER ledger_postings_sum_zero AFTER INSERT ON ledger_postings
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION ledger_check_balance();


-- The account of (merchant or platform, kind, asset), made on first use.
CREATE FUNCTION ledger_account(merchant text, account_kind text, account_asset text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, public
AS $$
DECLARE
    found_id text;
BEGIN
    LOOP
        IF merchant IS NULL THEN
            SELECT id INTO found_id FROM ledger_accounts
            WHERE merchant_id IS NULL AND kind = account_kind AND asset = account_asset;
        ELSE
            SELECT id INTO found_id FROM ledger_accounts
            WHERE merchant_id = merchant AND kind = account_kind AND asset = account_asset;
        END IF;
        IF FOUND THEN
            RETURN found_id;
        END IF;
        -- Waits for whoever is making the same account; then the next turn finds it.
        INSERT INTO ledger_accounts (id, merchant_id, kind, asset)
        VALUES (giovang_id('acc'), merchant, account_kind, account_asset)
        ON CONFLICT (merchant_id, kind, asset) DO NOTHING;
    END LOOP;
END
$$;

-- Book one entry; the only way the product writes to the ledger. Legs come as parallel arrays.
-- Returns the entry's id: the one given, or that of the entry booked earlier under the same key
-- with the same legs. The same key with other legs is refused.
CREATE FUNCTION ledger_post_entry(
    entry_id text, entry_merchant text, entry_kind text, entry_key text, entry_description text,
    for_payment text, for_payout text, for_refund text, reverses text,
    leg_merchants text[], leg_kinds text[], leg_assets text[], leg_amounts bigint[]
) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, public
AS $$
#variable_conflict use_column
DECLARE
    booked_id text;
    accounts  text[];
BEGIN
    SELECT array_agg(ledger_account(merchant, kind, asset) ORDER BY leg)
    INTO accounts
    FROM unnest(leg_merchants, leg_kinds, leg_assets) WITH ORDINALITY AS l (merchant, kind, asset, leg);

    -- Accounts before entry and postings. The other way round each foreign key first takes a weaker
    -- lock on the account and then has to raise it: less than half as many entries a second.
    PERFORM FROM ledger_accounts WHERE id = ANY (accounts) ORDER BY id FOR NO KEY UPDATE;

    INSERT INTO ledger_entries (id, merchant_id, kind, payment_id, payout_id, refund_id,
                                idempotency_key, reverses_id, description)
    VALUES (entry_id, entry_merchant, entry_kind, for_payment, for_payout, for_refund,
            entry_key, reverses, entry_description)
    ON CONFLICT (idempotency_key) DO NOTHING
    RETURNING id INTO booked_id;

    IF FOUND THEN
        INSERT INTO ledger_postings (entry_id, seq, merchant_id, account_id, asset, amount_minor)
        SELECT booked_id, leg, merchant, account, asset, amount
        FROM unnest(leg_merchants, accounts, leg_assets, leg_amounts)
             WITH ORDINALITY AS l (merchant, account, asset, amount, leg);
        RETURN booked_id;
    END IF;

    SELECT e.id INTO booked_id
    FROM ledger_entries AS e JOIN ledger_postings AS p ON p.entry_id = e.id
    WHERE e.idempotency_key = entry_key AND e.kind = entry_kind
    GROUP BY e.id
    HAVING array_agg(p.account_id ORDER BY p.seq) = accounts
       AND array_agg(p.amount_minor ORDER BY p.seq) = leg_amounts;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'key % already booked another entry', entry_key
            USING ERRCODE = 'unique_violation', CONSTRAINT = 'ledger_entries_idempotency_key_key';
    END IF;
    RETURN booked_id;
END
$$;
GRANT EXECUTE ON FUNCTION giovang_id(text), ledger_account(text, text, text),
    ledger_post_entry(text, text, text, text, text, text, text, text, text,
                      text[], text[], text[], bigint[])
    TO giovang_api, giovang_watcher;


-- A promise of money has its entry. Deferred, so that row and entry may be written in either order.
CREATE FUNCTION must_be_booked() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
DECLARE
    booked boolean;
BEGIN
    CASE TG_TABLE_NAME
        WHEN 'payments' THEN
            booked := EXISTS (SELECT FROM ledger_entries
                              WHERE payment_id = NEW.id AND kind = 'payment_completed');
        WHEN 'payouts' THEN
            booked := EXISTS (SELECT FROM ledger_entries WHERE payout_id = NEW.id);
        WHEN 'refunds' THEN
            booked := EXISTS (SELECT FROM ledger_entries WHERE refund_id = NEW.id);
    END CASE;
    IF NOT booked THEN
        RAISE EXCEPTION '% % has no ledger entry', TG_TABLE_NAME, NEW.id
            USING ERRCODE = 'check_violation', CONSTRAINT = TG_NAME;
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER payments_completed_is_booked AFTER UPDATE OF status ON payments
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (NEW.status = 'completed' AND OLD.status <> 'completed') EXECUTE FUNCTION must_be_booked();
