{#- Fails for any relation in marts that carries merchant_id and is not a table with enabled and
    forced row-level security, on which the dashboards' only policy is the merchant's own rows. A
    view or materialized view fails as well: it would be read with its owner's eyes. -#}
-- depends_on: {{ ref('freshness') }}
SELECT
    relations.relname,
    relations.relkind,
    relations.relrowsecurity,
    relations.relforcerowsecurity,
    policies.for_dashboards
FROM pg_class AS relations
INNER JOIN pg_namespace AS schemas ON relations.relnamespace = schemas.oid
INNER JOIN pg_attribute AS columns
    ON
        relations.oid = columns.attrelid
        AND columns.attname = 'merchant_id'
        AND NOT columns.attisdropped
LEFT JOIN LATERAL (
    SELECT
        ARRAY_AGG(
            policy.cmd || ' ' || policy.permissive || ' ' || policy.qual
            ORDER BY policy.policyname
        ) AS for_dashboards
    FROM pg_policies AS policy
    WHERE
        policy.schemaname = schemas.nspname
        AND policy.tablename = relations.relname
        AND policy.roles && '{giovang_dashboards,public}'::name[]
) AS policies ON TRUE
WHERE
    schemas.nspname = 'marts'
    AND relations.relkind IN ('r', 'p', 'v', 'm', 'f')
    AND NOT (
        relations.relkind IN ('r', 'p')
        AND relations.relrowsecurity
        AND relations.relforcerowsecurity
        AND policies.for_dashboards IS NOT DISTINCT FROM ARRAY[
            'SELECT PERMISSIVE (merchant_id = current_setting(''giovang.merchant_id''::text, true))'
        ]
    )
