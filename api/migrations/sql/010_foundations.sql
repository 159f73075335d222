-- Ids, the tenant in force, how a tenant's table is closed, and how a status may move.
--
-- Every function in these files pins its search_path, so that no caller can put a table of its own
-- in front of ours. SECURITY DEFINER marks the functions that run as giovang_owner: that is how
-- PostgreSQL keeps the books (balances, events, audit) that no application role may write by hand.

GRANT USAGE ON SCHEMA public TO giovang_api, giovang_watcher, giovang_capture;
ALTER DEFAULT PRIVILEGES REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC;

-- A prefix and the 26 Crockford characters of a UUIDv7 (RFC 9562), as api.database.new_id makes it:
-- 48 bits of Unix milliseconds come first, so that ids sort by time.
CREATE FUNCTION giovang_id(prefix text) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog
AS $$
DECLARE
    hex CONSTANT text :=
        lpad(to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint), 12, '0')
        || '7' || substr(replace(gen_random_uuid()::text, '-', ''), 14);
    bits CONSTANT bit varying := B'00' || ('x' || hex)::bit(128)::bit varying;
    id text := prefix || '_';
BEGIN
    FOR place IN 0 .. 25 LOOP
        id := id || substr('0123456789abcdefghjkmnpqrstvwxyz',
                           1 + substring(bits FROM 1 + 5 * place FOR 5)::bit(5)::int, 1);
    END LOOP;
    RETURN id;
END
$$;

-- The merchant whose unit of work this is. Outside of one it is NULL, and policies show nothing.
CREATE FUNCTION giovang_tenant() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT current_setting('giovang.merchant_id', true) $$;

GRANT EXECUTE ON FUNCTION giovang_tenant() TO giovang_api, giovang_watcher, giovang_capture;

-- Close a table to every role but the tenant's own rows. Grants still say who may do what; the
-- policy says on which rows. FORCE binds the owner too, so it is named among the trusted roles.
CREATE PROCEDURE close_tenant_table(tenant_table regclass, tenant_column name DEFAULT 'merchant_id')
LANGUAGE plpgsql SET search_path = pg_catalog, public
AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', tenant_table);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', tenant_table);
    EXECUTE format(
        'CREATE POLICY tenant ON %s TO giovang_api
             USING (%2$I = giovang_tenant()) WITH CHECK (%2$I = giovang_tenant())',
        tenant_table, tenant_column);
    EXECUTE format(
        'CREATE POLICY trusted ON %s TO giovang_owner, giovang_watcher, giovang_capture
             USING (true) WITH CHECK (true)',
        tenant_table);
END
$$;
REVOKE EXECUTE ON PROCEDURE close_tenant_table FROM PUBLIC;

-- How a status may move, as data: the same rows as api.contract.TRANSITIONS, held equal by a test.
CREATE TABLE status_transitions (
    subject     text NOT NULL,
    from_status text NOT NULL,
    to_status   text NOT NULL,
    PRIMARY KEY (subject, from_status, to_status)
);
GRANT SELECT ON status_transitions TO giovang_api, giovang_watcher;

-- BEFORE INSERT OR UPDATE, with arguments (subject, first status): refuse a jump, stamp the moment.
-- clock_timestamp() rather than now(), so that several statuses in one database transaction keep
-- their order in time; a moment given with the change is kept, which only the owner has a grant for.
CREATE FUNCTION guard_status() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public
AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.status <> TG_ARGV[1] THEN
            RAISE EXCEPTION 'a % begins as %, not as %', TG_ARGV[0], TG_ARGV[1], NEW.status
                USING ERRCODE = 'check_violation', CONSTRAINT = 'status_transitions';
        END IF;
        RETURN NEW;
    END IF;

    IF NEW.status <> OLD.status THEN
        PERFORM FROM status_transitions AS allowed
        WHERE allowed.subject = TG_ARGV[0]
          AND allowed.from_status = OLD.status
          AND allowed.to_status = NEW.status;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'a % may not go from % to %', TG_ARGV[0], OLD.status, NEW.status
                USING ERRCODE = 'check_violation', CONSTRAINT = 'status_transitions';
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

-- BEFORE UPDATE on tables without a status.
CREATE FUNCTION stamp_updated() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    IF NEW.updated_at = OLD.updated_at THEN
        NEW.updated_at := clock_timestamp();
    END IF;
    RETURN NEW;
END
$$;

-- BEFORE UPDATE OR DELETE OR TRUNCATE on tables that are history.
CREATE FUNCTION refuse_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog
AS $$
BEGIN
    RAISE EXCEPTION '% is history: % refused, correct it with a new row', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation', TABLE = TG_TABLE_NAME;
END
$$;
