{{ config(
    materialized='table',
    indexes=[{'columns': ['merchant_id'], 'unique': True}],
) }}
{#- The plain definition of the mission: the four hours of the merchant's day with the most
    completed volume on average. It says where the money came from so far, not why, so the words
    claim no cause. Significance ("golden hours") is a model of its own beside this one. -#}
WITH ranked AS (
    SELECT
        merchant_id,
        local_hour,
        avg_volume,
        volume_share,
        ROW_NUMBER() OVER (
            PARTITION BY merchant_id
            ORDER BY avg_volume DESC, local_hour ASC
        ) AS volume_rank
    FROM {{ ref('hour_profile') }}
    WHERE payments > 0
),

peaks AS (
    SELECT
        merchant_id,
        local_hour,
        avg_volume,
        volume_share,
        -- Neighbouring hours share this value, and so become one stretch of the clock.
        local_hour - ROW_NUMBER() OVER (
            PARTITION BY merchant_id
            ORDER BY local_hour
        ) AS stretch
    FROM ranked
    WHERE volume_rank <= 4
),

stretches AS (
    SELECT
        merchant_id,
        MIN(local_hour) AS first_hour,
        LPAD(MIN(local_hour)::text, 2, '0') || ':00–'
        || LPAD((MAX(local_hour) + 1)::text, 2, '0') || ':00' AS words
    FROM peaks
    GROUP BY merchant_id, stretch
),

phrases AS (
    SELECT
        merchant_id,
        STRING_AGG(words, ', ' ORDER BY first_hour) AS words
    FROM stretches
    GROUP BY merchant_id
),

tops AS (
    SELECT
        merchant_id,
        ARRAY_AGG(local_hour ORDER BY local_hour) AS peak_hours,
        ROUND(AVG(avg_volume), 2) AS avg_volume,
        ROUND(100 * SUM(volume_share)) AS share_percent
    FROM peaks
    GROUP BY merchant_id
),

evidence AS (
    SELECT DISTINCT
        merchant_id,
        window_start,
        window_end,
        days,
        active_days,
        window_payments AS payments
    FROM {{ ref('hour_profile') }}
),

judged AS (
    SELECT
        merchants.merchant_id,
        evidence.window_start,
        evidence.window_end,
        tops.peak_hours,
        tops.avg_volume,
        tops.share_percent,
        phrases.words,
        COALESCE(evidence.payments, 0) AS payments,
        COALESCE(evidence.days, 0) AS days,
        COALESCE(evidence.active_days, 0) AS active_days,
        COALESCE(
            evidence.payments >= {{ var('peak_minimum_payments') }}
            AND evidence.active_days >= {{ var('peak_minimum_active_days') }},
            FALSE
        ) AS confident
    FROM {{ ref('stg_merchants') }} AS merchants
    LEFT JOIN evidence ON merchants.merchant_id = evidence.merchant_id
    LEFT JOIN tops ON merchants.merchant_id = tops.merchant_id
    LEFT JOIN phrases ON merchants.merchant_id = phrases.merchant_id
)

SELECT
    merchant_id,
    CASE WHEN confident THEN peak_hours ELSE '{}'::integer[] END AS peak_hours,
    CASE WHEN confident THEN avg_volume END AS avg_volume,
    CASE WHEN confident THEN share_percent::integer END AS share_percent,
    payments,
    days,
    active_days,
    confident,
    CASE
        WHEN confident
            THEN
                'Khách trả nhiều nhất lúc ' || words || ': ' || share_percent
                || ' % doanh số của ' || {{ grouped_vi('payments') }} || ' giao dịch trong '
                || days || ' ngày. Điều này chưa chứng minh khuyến mãi làm tăng doanh số: hãy thử '
                || 'xen kẽ ngày có và ngày không rồi so sánh.'
        ELSE
            'Chưa đủ dữ liệu: có ' || {{ grouped_vi('payments') }} || ' giao dịch trong '
            || active_days || ' ngày có khách, cần ít nhất {{ var("peak_minimum_payments") }} '
            || 'giao dịch trong {{ var("peak_minimum_active_days") }} ngày.'
    END AS recommendation_vi,
    CASE
        WHEN confident
            THEN
                'Customers have paid most at ' || words || ': ' || share_percent
                || '% of volume over ' || {{ grouped_en('payments') }} || ' payments in ' || days
                || ' days. This does not show that a promotion adds sales: try days with and '
                || 'days without, and compare.'
        ELSE
            'Not enough data: ' || {{ grouped_en('payments') }} || ' payments on ' || active_days
            || ' active days so far; at least {{ var("peak_minimum_payments") }} payments on '
            || '{{ var("peak_minimum_active_days") }} days are needed.'
    END AS recommendation_en,
    window_start,
    window_end
FROM judged
