{#- dbt's own unique test knows one column; these relations are keyed by several. -#}
{%- set keys = {
    'int_hourly_volume': ['hour', 'merchant_id'],
    'int_local_hours': ['hour', 'merchant_id', 'local_date', 'local_hour'],
    'hourly_volume': ['hour', 'merchant_id'],
    'hour_profile': ['merchant_id', 'local_hour'],
} -%}
{%- for model, columns in keys.items() %}
SELECT
    '{{ model }}' AS model,
    CONCAT_WS(', ', {{ columns | join(', ') }}) AS key,
    COUNT(*) AS duplicates
FROM {{ ref(model) }}
GROUP BY {{ columns | join(', ') }}
HAVING COUNT(*) > 1
{%- if not loop.last %}
UNION ALL
{%- endif %}
{%- endfor %}
