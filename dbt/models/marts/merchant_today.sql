{{ config(
    materialized='table',
    pre_hook="{{ open_horizon() }}",
    post_hook="{{ close_horizon() }}",
    indexes=[{'columns': ['merchant_id'], 'unique': True}],
) }}
{#- A comparison is fair only over the same stretch of the day, so the day before and the week
    before end at the time of day up to which today is complete (cut_at), not at their midnight. -#}
WITH watermark AS (
    SELECT LEAST({{ clock() }}, COALESCE(MIN(committed_through), {{ clock() }})) AS complete_at
    FROM {{ ref('stg_watermark') }}
),

days AS (
    SELECT
        merchants.merchant_id,
        merchants.timezone,
        ({{ clock() }} AT TIME ZONE merchants.timezone)::date AS local_date,
        GREATEST(
            watermark.complete_at AT TIME ZONE merchants.timezone,
            ({{ clock() }} AT TIME ZONE merchants.timezone)::date::timestamp
        ) AS cut_local
    FROM {{ ref('stg_merchants') }} AS merchants
    CROSS JOIN watermark
),

first_hours AS (
    SELECT
        merchant_id,
        MIN(hour) AS first_hour
    FROM {{ ref('hourly_volume') }}
    GROUP BY merchant_id
),

periods AS (
    SELECT
        days.merchant_id,
        days.local_date,
        offsets.days_back,
        days.cut_local AT TIME ZONE days.timezone AS cut_at,
        (days.local_date - offsets.days_back)::timestamp AT TIME ZONE days.timezone AS starts_at,
        CASE
            WHEN offsets.days_back = 0 THEN 'infinity'::timestamptz
            ELSE
                (days.cut_local - MAKE_INTERVAL(days => offsets.days_back))
                AT TIME ZONE days.timezone
        END AS ends_at
    FROM days
    CROSS JOIN (VALUES (0), (1), (7)) AS offsets (days_back)
),

earliest AS (
    SELECT MIN(starts_at) AS starts_at FROM periods
),

paid AS (
    SELECT
        periods.merchant_id,
        periods.days_back,
        SUM(completions.amount_vnd) AS volume_vnd,
        COUNT(*) AS tx_count
    FROM periods
    INNER JOIN {{ ref('int_completions') }} AS completions
        ON
            periods.merchant_id = completions.merchant_id
            AND periods.starts_at <= completions.completed_at
            AND periods.ends_at > completions.completed_at
    WHERE completions.completed_at >= (SELECT earliest.starts_at FROM earliest)
    GROUP BY periods.merchant_id, periods.days_back
),

created AS (
    SELECT
        periods.merchant_id,
        periods.days_back,
        COUNT(DISTINCT states.payment_id) AS created_count,
        COUNT(DISTINCT completions.payment_id) AS created_completed_count
    FROM periods
    INNER JOIN {{ ref('stg_payment_states') }} AS states
        ON
            periods.merchant_id = states.merchant_id
            AND periods.starts_at <= states.reached_at
            AND periods.ends_at > states.reached_at
    LEFT JOIN {{ ref('int_completions') }} AS completions
        ON
            states.payment_id = completions.payment_id
            AND periods.ends_at > completions.completed_at
            AND completions.completed_at >= (SELECT earliest.starts_at FROM earliest)
    WHERE
        states.status = 'created'
        AND states.reached_at >= (SELECT earliest.starts_at FROM earliest)
    GROUP BY periods.merchant_id, periods.days_back
),

refund_states AS (
    SELECT DISTINCT ON (refund_id)
        refund_id,
        merchant_id,
        status,
        amount_vnd,
        reached_at
    FROM {{ ref('stg_refund_states') }}
    WHERE reached_at >= (SELECT earliest.starts_at FROM earliest)
    ORDER BY refund_id ASC, position DESC, ordinal DESC
),

refunded AS (
    SELECT
        periods.merchant_id,
        periods.days_back,
        SUM(refund_states.amount_vnd) AS refunds_vnd,
        COUNT(*) AS refund_count
    FROM periods
    INNER JOIN refund_states
        ON
            periods.merchant_id = refund_states.merchant_id
            AND periods.starts_at <= refund_states.reached_at
            AND periods.ends_at > refund_states.reached_at
    WHERE refund_states.status = 'completed'
    GROUP BY periods.merchant_id, periods.days_back
),

figures AS (
    SELECT
        periods.merchant_id,
        periods.local_date,
        periods.days_back,
        periods.cut_at,
        first_hours.first_hour < periods.starts_at AS has_history,
        COALESCE(paid.volume_vnd, 0) AS volume_vnd,
        COALESCE(paid.tx_count, 0) AS tx_count,
        COALESCE(refunded.refunds_vnd, 0) AS refunds_vnd,
        COALESCE(refunded.refund_count, 0) AS refund_count,
        COALESCE(created.created_count, 0) AS created_count,
        COALESCE(created.created_completed_count, 0) AS created_completed_count
    FROM periods
    LEFT JOIN first_hours ON periods.merchant_id = first_hours.merchant_id
    LEFT JOIN paid
        ON periods.merchant_id = paid.merchant_id AND periods.days_back = paid.days_back
    LEFT JOIN created
        ON periods.merchant_id = created.merchant_id AND periods.days_back = created.days_back
    LEFT JOIN refunded
        ON periods.merchant_id = refunded.merchant_id AND periods.days_back = refunded.days_back
)

SELECT
    today.merchant_id,
    today.local_date,
    today.cut_at,
    today.volume_vnd,
    today.tx_count,
    today.refunds_vnd,
    today.refund_count,
    today.volume_vnd - today.refunds_vnd AS net_vnd,
    today.created_count,
    today.created_completed_count,
    {{ share('today.created_completed_count', 'today.created_count') }} AS conversion,
    day_before.volume_vnd AS day_before_volume_vnd,
    day_before.tx_count AS day_before_tx_count,
    day_before.refunds_vnd AS day_before_refunds_vnd,
    day_before.volume_vnd - day_before.refunds_vnd AS day_before_net_vnd,
    {{ share('day_before.created_completed_count', 'day_before.created_count') }}
        AS day_before_conversion,
    week_before.volume_vnd AS week_before_volume_vnd,
    week_before.tx_count AS week_before_tx_count,
    week_before.refunds_vnd AS week_before_refunds_vnd,
    week_before.volume_vnd - week_before.refunds_vnd AS week_before_net_vnd,
    {{ share('week_before.created_completed_count', 'week_before.created_count') }}
        AS week_before_conversion
FROM figures AS today
LEFT JOIN figures AS day_before
    ON
        today.merchant_id = day_before.merchant_id
        AND day_before.days_back = 1
        AND day_before.has_history
LEFT JOIN figures AS week_before
    ON
        today.merchant_id = week_before.merchant_id
        AND week_before.days_back = 7
        AND week_before.has_history
WHERE today.days_back = 0
