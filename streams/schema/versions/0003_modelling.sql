-- What the modeller needs beyond reading.

-- An incremental build asks for the other states of the payments that moved.
CREATE INDEX payment_analytics_payment_time ON raw.payment_analytics (payment_id, time);

-- A continuous aggregate puts its invalidation trigger on the hypertable. Only the community edition
-- has continuous aggregates, so only there is the grant given.
DO $$
BEGIN
    IF current_setting('timescaledb.license') = 'timescale' THEN
        GRANT TRIGGER ON raw.payment_analytics TO giovang_dbt;
    END IF;
END
$$;
