{#- A part of a whole as a number between 0 and 1, to four places; null where there is no whole. -#}
{% macro share(part, whole) -%}
    ROUND({{ part }}::numeric / NULLIF({{ whole }}, 0), 4)
{%- endmacro %}

{#- Whole numbers grouped the way each language writes them, whatever locale the server runs. -#}
{% macro grouped_en(number) -%}
    REGEXP_REPLACE({{ number }}::text, '(\d)(?=(\d{3})+$)', '\1,', 'g')
{%- endmacro %}

{% macro grouped_vi(number) -%}
    REGEXP_REPLACE({{ number }}::text, '(\d)(?=(\d{3})+$)', '\1.', 'g')
{%- endmacro %}
