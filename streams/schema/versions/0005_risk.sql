-- Alerts of the risk processor, and what a merchant is shown of them.

-- One row for each payment that a rule flagged. The alert's id is made of the event that triggered
-- it, the rule and the version of all rules, so whoever finds it again adds nothing.
CREATE TABLE raw.risk_alerts (
    occurred_at   timestamptz NOT NULL,
    alert_id      text        NOT NULL,
    merchant_id   text        NOT NULL,
    payment_id    text        NOT NULL,
    event_id      text        NOT NULL,
    rule_id       text        NOT NULL,
    rule_version  integer     NOT NULL,
    rule_set      text        NOT NULL,
    severity      text        NOT NULL CHECK (severity IN ('low', 'medium', 'high')),
    score         smallint    NOT NULL CHECK (score BETWEEN 1 AND 100),
    reasons       jsonb       NOT NULL,
    flagged_at    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT risk_alerts_once UNIQUE (alert_id, occurred_at)
);
SELECT create_hypertable(
    'raw.risk_alerts', 'occurred_at',
    chunk_time_interval => INTERVAL '30 days', create_default_indexes => FALSE
);
CREATE INDEX risk_alerts_merchant_occurred ON raw.risk_alerts (merchant_id, occurred_at DESC);

GRANT SELECT, INSERT ON raw.risk_alerts TO giovang_streams;

ALTER TABLE raw.risk_alerts ENABLE ROW LEVEL SECURITY;
ALTER TABLE raw.risk_alerts FORCE ROW LEVEL SECURITY;
CREATE POLICY pipeline_writes_all ON raw.risk_alerts TO giovang_streams, CURRENT_USER
    USING (true) WITH CHECK (true);
CREATE POLICY modeller_reads_all ON raw.risk_alerts FOR SELECT TO giovang_dbt USING (true);

-- Merchants are shown alerts as they come: there is nothing to be modelled, and nothing to wait for.
-- They get a view and not the table, because policies do not reach a hypertable's chunks.
CREATE SCHEMA risk;
CREATE VIEW risk.alerts WITH (security_barrier) AS
SELECT alert_id, merchant_id, payment_id, rule_id, severity, score, reasons, occurred_at
FROM raw.risk_alerts
WHERE merchant_id = current_setting('giovang.merchant_id', true);

CREATE VIEW risk.freshness AS
SELECT committed_through FROM raw.watermark WHERE source = 'risk';

GRANT USAGE ON SCHEMA risk TO giovang_dashboards;
GRANT SELECT ON risk.alerts, risk.freshness TO giovang_dashboards;
