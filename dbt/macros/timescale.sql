{#- True on TimescaleDB's community edition, the only one with continuous aggregates. Asked of the
    server each time; a parse, which has no server, counts as Apache-2. -#}
{% macro has_continuous_aggregates() -%}
    {%- if not execute -%}{{ return(false) }}{%- endif -%}
    {%- set license = run_query("SELECT current_setting('timescaledb.license', TRUE)") -%}
    {{ return(license.columns[0][0] == 'timescale') }}
{%- endmacro %}

{#- True when a timescale_cagg model on the Apache-2 edition adds to a table it built before; the
    counterpart of is_incremental(), which knows dbt's own materialization only. -#}
{% macro is_rebuilding_hours() -%}
    {%- if not execute -%}{{ return(false) }}{%- endif -%}
    {%- set existing = adapter.get_relation(this.database, this.schema, this.identifier) -%}
    {{ return(
        existing is not none and existing.type == 'table'
        and not should_full_refresh() and not has_continuous_aggregates()
    ) }}
{%- endmacro %}
