-- The raw schema: what the warehouse processor writes and dbt reads.
-- It is private to the pipeline's roles; merchants read marts, which carry row-level security.

CREATE SCHEMA raw;

-- One row for each state a payment reached, as the mission has it, with what makes it provable:
-- the event's id and its place in commit order.
CREATE TABLE raw.payment_analytics (
    time           timestamptz    NOT NULL,
    merchant_id    text           NOT NULL,
    amount_vnd     numeric(15, 2) NOT NULL,
    amount_usd     numeric(15, 2) NOT NULL,
    currency       text           NOT NULL,
    chain          text           NOT NULL,
    payer_country  char(2),
    status         text           NOT NULL,
    event_id       text           NOT NULL,
    payment_id     text           NOT NULL,
    exception      text,
    asset_amount   numeric(20, 6) NOT NULL,
    fee_vnd        numeric(15, 2) NOT NULL,
    payer_address  text,
    position       bigint         NOT NULL,
    ordinal        bigint         NOT NULL,
    committed_at   timestamptz    NOT NULL,
    recorded_at    timestamptz    NOT NULL DEFAULT now(),
    CONSTRAINT payment_analytics_event_once UNIQUE (event_id, time)
);
SELECT create_hypertable(
    'raw.payment_analytics', 'time',
    chunk_time_interval => INTERVAL '7 days', create_default_indexes => FALSE
);
CREATE INDEX payment_analytics_merchant_time ON raw.payment_analytics (merchant_id, time DESC);
CREATE INDEX payment_analytics_recorded_at ON raw.payment_analytics (recorded_at);

-- One row for each state a refund reached.
CREATE TABLE raw.refunds (
    time          timestamptz    NOT NULL,
    event_id      text           NOT NULL,
    refund_id     text           NOT NULL,
    payment_id    text           NOT NULL,
    merchant_id   text           NOT NULL,
    amount_vnd    numeric(15, 2) NOT NULL,
    status        text           NOT NULL,
    position      bigint         NOT NULL,
    ordinal       bigint         NOT NULL,
    committed_at  timestamptz    NOT NULL,
    recorded_at   timestamptz    NOT NULL DEFAULT now(),
    CONSTRAINT refunds_event_once UNIQUE (event_id, time)
);
SELECT create_hypertable(
    'raw.refunds', 'time',
    chunk_time_interval => INTERVAL '7 days', create_default_indexes => FALSE
);
CREATE INDEX refunds_merchant_time ON raw.refunds (merchant_id, time DESC);
CREATE INDEX refunds_recorded_at ON raw.refunds (recorded_at);

-- The newest state of each merchant; an older event never overwrites a newer one.
CREATE TABLE raw.merchants (
    merchant_id  text PRIMARY KEY,
    name         text        NOT NULL,
    trade        text        NOT NULL,
    timezone     text        NOT NULL,
    country      char(2),
    deleted_at   timestamptz,
    event_id     text        NOT NULL,
    position     bigint      NOT NULL,
    ordinal      bigint      NOT NULL,
    committed_at timestamptz NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT now()
);

-- How far each source is complete. Moved in the database transaction that writes the rows.
CREATE TABLE raw.watermark (
    source             text PRIMARY KEY,
    committed_through  timestamptz NOT NULL,
    position           bigint      NOT NULL,
    ordinal            bigint      NOT NULL,
    stream_sequence    bigint      NOT NULL,
    updated_at         timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
