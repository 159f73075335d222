SELECT
    event_id,
    refund_id,
    payment_id,
    merchant_id,
    status,
    amount_vnd,
    time AS reached_at,
    position,
    ordinal,
    committed_at,
    recorded_at
FROM {{ source('raw', 'refunds') }}
