{{ config(
    materialized='table',
    indexes=[{'columns': ['merchant_id', 'local_hour'], 'unique': True}],
) }}
WITH completed AS (
    SELECT
        hours.merchant_id,
        hours.local_date,
        hours.local_hour,
        hours.volume_vnd,
        hours.payments,
        ({{ clock() }} AT TIME ZONE merchants.timezone)::date - 1 AS window_end
    FROM {{ ref('int_local_hours') }} AS hours
    INNER JOIN {{ ref('stg_merchants') }} AS merchants ON hours.merchant_id = merchants.merchant_id
    WHERE hours.payments > 0
),

recent AS (
    SELECT
        merchant_id,
        local_date,
        local_hour,
        volume_vnd,
        payments,
        window_end
    FROM completed
    WHERE
        local_date <= window_end
        AND local_date > window_end - {{ var('profile_days') }}
),

-- A merchant who joined ten days ago is averaged over ten days, not diluted over twelve weeks.
windows AS (
    SELECT
        merchant_id,
        window_end,
        MIN(local_date) AS window_start,
        window_end - MIN(local_date) + 1 AS days,
        COUNT(DISTINCT local_date) AS active_days,
        SUM(volume_vnd) AS volume_vnd,
        SUM(payments) AS payments
    FROM recent
    GROUP BY merchant_id, window_end
),

per_hour AS (
    SELECT
        merchant_id,
        local_hour,
        SUM(volume_vnd) AS volume_vnd,
        SUM(payments) AS payments
    FROM recent
    GROUP BY merchant_id, local_hour
)

SELECT
    windows.merchant_id,
    clock_hours.local_hour,
    windows.window_start,
    windows.window_end,
    windows.days,
    windows.active_days::integer AS active_days,
    windows.payments::bigint AS window_payments,
    COALESCE(per_hour.payments, 0)::bigint AS payments,
    ROUND(COALESCE(per_hour.volume_vnd, 0) / windows.days, 2) AS avg_volume,
    ROUND(COALESCE(per_hour.payments, 0)::numeric / windows.days, 4) AS avg_payments,
    {{ share('COALESCE(per_hour.volume_vnd, 0)', 'windows.volume_vnd') }} AS volume_share
FROM windows
CROSS JOIN GENERATE_SERIES(0, 23) AS clock_hours (local_hour)
LEFT JOIN per_hour
    ON
        windows.merchant_id = per_hour.merchant_id
        AND clock_hours.local_hour = per_hour.local_hour
