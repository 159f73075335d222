{{ config(materialized='table') }}
-- depends_on: {{ ref('hourly_volume') }}
-- depends_on: {{ ref('hour_profile') }}
-- depends_on: {{ ref('peak_hours') }}
-- depends_on: {{ ref('merchant_today') }}
{# Where nothing arrived since the marts were built, they are complete as far as capture is, even
    though nobody rebuilt them; else only as far as their builds began. One statement decides both,
    so no batch can slip in between. -#}

SELECT
    watermark.source,
    CASE
        WHEN arrivals.is_pending THEN arrivals.built_committed_through
        ELSE watermark.committed_through
    END AS committed_through,
    {{ clock() }} AS modelled_at
FROM {{ ref('stg_watermark') }} AS watermark
CROSS JOIN {{ ref('int_pending_arrivals') }} AS arrivals
