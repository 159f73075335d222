{{ config(materialized='view') }}
{# Asked by the freshness mart and by the modeller, so that both mean the same by "new". -#}

WITH built AS (
    SELECT
        COUNT(*) = 3 AS is_whole,
        COALESCE(MIN(arrived_at), '-infinity') AS arrived_at,
        MIN(committed_through) AS committed_through
    FROM {{ horizons() }}
    WHERE model IN ('hourly_volume', 'int_local_hours', 'merchant_today')
)

SELECT
    built.committed_through AS built_committed_through,
    NOT built.is_whole
    OR EXISTS (
        SELECT 1
        FROM {{ ref('stg_payment_states') }} AS states
        WHERE states.recorded_at > built.arrived_at
    )
    OR EXISTS (
        SELECT 1
        FROM {{ ref('stg_refund_states') }} AS refunds
        WHERE refunds.recorded_at > built.arrived_at
    )
    OR EXISTS (
        SELECT 1
        FROM {{ ref('stg_merchants') }} AS merchants
        WHERE merchants.recorded_at > built.arrived_at
    ) AS is_pending
FROM built
