{{ config(
    materialized='incremental',
    incremental_strategy='delete+insert',
    unique_key='event_id',
    on_schema_change='fail',
    pre_hook="{{ open_horizon() }}",
    post_hook="{{ close_horizon() }}",
    indexes=[{'columns': ['event_id'], 'unique': True}, {'columns': ['hour', 'merchant_id']}],
) }}
WITH payment_states AS (
    SELECT
        event_id,
        payment_id,
        merchant_id,
        status,
        amount_vnd,
        reached_at,
        LEAD(event_id) OVER (
            PARTITION BY payment_id
            ORDER BY position, ordinal
        ) AS next_event_id
    FROM {{ ref('stg_payment_states') }}
    {%- if is_incremental() %}
    WHERE
        payment_id IN (
            SELECT arrived.payment_id
            FROM {{ ref('stg_payment_states') }} AS arrived
            WHERE arrived.{{ arrived_since_last_build() }}
        )
    {%- endif %}
)

SELECT
    event_id,
    payment_id,
    merchant_id,
    {{ utc_hour('reached_at') }} AS hour,
    amount_vnd,
    next_event_id AS superseded_by_event_id
FROM payment_states
WHERE
    status = 'completed'
    AND next_event_id IS NOT NULL
