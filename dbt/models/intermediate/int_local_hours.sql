{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key='hour',
    on_schema_change='fail',
    pre_hook="{{ open_horizon(['int_superseded_completions']) }}",
    post_hook="{{ close_horizon() }}",
    indexes=[
        {'columns': ['hour', 'merchant_id', 'local_date', 'local_hour'], 'unique': True},
        {'columns': ['merchant_id', 'local_date']},
    ],
) }}
-- depends_on: {{ ref('stg_payment_states') }}
-- depends_on: {{ ref('int_hourly_volume') }}
{# Built by UTC hour and rolled up to local days afterwards: a batch of UTC days would overwrite a
    Vietnamese day with half its sum. A UTC hour holds parts of two local hours where a zone is off
    by thirty or forty-five minutes. -#}

WITH
{%- if is_incremental() %}
affected AS MATERIALIZED (
    {{ affected_hours() }}
    UNION
    -- Merchants who moved to another time zone.
    SELECT moved.hour
    FROM {{ this }} AS moved
    INNER JOIN {{ ref('stg_merchants') }} AS zones ON moved.merchant_id = zones.merchant_id
    WHERE moved.timezone <> zones.timezone
    UNION
    -- Payments that arrived before their merchant was known.
    SELECT unplaced.hour
    FROM {{ ref('int_hourly_volume') }} AS unplaced
    WHERE NOT EXISTS (
        SELECT 1
        FROM {{ this }} AS placed
        WHERE placed.merchant_id = unplaced.merchant_id
    )
),
{%- endif %}

completions AS (
    SELECT
        paid.merchant_id,
        merchants.timezone,
        paid.amount_vnd,
        {{ utc_hour('paid.completed_at') }} AS hour,
        paid.completed_at AT TIME ZONE merchants.timezone AS completed_local
    FROM {{ ref('int_completions') }} AS paid
    INNER JOIN {{ ref('stg_merchants') }} AS merchants ON paid.merchant_id = merchants.merchant_id
    {%- if is_incremental() %}
    WHERE {{ in_affected_hours('paid.completed_at') }}
    {%- endif %}
)

SELECT
    hour,
    merchant_id,
    timezone,
    completed_local::date AS local_date,
    EXTRACT(HOUR FROM completed_local)::integer AS local_hour,
    SUM(amount_vnd) AS volume_vnd,
    COUNT(*) AS payments
FROM completions
GROUP BY hour, merchant_id, timezone, completed_local::date, EXTRACT(HOUR FROM completed_local)
{%- if is_incremental() %}
UNION ALL
-- An hour in which nothing is left: the row that makes delete+insert delete, with nothing in it.
SELECT
    built.hour,
    built.merchant_id,
    built.timezone,
    built.local_date,
    built.local_hour,
    0 AS volume_vnd,
    0 AS payments
FROM {{ this }} AS built
WHERE
    built.hour IN (SELECT affected.hour FROM affected)
    AND NOT EXISTS (
        SELECT 1
        FROM completions
        WHERE completions.hour = built.hour
    )
{%- endif %}
