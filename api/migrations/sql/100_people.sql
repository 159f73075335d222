-- Admins, their second factor, and the sessions of people.

-- Who runs the platform. Not a tenant's table: giovang_api has no grant on it at all, and the
-- operator reads password and second factor only of the one admin whose email or id it holds.
CREATE TABLE admins (
    id                text PRIMARY KEY CHECK (id ~ '^adm_[0-9a-hjkmnp-tv-z]{26}$'),
    email             text NOT NULL UNIQUE CHECK (email = lower(email) AND email LIKE '%_@_%'),
    password_hash     text NOT NULL CHECK (password_hash LIKE '$argon2id$%'),
    role              text NOT NULL DEFAULT 'admin' CHECK (role = 'admin'),
    -- The secret of RFC 6238, sealed by a key that PostgreSQL does not have.
    totp_sealed       bytea CHECK (length(totp_sealed) BETWEEN 40 AND 200),
    totp_confirmed_at timestamptz CHECK (totp_confirmed_at IS NULL OR totp_sealed IS NOT NULL),
    -- The last 30-second step whose code was used: a code works once, and none before it.
    totp_last_step    bigint CHECK (totp_confirmed_at IS NULL OR totp_last_step IS NOT NULL),
    created_at        timestamptz NOT NULL DEFAULT now(),
    disabled_at       timestamptz
);
GRANT SELECT (id, email, role, totp_confirmed_at, totp_last_step, created_at, disabled_at),
      INSERT (id, email, password_hash),
      UPDATE (email, password_hash, totp_sealed, totp_confirmed_at, totp_last_step, disabled_at)
    ON admins TO giovang_operator;
CREATE TRIGGER admins_audit AFTER INSERT OR UPDATE OR DELETE ON admins
    FOR EACH ROW EXECUTE FUNCTION audit_write('admin', 'password_hash', 'totp_sealed');

-- A used code stays used: the last step only grows, unless the second factor itself is renewed.
CREATE FUNCTION guard_totp() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    IF NEW.totp_sealed IS NOT DISTINCT FROM OLD.totp_sealed
       AND (NEW.totp_last_step < OLD.totp_last_step
            OR (NEW.totp_last_step IS NULL AND OLD.totp_last_step IS NOT NULL)) THEN
        RAISE EXCEPTION 'the codes of a second factor are used in order'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'admins_totp_in_order';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER admins_totp_in_order BEFORE UPDATE ON admins
    FOR EACH ROW EXECUTE FUNCTION guard_totp();

CREATE FUNCTION admin_for_login(presented_email text)
RETURNS TABLE (admin_id text, email text, password_hash text, role text, totp_sealed bytea,
               totp_confirmed_at timestamptz, disabled_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
BEGIN
    RETURN QUERY
    SELECT a.id, a.email, a.password_hash, a.role, a.totp_sealed,
           a.totp_confirmed_at, a.disabled_at
    FROM admins AS a
    WHERE a.email = presented_email;
END
$$;

-- The one who is enrolling or changing their password, known by their session.
CREATE FUNCTION admin_by_id(presented_id text)
RETURNS TABLE (admin_id text, email text, password_hash text, role text, totp_sealed bytea,
               totp_confirmed_at timestamptz, disabled_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
BEGIN
    RETURN QUERY
    SELECT a.id, a.email, a.password_hash, a.role, a.totp_sealed,
           a.totp_confirmed_at, a.disabled_at
    FROM admins AS a
    WHERE a.id = presented_id;
END
$$;
GRANT EXECUTE ON FUNCTION admin_for_login(text), admin_by_id(text) TO giovang_operator;

-- The sessions of staff and admins. The token is signed and lives with its person; this says
-- whether it still counts. The family is the session that was signed in, and all rotated out of it.
CREATE TABLE sessions (
    id           text PRIMARY KEY CHECK (id ~ '^ses_[0-9a-hjkmnp-tv-z]{26}$'),
    family_id    text NOT NULL,
    kind         text NOT NULL CHECK (kind IN ('staff', 'admin')),
    person_id    text NOT NULL,
    merchant_id  text REFERENCES merchants,
    status       text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'rotated', 'revoked')),
    signed_in_at timestamptz NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz NOT NULL,
    ended_at     timestamptz,
    CHECK ((kind = 'staff') = (merchant_id IS NOT NULL)),
    CHECK ((status = 'open') = (ended_at IS NULL)),
    CHECK (expires_at <= signed_in_at + interval '12 hours')
);
CREATE INDEX sessions_by_family ON sessions (family_id) WHERE status = 'open';
CREATE INDEX sessions_by_person ON sessions (person_id);
CALL close_tenant_table('sessions');
GRANT SELECT, DELETE, UPDATE (status),
      INSERT (id, family_id, kind, person_id, merchant_id, signed_in_at, expires_at)
    ON sessions TO giovang_api, giovang_operator;
CREATE TRIGGER sessions_audit AFTER INSERT OR UPDATE ON sessions
    FOR EACH ROW EXECUTE FUNCTION audit_write('session');

