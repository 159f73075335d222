{#- The instant a model calls now. A macro of its own, so that a unit test can stop the clock. -#}
{% macro clock() -%}
    now()
{%- endmacro %}

{#- The UTC hour that holds an instant, whatever the session's time zone is: time_bucket() counts
    from a UTC origin, where date_trunc() would follow the session into half-hour zones. -#}
{% macro utc_hour(instant) -%}
    time_bucket(INTERVAL '1 hour', {{ instant }})
{%- endmacro %}
