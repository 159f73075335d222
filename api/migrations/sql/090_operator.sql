-- The operator: the role of admins and of the steps that move money over HTTP.
--
-- giovang_api asks and reserves, giovang_operator moves. A flaw in a merchant's endpoint therefore
-- cannot book an entry. A unit of work that names a merchant keeps to that merchant's rows, and the
-- platform's own, under this role too; without one it sees all, as an admin does.

GRANT USAGE ON SCHEMA public TO giovang_operator;
GRANT EXECUTE ON FUNCTION giovang_tenant(), giovang_id(text) TO giovang_operator;
GRANT SELECT ON status_transitions, merchants, merchant_staff, payments, payment_events, refunds,
    payouts, ledger_accounts, ledger_entries, ledger_postings, chain_transfers, audit_logs,
    idempotency_keys TO giovang_operator;
GRANT INSERT (merchant_id, key, request_hash, response_status, response_body)
    ON idempotency_keys TO giovang_operator;
GRANT INSERT (actor, action, subject_type, subject_id, merchant_id, request_id, after)
    ON audit_logs TO giovang_operator;

CREATE FUNCTION operator_may_see(row_merchant text) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT coalesce(giovang_tenant(), '') = ''
          OR row_merchant IS NULL OR row_merchant = giovang_tenant() $$;
GRANT EXECUTE ON FUNCTION operator_may_see(text) TO giovang_operator;

CREATE OR REPLACE PROCEDURE close_tenant_table(
    tenant_table regclass, tenant_column name DEFAULT 'merchant_id')
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
        'CREATE POLICY operator ON %s TO giovang_operator
             USING (operator_may_see(%2$I)) WITH CHECK (operator_may_see(%2$I))',
        tenant_table, tenant_column);
    EXECUTE format(
        'CREATE POLICY trusted ON %s TO giovang_owner, giovang_watcher, giovang_capture
             USING (true) WITH CHECK (true)',
        tenant_table);
END
$$;

-- The tables that were closed before there was an operator.
DO $$
DECLARE
    closed record;
BEGIN
    FOR closed IN
        SELECT format('%I.%I', schemaname, tablename)::regclass AS tenant_table,
               CASE tablename WHEN 'merchants' THEN 'id' ELSE 'merchant_id' END AS tenant_column
        FROM pg_policies WHERE policyname = 'tenant' AND schemaname = 'public'
    LOOP
        EXECUTE format(
            'CREATE POLICY operator ON %s TO giovang_operator
                 USING (operator_may_see(%2$I)) WITH CHECK (operator_may_see(%2$I))',
            closed.tenant_table, closed.tenant_column);
    END LOOP;
END
$$;
