{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key=['hour', 'merchant_id'],
    on_schema_change='fail',
    pre_hook="{{ open_horizon(['int_hourly_volume', 'int_superseded_completions']) }}",
    post_hook="{{ close_horizon() }}",
    indexes=[{'columns': ['merchant_id', 'hour'], 'unique': True}],
) }}
-- depends_on: {{ ref('stg_payment_states') }}
WITH
{%- if is_incremental() %}
affected AS MATERIALIZED (
    {{ affected_hours() }}
),
{%- endif %}

completed AS (
    SELECT
        hour,
        merchant_id,
        total_volume,
        tx_count
    FROM {{ ref('int_hourly_volume') }}
    {%- if is_incremental() %}
    WHERE hour IN (SELECT affected.hour FROM affected)
    {%- endif %}
),

superseded AS (
    SELECT
        hour,
        merchant_id,
        SUM(amount_vnd) AS total_volume,
        COUNT(*) AS tx_count
    FROM {{ ref('int_superseded_completions') }}
    GROUP BY hour, merchant_id
)

-- Each payment counts once: an hour whose every completion was overtaken stays, as zero.
SELECT
    completed.hour,
    completed.merchant_id,
    (completed.total_volume - COALESCE(superseded.total_volume, 0))::numeric(20, 2) AS total_volume,
    completed.tx_count - COALESCE(superseded.tx_count, 0) AS tx_count
FROM completed
LEFT JOIN superseded
    ON
        completed.hour = superseded.hour
        AND completed.merchant_id = superseded.merchant_id
{%- if is_incremental() %}
UNION ALL
-- An hour that the aggregate no longer has: the row that makes delete+insert delete, as zero.
SELECT
    built.hour,
    built.merchant_id,
    0::numeric(20, 2) AS total_volume,
    0 AS tx_count
FROM {{ this }} AS built
WHERE
    built.hour IN (SELECT affected.hour FROM affected)
    AND NOT EXISTS (
        SELECT 1
        FROM completed
        WHERE completed.hour = built.hour AND completed.merchant_id = built.merchant_id
    )
{%- endif %}
