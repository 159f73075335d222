-- Who may do what. Nothing is granted to everybody, and nothing of raw to the dashboards.
-- dbt makes and owns its schemas (staging, intermediate, marts) and grants what merchants read.

DO $$
BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format(
        'GRANT CONNECT ON DATABASE %I TO giovang_streams, giovang_dbt, giovang_dashboards',
        current_database()
    );
    -- The processor stages its batches in temporary tables; so do dbt's incremental models.
    EXECUTE format(
        'GRANT TEMPORARY ON DATABASE %I TO giovang_streams, giovang_dbt', current_database()
    );
    EXECUTE format('GRANT CREATE ON DATABASE %I TO giovang_dbt', current_database());
END
$$;

GRANT USAGE ON SCHEMA raw TO giovang_streams, giovang_dbt;

GRANT SELECT, INSERT ON raw.payment_analytics, raw.refunds TO giovang_streams;
GRANT SELECT, INSERT, UPDATE ON raw.merchants, raw.watermark TO giovang_streams;

GRANT SELECT ON ALL TABLES IN SCHEMA raw TO giovang_dbt;
ALTER DEFAULT PRIVILEGES IN SCHEMA raw GRANT SELECT ON TABLES TO giovang_dbt;
