{#-
    One relation, two editions. On TimescaleDB's community edition the model becomes a continuous
    aggregate; on the Apache-2 edition an incremental table (delete+insert) of the same name and
    columns, for which the model itself narrows its query to the affected hours.

    The continuous aggregate is created WITH NO DATA, carries the hash of its SQL in its comment and
    is rebuilt when that changes. It is refreshed outside a database transaction, as TimescaleDB
    demands, with an explicit end: the hour after the newest fact, since an open end would leave out
    the bucket that is still filling. Refreshing costs what changed, as TimescaleDB keeps the
    invalidated ranges itself; its policy is a safety net for the time dbt does not run.

    Row-level security cannot sit on a continuous aggregate, so the relation stays private to the
    pipeline's role, and a mart with a policy is what merchants read.
-#}
{% materialization timescale_cagg, adapter='postgres' %}
    {%- if not has_continuous_aggregates() -%}
        {{ return(dbt.materialization_incremental_default()) }}
    {%- endif -%}

    {%- set target_relation = this.incorporate(type='view') -%}
    {%- set existing = load_cached_relation(this) -%}
    {%- set definition_hash = local_md5(sql) -%}
    {%- set is_current = (
        existing is not none and existing.type == 'view' and not should_full_refresh()
        and continuous_aggregate_hash() == definition_hash
    ) -%}

    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}
    {%- if not is_current %}
        {%- do drop_continuous_aggregate_if_exists() -%}
        {%- if existing is not none and existing.type == 'table' -%}
            {%- do adapter.drop_relation(existing) -%}
        {%- endif -%}
        {% call statement('create') -%}
            CREATE MATERIALIZED VIEW {{ this }}
            WITH (timescaledb.continuous, timescaledb.materialized_only = TRUE) AS
            {{ sql }}
            WITH NO DATA;
            COMMENT ON VIEW {{ this }} IS 'giovang-sql {{ definition_hash }}';
            SELECT add_continuous_aggregate_policy(
                '{{ this.schema }}.{{ this.identifier }}',
                start_offset => NULL,
                end_offset => INTERVAL '1 hour',
                schedule_interval => INTERVAL '1 hour'
            );
        {%- endcall %}
    {%- endif %}
    {#- What was noted in the pre-hooks is kept although the refresh runs on its own: only the
        post-hooks say that it was built. -#}
    {% do adapter.commit() %}

    {%- set newest = run_query(
        "SELECT " ~ utc_hour('COALESCE(MAX(time), now())') ~ " + INTERVAL '1 hour' FROM "
        ~ config.require('hypertable')
    ).columns[0][0] -%}
    {#- The driver opened a database transaction for that query which dbt knows nothing of. -#}
    {% call statement('leave_transaction', auto_begin=False) -%}
        COMMIT
    {%- endcall %}
    {% call statement('main', auto_begin=False) -%}
        CALL refresh_continuous_aggregate(
            '{{ this.schema }}.{{ this.identifier }}', NULL, '{{ newest }}'
        )
    {%- endcall %}

    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {% do adapter.commit() %}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {{ return({'relations': [target_relation]}) }}
{% endmaterialization %}

{#- The hash a former build left in the comment; none where there is no such view. -#}
{% macro continuous_aggregate_hash() -%}
    {%- set comments = run_query(
        "SELECT obj_description(to_regclass('" ~ this.schema ~ "." ~ this.identifier
        ~ "'), 'pg_class')"
    ) -%}
    {%- set comment = comments.columns[0][0] or '' -%}
    {{ return(comment.removeprefix('giovang-sql ')) }}
{%- endmacro %}

{#- DROP VIEW refuses a continuous aggregate, so dbt's own drop cannot be used. -#}
{% macro drop_continuous_aggregate_if_exists() -%}
    {%- set found = run_query(
        "SELECT count(*) FROM timescaledb_information.continuous_aggregates "
        ~ "WHERE view_schema = '" ~ this.schema ~ "' AND view_name = '" ~ this.identifier ~ "'"
    ) -%}
    {%- if found.columns[0][0] > 0 -%}
        {%- call statement('drop_continuous_aggregate') -%}
            DROP MATERIALIZED VIEW {{ this }}
        {%- endcall -%}
        {%- do adapter.commit() -%}
    {%- endif -%}
{%- endmacro %}
