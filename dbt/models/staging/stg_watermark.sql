SELECT
    source,
    committed_through,
    position,
    ordinal,
    stream_sequence,
    updated_at
FROM {{ source('raw', 'watermark') }}
WHERE source = 'ledger'
