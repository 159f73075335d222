{{ config(
    materialized='timescale_cagg',
    hypertable='raw.payment_analytics',
    incremental_strategy='delete+insert',
    unique_key=['hour', 'merchant_id'],
    on_schema_change='fail',
    pre_hook="{{ open_horizon() }}",
    post_hook="{{ close_horizon() }}",
    indexes=[{'columns': ['hour', 'merchant_id'], 'unique': True}],
) }}
-- depends_on: {{ ref('stg_payment_states') }}
{# A continuous aggregate must name its hypertable and nothing else: no view, CTE or subquery. So
    this is the one model beyond staging that uses source(), and it counts completed *events*; the
    mart takes away the few that a later state of the same payment overtook. -#}
{%- if is_rebuilding_hours() %}
WITH affected AS MATERIALIZED (
    {{ affected_hours() }}
)
{%- endif %}

SELECT
    {{ utc_hour('time') }} AS hour,
    merchant_id,
    SUM(amount_vnd) AS total_volume,
    COUNT(*) AS tx_count
FROM {{ source('raw', 'payment_analytics') }}
WHERE
    status = 'completed'
    {%- if is_rebuilding_hours() %}
    AND {{ in_affected_hours('time') }}
    {%- endif %}
GROUP BY {{ utc_hour('time') }}, merchant_id
{%- if is_rebuilding_hours() %}
UNION ALL
-- delete+insert only deletes what it is given a new row for: an hour with nothing left gets a zero.
SELECT
    built.hour,
    built.merchant_id,
    0 AS total_volume,
    0 AS tx_count
FROM {{ this }} AS built
WHERE
    built.hour IN (SELECT affected.hour FROM affected)
    AND NOT EXISTS (
        SELECT 1
        FROM {{ source('raw', 'payment_analytics') }} AS fact
        WHERE
            fact.status = 'completed'
            AND {{ in_affected_hours('fact.time') }}
            AND fact.merchant_id = built.merchant_id
            AND {{ utc_hour('fact.time') }} = built.hour
    )
{%- endif %}
