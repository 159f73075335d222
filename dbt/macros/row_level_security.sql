{#-
    Post-hook of every mart, inside the database transaction that puts the table in place: a `table`
    model swaps relations, and the new one comes without policies. Readers see the table with its
    policies or not at all.

    FORCE binds the owner too, so the pipeline has a policy of its own. giovang_dashboards sees the
    rows of the merchant named by the setting giovang.merchant_id; unset, it sees none. A mart
    without merchant_id carries no tenant's data and needs no policy; the test
    every_tenant_mart_is_secured holds both halves of that.
-#}
{% macro secure_mart() -%}
    {%- set is_tenants = 'merchant_id' in adapter.get_columns_in_relation(this)
        | map(attribute='name') | list -%}
    {%- if execute and is_tenants and not is_secured(this) %}
    ALTER TABLE {{ this }} ENABLE ROW LEVEL SECURITY;
    ALTER TABLE {{ this }} FORCE ROW LEVEL SECURITY;
    CREATE POLICY pipeline_builds_all ON {{ this }}
        TO {{ adapter.quote(target.user) }} USING (TRUE) WITH CHECK (TRUE);
    CREATE POLICY merchant_reads_own ON {{ this }}
        FOR SELECT TO giovang_dashboards
        USING (merchant_id = current_setting('giovang.merchant_id', TRUE));
    {%- endif -%}
{%- endmacro %}

{#- True where an incremental model's table still carries both policies; asking first spares the
    exclusive lock that would stop readers at every build. -#}
{% macro is_secured(relation) -%}
    {%- set policies = run_query(
        "SELECT count(*) FROM pg_policies WHERE schemaname = '" ~ relation.schema
        ~ "' AND tablename = '" ~ relation.identifier
        ~ "' AND policyname IN ('pipeline_builds_all', 'merchant_reads_own')"
    ) -%}
    {{ return(policies.columns[0][0] == 2) }}
{%- endmacro %}

{#- Let the dashboards look into the schema; what they see in it is each mart's own grant and
    policy. On-run-start, because two marts built side by side would both change the schema. -#}
{% macro open_marts() -%}
    {%- if execute and adapter.check_schema_exists(target.database, 'marts') -%}
        {%- set allowed = run_query(
            "SELECT has_schema_privilege('giovang_dashboards', 'marts', 'USAGE')"
        ) -%}
        {%- if not allowed.columns[0][0] %}
        GRANT USAGE ON SCHEMA marts TO giovang_dashboards
        {%- endif -%}
    {%- endif -%}
{%- endmacro %}
