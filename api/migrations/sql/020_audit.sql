-- The audit trail: who wrote what, before and after. A trigger writes it, in the database
-- transaction of the write itself, so there is no write without its row and no row without its write.

CREATE TABLE audit_logs (
    id           bigint GENERATED ALWAYS AS IDENTITY,
    event_time   timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor        text NOT NULL,
    action       text NOT NULL,
    subject_type text NOT NULL,
    subject_id   text NOT NULL,
    merchant_id  text,
    request_id   text,
    before       jsonb,
    after        jsonb,
    PRIMARY KEY (id, event_time)
) PARTITION BY RANGE (event_time);

CREATE INDEX audit_logs_by_subject ON audit_logs (subject_id, event_time);
CREATE INDEX audit_logs_by_merchant ON audit_logs (merchant_id, event_time);

CALL close_tenant_table('audit_logs');
GRANT SELECT ON audit_logs TO giovang_api;
GRANT INSERT (actor, action, subject_type, subject_id, merchant_id, request_id, after)
    ON audit_logs TO giovang_api, giovang_watcher;

CREATE TRIGGER audit_logs_are_history BEFORE UPDATE OR DELETE ON audit_logs
    FOR EACH ROW EXECUTE FUNCTION refuse_change();

-- One partition a year, in UTC, from 2024 until `years_ahead` after the current one; asking again
-- makes only what is missing. Returns how many it made.
CREATE FUNCTION audit_make_partitions(years_ahead int DEFAULT 2) RETURNS int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public SET timezone = 'UTC'
AS $$
DECLARE
    year int;
    made int := 0;
    partition text;
BEGIN
    FOR year IN 2024 .. extract(year FROM now())::int + years_ahead LOOP
        partition := format('audit_logs_%s', year);
        CONTINUE WHEN to_regclass('public.' || partition) IS NOT NULL;
        EXECUTE format(
            'CREATE TABLE public.%I PARTITION OF public.audit_logs FOR VALUES FROM (%L) TO (%L)',
            partition, make_date(year, 1, 1)::timestamptz, make_date(year + 1, 1, 1)::timestamptz);
        -- Nobody has a grant on a partition; closed all the same, should one ever be given.
        EXECUTE format('CALL close_tenant_table(%L)', 'public.' || partition);
        EXECUTE format('CREATE TRIGGER %I BEFORE TRUNCATE ON public.%I EXECUTE FUNCTION refuse_change()',
                       partition || '_is_history', partition);
        made := made + 1;
    END LOOP;
    RETURN made;
END
$$;
SELECT audit_make_partitions();
GRANT EXECUTE ON FUNCTION audit_make_partitions(int) TO giovang_watcher;

-- AFTER INSERT OR UPDATE OR DELETE, with arguments (subject type, columns never shown …).
-- Actor and request come from the unit of work; a write outside of one is signed by its role.
CREATE FUNCTION audit_write() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
DECLARE
    subject CONSTANT text := TG_ARGV[0];
    secrets CONSTANT text[] := coalesce(TG_ARGV[1:], '{}');
    was     jsonb := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) - secrets END;
    becomes jsonb := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) - secrets END;
    subject_row CONSTANT jsonb := coalesce(becomes, was);
    verb    text := CASE TG_OP WHEN 'INSERT' THEN 'created'
                               WHEN 'UPDATE' THEN 'updated' ELSE 'deleted' END;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF was ->> 'status' <> becomes ->> 'status' THEN
            verb := becomes ->> 'status';
        END IF;
        SELECT jsonb_object_agg(key, value), jsonb_object_agg(key, becomes -> key)
        INTO was, becomes
        FROM jsonb_each(was)
        WHERE value IS DISTINCT FROM becomes -> key;
    END IF;

    INSERT INTO audit_logs
        (actor, action, subject_type, subject_id, merchant_id, request_id, before, after)
    VALUES (
        coalesce(nullif(current_setting('giovang.actor', true), ''), 'role:' || session_user),
        subject || '.' || verb,
        subject,
        subject_row ->> 'id',
        subject_row ->> CASE subject WHEN 'merchant' THEN 'id' ELSE 'merchant_id' END,
        nullif(current_setting('giovang.request_id', true), ''),
        was,
        becomes);
    RETURN NULL;
END
$$;
