{{ config(materialized='view') }}
SELECT
    states.event_id,
    states.payment_id,
    states.merchant_id,
    states.asset,
    states.payer_country,
    states.payer_address,
    states.amount_vnd,
    states.fee_vnd,
    states.reached_at AS completed_at,
    states.position,
    states.ordinal
FROM {{ ref('stg_payment_states') }} AS states
WHERE
    states.status = 'completed'
    AND NOT EXISTS (
        SELECT 1
        FROM {{ ref('int_superseded_completions') }} AS superseded
        WHERE superseded.event_id = states.event_id
    )
