SELECT
    merchant_id,
    name,
    trade,
    timezone,
    country,
    deleted_at,
    recorded_at
FROM {{ source('raw', 'merchants') }}
