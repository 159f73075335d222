{#- What incremental builds left behind, beside what a build from nothing would give, up to the
    horizon that the mart claims. Hours touched since are left out: the next build is theirs. -#}
WITH horizon AS (
    SELECT MIN(arrived_at) AS arrived_at
    FROM {{ horizons() }}
    WHERE model IN ('hourly_volume', 'int_local_hours')
),

touched AS (
    SELECT DISTINCT {{ utc_hour('completed.reached_at') }} AS hour
    FROM {{ ref('stg_payment_states') }} AS completed
    INNER JOIN {{ ref('stg_payment_states') }} AS arrived
        ON completed.payment_id = arrived.payment_id
    CROSS JOIN horizon
    WHERE
        completed.status = 'completed'
        AND arrived.recorded_at > horizon.arrived_at
),

rebuilt AS (
    SELECT
        merchant_id,
        {{ utc_hour('completed_at') }} AS hour,
        SUM(amount_vnd) AS total_volume,
        COUNT(*) AS tx_count
    FROM {{ ref('int_completions') }}
    GROUP BY merchant_id, {{ utc_hour('completed_at') }}
),

kept AS (
    SELECT
        merchant_id,
        hour,
        total_volume,
        tx_count
    FROM {{ ref('hourly_volume') }}
    WHERE tx_count <> 0 OR total_volume <> 0
)

SELECT
    kept.total_volume AS kept_volume,
    rebuilt.total_volume AS rebuilt_volume,
    kept.tx_count AS kept_count,
    rebuilt.tx_count AS rebuilt_count,
    COALESCE(kept.hour, rebuilt.hour) AS hour,
    COALESCE(kept.merchant_id, rebuilt.merchant_id) AS merchant_id
FROM kept
FULL JOIN rebuilt ON kept.hour = rebuilt.hour AND kept.merchant_id = rebuilt.merchant_id
WHERE
    (kept.total_volume, kept.tx_count) IS DISTINCT FROM (rebuilt.total_volume, rebuilt.tx_count)
    AND COALESCE(kept.hour, rebuilt.hour) NOT IN (SELECT touched.hour FROM touched)