-- What has ended stays ended, and only what has expired may be forgotten.
CREATE FUNCTION guard_session() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.expires_at > now() THEN
            RAISE EXCEPTION 'session % has not expired: revoke it', OLD.id
                USING ERRCODE = 'check_violation', CONSTRAINT = 'sessions_guard';
        END IF;
        RETURN OLD;
    END IF;
    IF OLD.status <> 'open' AND NEW.status <> OLD.status THEN
        RAISE EXCEPTION 'session % is % and stays so', OLD.id, OLD.status
            USING ERRCODE = 'check_violation', CONSTRAINT = 'sessions_guard';
    END IF;
    IF NEW.status <> OLD.status THEN
        NEW.ended_at := clock_timestamp();
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER sessions_guard BEFORE UPDATE OR DELETE ON sessions
    FOR EACH ROW EXECUTE FUNCTION guard_session();

-- Asked before a unit of work begins, by whoever shows a token that we signed.
CREATE FUNCTION session_status(presented_id text) RETURNS TABLE (status text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
BEGIN
    RETURN QUERY SELECT s.status FROM sessions AS s WHERE s.id = presented_id;
END
$$;
GRANT EXECUTE ON FUNCTION session_status(text) TO giovang_api, giovang_operator;

-- Staff: who leaves is deleted and the audit keeps who they were. Nobody reads all password hashes:
-- staff_for_login gives the one whose email is presented.
REVOKE SELECT ON merchant_staff FROM giovang_api, giovang_operator;
GRANT SELECT (id, merchant_id, email, role, created_at)
    ON merchant_staff TO giovang_api, giovang_operator;
GRANT DELETE ON merchant_staff TO giovang_api;

-- Likewise the digests of keys are for authenticate_api_key alone.
REVOKE SELECT ON api_keys FROM giovang_api;
GRANT SELECT (id, merchant_id, mode, key_prefix, scopes, created_at, revoked_at)
    ON api_keys TO giovang_api;

-- A key that was revoked stays revoked.
CREATE FUNCTION guard_api_key() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    IF OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS DISTINCT FROM OLD.revoked_at THEN
        RAISE EXCEPTION 'key % is revoked and stays so', OLD.id
            USING ERRCODE = 'check_violation', CONSTRAINT = 'api_keys_guard';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER api_keys_guard BEFORE UPDATE ON api_keys
    FOR EACH ROW EXECUTE FUNCTION guard_api_key();

-- A process remembers whose a key is; that the key still counts is proved by each unit of work it
-- begins, so a key that was revoked is refused from the moment of its COMMIT on. VOLATILE, or a
-- planner that finds nobody reading its result would leave it out.
CREATE FUNCTION prove_key(acting text, for_merchant text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
BEGIN
    IF acting LIKE 'key\_%' AND NOT EXISTS (
        SELECT FROM api_keys AS k
        WHERE k.id = acting AND k.merchant_id = for_merchant AND k.revoked_at IS NULL)
    THEN
        RAISE EXCEPTION 'key % does not count any more', acting
            USING ERRCODE = 'check_violation', CONSTRAINT = 'api_keys_live';
    END IF;
END
$$;
GRANT EXECUTE ON FUNCTION prove_key(text, text) TO giovang_api, giovang_operator;

-- A key of one mode is not a key of the other: the row of a request keeps the key behind its
-- namespace, `test:order-1`. Rows from before there were namespaces still answer their retries,
-- and the lock is on the plain key, so that processes of the release before, which know no
-- namespaces, are kept out as well.
ALTER TABLE idempotency_keys DROP CONSTRAINT idempotency_keys_key_check;
ALTER TABLE idempotency_keys ADD CONSTRAINT idempotency_keys_key_check
    CHECK (length(key) BETWEEN 1 AND 300);
-- Begin a unit of work that answers once: say whose it is, hold the key of the tenant until the
-- database transaction ends, and return the answer it has, if any; held is false where another
-- request holds it now. One statement, because every request that writes makes it. The answer is
-- read once the key is held, with a snapshot of its own, so it shows what the holder before has
-- committed.
CREATE FUNCTION begin_claiming(
    for_merchant text, acting text, for_request text, wanted text, namespace text)
RETURNS TABLE (began_at timestamptz, held boolean, request_hash bytea, status int, body text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, public
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    PERFORM set_config('giovang.merchant_id', for_merchant, true),
            set_config('giovang.actor', acting, true),
            set_config('giovang.request_id', for_request, true),
            prove_key(acting, for_merchant);
    began_at := now();
    held := pg_try_advisory_xact_lock(hashtextextended(for_merchant || ' ' || wanted, 0));
    IF held THEN
        SELECT k.request_hash, k.response_status, k.response_body
        INTO request_hash, status, body
        FROM idempotency_keys AS k
        WHERE k.merchant_id = for_merchant AND k.key IN (namespace || ':' || wanted, wanted)
        ORDER BY k.key = wanted
        LIMIT 1;
    END IF;
    RETURN NEXT;
END
$$;
GRANT EXECUTE ON FUNCTION begin_claiming(text, text, text, text, text)
    TO giovang_api, giovang_operator;
