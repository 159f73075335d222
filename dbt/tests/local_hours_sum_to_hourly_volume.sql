{#- Volume is neither lost nor doubled between UTC hours and local hours. -#}
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

local_sums AS (
    SELECT
        hour,
        merchant_id,
        SUM(volume_vnd) AS total_volume,
        SUM(payments) AS tx_count
    FROM {{ ref('int_local_hours') }}
    WHERE payments > 0
    GROUP BY hour, merchant_id
),

utc_sums AS (
    SELECT
        hour,
        merchant_id,
        total_volume,
        tx_count
    FROM {{ ref('hourly_volume') }}
    WHERE tx_count > 0
)

SELECT
    COALESCE(utc_sums.hour, local_sums.hour) AS hour,
    COALESCE(utc_sums.merchant_id, local_sums.merchant_id) AS merchant_id
FROM utc_sums
FULL JOIN local_sums
    ON utc_sums.hour = local_sums.hour AND utc_sums.merchant_id = local_sums.merchant_id
WHERE
    (utc_sums.total_volume, utc_sums.tx_count)
    IS DISTINCT FROM (local_sums.total_volume, local_sums.tx_count)
    AND COALESCE(utc_sums.hour, local_sums.hour) NOT IN (SELECT touched.hour FROM touched)
