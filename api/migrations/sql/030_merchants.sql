-- Merchants, the people who work for them, and the keys their programs hold.

CREATE TABLE merchants (
    id         text PRIMARY KEY CHECK (id ~ '^mer_[0-9a-hjkmnp-tv-z]{26}$'),
    name       text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    trade      text NOT NULL CHECK (length(trade) BETWEEN 1 AND 100),
    timezone   text NOT NULL,
    country    char(2) NOT NULL CHECK (country ~ '^[A-Z]{2}$'),
    fee_bps    int NOT NULL DEFAULT 100 CHECK (fee_bps BETWEEN 0 AND 10000),
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE merchants REPLICA IDENTITY FULL;
CALL close_tenant_table('merchants', 'id');
GRANT SELECT ON merchants TO giovang_api, giovang_watcher, giovang_capture;
GRANT INSERT (id, name, trade, timezone, country, fee_bps) ON merchants TO giovang_api;
GRANT UPDATE (name, trade, timezone, country, fee_bps) ON merchants TO giovang_api;
CREATE TRIGGER merchants_stamp BEFORE UPDATE ON merchants
    FOR EACH ROW EXECUTE FUNCTION stamp_updated();
CREATE TRIGGER merchants_audit AFTER INSERT OR UPDATE OR DELETE ON merchants
    FOR EACH ROW EXECUTE FUNCTION audit_write('merchant');

CREATE TABLE merchant_staff (
    id            text PRIMARY KEY CHECK (id ~ '^stf_[0-9a-hjkmnp-tv-z]{26}$'),
    merchant_id   text NOT NULL REFERENCES merchants,
    email         text NOT NULL UNIQUE CHECK (email = lower(email) AND email LIKE '%_@_%'),
    password_hash text NOT NULL CHECK (password_hash LIKE '$argon2id$%'),
    role          text NOT NULL CHECK (role IN ('owner', 'manager', 'viewer')),
    created_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX merchant_staff_by_merchant ON merchant_staff (merchant_id);
CALL close_tenant_table('merchant_staff');
GRANT SELECT, INSERT (id, merchant_id, email, password_hash, role), UPDATE (password_hash, role)
    ON merchant_staff TO giovang_api;
CREATE TRIGGER merchant_staff_audit AFTER INSERT OR UPDATE OR DELETE ON merchant_staff
    FOR EACH ROW EXECUTE FUNCTION audit_write('staff', 'password_hash');

-- A key is 256 random bits, so its plain SHA-256 tells nothing; it is shown once and never stored.
CREATE TABLE api_keys (
    id          text PRIMARY KEY CHECK (id ~ '^key_[0-9a-hjkmnp-tv-z]{26}$'),
    merchant_id text NOT NULL REFERENCES merchants,
    mode        text NOT NULL CHECK (mode IN ('test', 'live')),
    key_prefix  text NOT NULL,
    key_hash    bytea NOT NULL UNIQUE CHECK (length(key_hash) = 32),
    scopes      text[] NOT NULL CHECK (cardinality(scopes) > 0),
    created_at  timestamptz NOT NULL DEFAULT now(),
    revoked_at  timestamptz
);
CREATE INDEX api_keys_by_merchant ON api_keys (merchant_id);
CALL close_tenant_table('api_keys');
GRANT SELECT, INSERT (id, merchant_id, mode, key_prefix, key_hash, scopes), UPDATE (revoked_at)
    ON api_keys TO giovang_api;
CREATE TRIGGER api_keys_audit AFTER INSERT OR UPDATE OR DELETE ON api_keys
    FOR EACH ROW EXECUTE FUNCTION audit_write('api_key', 'key_hash');

-- The look-ups that come before the tenant is known. Each takes what only its holder has and
-- answers at most one row. PL/pgSQL because it keeps its plans, which SQL functions do not.
CREATE FUNCTION authenticate_api_key(presented_hash bytea)
RETURNS TABLE (key_id text, mode text, scopes text[], merchant_id text, merchant_name text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
BEGIN
    RETURN QUERY
    SELECT k.id, k.mode, k.scopes, m.id, m.name
    FROM api_keys AS k JOIN merchants AS m ON m.id = k.merchant_id
    WHERE k.key_hash = presented_hash AND k.revoked_at IS NULL;
END
$$;

CREATE FUNCTION staff_for_login(presented_email text)
RETURNS TABLE (staff_id text, password_hash text, role text,
               merchant_id text, merchant_name text, timezone text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
BEGIN
    RETURN QUERY
    SELECT s.id, s.password_hash, s.role, m.id, m.name, m.timezone
    FROM merchant_staff AS s JOIN merchants AS m ON m.id = s.merchant_id
    WHERE s.email = presented_email;
END
$$;

GRANT EXECUTE ON FUNCTION authenticate_api_key(bytea), staff_for_login(text) TO giovang_api;

-- What a request was answered, kept so that a retry is answered the same. The row commits together
-- with the work it answers, so a visible key is always a finished one.
CREATE TABLE idempotency_keys (
    merchant_id     text NOT NULL REFERENCES merchants,
    key             text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    request_hash    bytea NOT NULL CHECK (length(request_hash) = 32),
    status          text NOT NULL DEFAULT 'completed' CHECK (status = 'completed'),
    response_status int NOT NULL,
    response_body   text NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (merchant_id, key)
);
CREATE INDEX idempotency_keys_by_age ON idempotency_keys USING brin (created_at);
CALL close_tenant_table('idempotency_keys');
GRANT SELECT, INSERT (merchant_id, key, request_hash, response_status, response_body)
    ON idempotency_keys TO giovang_api;
GRANT SELECT, DELETE ON idempotency_keys TO giovang_watcher;

-- Hold a key of the tenant until the database transaction ends, and return the answer it has, if
-- any; held is false where another request holds it now. The answer is read once the key is held,
-- by a statement with a snapshot of its own, so it shows what the holder before has committed.
CREATE FUNCTION claim_idempotency_key(wanted text)
RETURNS TABLE (held boolean, request_hash bytea, status int, body text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public
AS $$
BEGIN
    held := pg_try_advisory_xact_lock(hashtextextended(giovang_tenant() || ' ' || wanted, 0));
    IF held THEN
        SELECT k.request_hash, k.response_status, k.response_body
        INTO request_hash, status, body
        FROM idempotency_keys AS k
        WHERE k.merchant_id = giovang_tenant() AND k.key = wanted;
    END IF;
    RETURN NEXT;
END
$$;
GRANT EXECUTE ON FUNCTION claim_idempotency_key(text) TO giovang_api;
