{#-
    Incremental models choose what to rebuild by arrival, never by event time: a payment of last
    March that arrives today must change March.

    "Arrived since the last build" is not a question for the wall clock: recorded_at is when the
    writer's database transaction began, and it becomes visible only when that one ends. So:

    1. The warehouse writer stores one batch after another and moves raw.watermark in the same
       database transaction as the batch. A build therefore notes the watermark's updated_at before
       it reads any row: every batch it cannot see yet begins after that instant, however long it
       stays open.
    2. A re-injected or replayed event may come from a second writer, whose database transaction
       began earlier and ends later; hence the overlap (`arrival_overlap`), longer than any
       writer's deadline. Choosing too much is harmless, since whole hours are recomputed.
    3. Someone may build one model and not the next. So each model keeps a horizon of its own in
       intermediate.horizons, moved in the same database transaction as its rows. A model that
       reads another incremental model takes over that model's horizon: it can be no fresher.
-#}
{% macro horizons() -%}
    {{ return(api.Relation.create(
        database=target.database, schema='intermediate', identifier='horizons', type='table'
    )) }}
{%- endmacro %}

{% macro create_horizons() -%}
    {%- if execute and adapter.get_relation(target.database, 'intermediate', 'horizons') is none -%}
        {%- if not adapter.check_schema_exists(target.database, 'intermediate') %}
        CREATE SCHEMA intermediate;
        {%- endif %}
        CREATE TABLE {{ horizons() }} (
            model text PRIMARY KEY,
            arrived_at timestamptz NOT NULL DEFAULT '-infinity',
            committed_through timestamptz,
            next_arrived_at timestamptz NOT NULL,
            next_committed_through timestamptz
        );
    {%- endif -%}
{%- endmacro %}

{#- Pre-hook: note how far the inputs reach, before the model reads them. `upstream` names the
    incremental models among them; without it the input is raw, through the staging views. -#}
{% macro open_horizon(upstream=none) -%}
    INSERT INTO {{ horizons() }} (model, next_arrived_at, next_committed_through)
    SELECT
        '{{ this.identifier }}', COALESCE(MIN(inputs.arrived_at), '-infinity'),
        MIN(inputs.committed_through)
    {%- if upstream %}
    FROM {{ horizons() }} AS inputs
    WHERE inputs.model IN ('{{ upstream | join("', '") }}')
    {%- else %}
    FROM (
        SELECT updated_at AS arrived_at, committed_through FROM {{ ref('stg_watermark') }}
    ) AS inputs
    {%- endif %}
    ON CONFLICT (model) DO UPDATE SET
        next_arrived_at = excluded.next_arrived_at,
        next_committed_through = excluded.next_committed_through
{%- endmacro %}

{#- Post-hook, in the model's own database transaction: what was noted has now been built. -#}
{% macro close_horizon() -%}
    UPDATE {{ horizons() }}
    SET arrived_at = next_arrived_at, committed_through = next_committed_through
    WHERE model = '{{ this.identifier }}'
{%- endmacro %}

{#- Predicate on recorded_at: this row may have arrived since the model's last build. -#}
{% macro arrived_since_last_build() -%}
    recorded_at >= COALESCE(
        (
            SELECT horizon.arrived_at - INTERVAL '{{ var("arrival_overlap") }}'
            FROM {{ horizons() }} AS horizon
            WHERE horizon.model = '{{ this.identifier }}'
        ),
        '-infinity'
    )
{%- endmacro %}

{#- Query of the UTC hours whose completed payments may have changed since the last build: every
    hour in which a payment that something arrived for was ever completed, so that the hour which a
    correction takes the payment away from is among them. -#}
{% macro affected_hours() -%}
    SELECT DISTINCT {{ utc_hour('completed.reached_at') }} AS hour
    FROM {{ ref('stg_payment_states') }} AS completed
    WHERE
        completed.status = 'completed'
        AND completed.payment_id IN (
            SELECT arrived.payment_id
            FROM {{ ref('stg_payment_states') }} AS arrived
            WHERE arrived.{{ arrived_since_last_build() }}
        )
{%- endmacro %}

{#- Predicate on an instant: it lies in one of the hours of the CTE `affected`. The two bounds say
    nothing that the third line does not; they let TimescaleDB leave all other chunks unread. IS
    TRUE keeps the planner from turning the set into a join: it takes the bounds to leave one row,
    and would loop over the whole set for every one of them. -#}
{% macro in_affected_hours(instant) -%}
    {{ instant }} >= (SELECT MIN(affected.hour) FROM affected)
    AND {{ instant }} < (SELECT MAX(affected.hour) + INTERVAL '1 hour' FROM affected)
    AND ({{ utc_hour(instant) }} IN (SELECT affected.hour FROM affected)) IS TRUE
{%- endmacro %}
