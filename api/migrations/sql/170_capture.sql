-- Rows told again: how a backfill puts the rows of a published table into the log, in commit order.
--
-- A chunk of a table is read and its rows' images are written to capture_backfill, which is
-- published. So each image travels as any change does, and stands in the stream where its database
-- transaction committed. Rows that may change are locked FOR SHARE until then: whatever changed one
-- before is before it in the stream, and whatever changes it later is after it. Rows that never
-- change need no lock.
--
-- The functions are capture's alone. They tell nothing that capture may not read already, and let
-- nobody else read or write what is told: the table has no grants, and a policy for its owner only.

CREATE TABLE capture_backfill (
    run        bigint NOT NULL CHECK (run > 0),
    table_name text   NOT NULL,
    operation  text   NOT NULL CHECK (operation IN ('snapshot', 'delete')),
    image      text   NOT NULL
);
COMMENT ON TABLE capture_backfill IS
    'A passage into the log: rows are of no use once written, and the table is emptied again. It has '
    'no replica identity, so PostgreSQL itself refuses to change or delete one.';
ALTER TABLE capture_backfill ENABLE ROW LEVEL SECURITY;
ALTER TABLE capture_backfill FORCE ROW LEVEL SECURITY;
CREATE POLICY keeper ON capture_backfill TO giovang_owner USING (true) WITH CHECK (true);
ALTER PUBLICATION payment_gateway_publication ADD TABLE capture_backfill;

-- What the functions below have to know of a table, from the catalogue, so that a new column is told
-- as well: its key, and its columns in the form that the change events have (ingest/envelope.py).
CREATE FUNCTION backfill_shape(
    told_table name,
    OUT relation regclass, OUT key_names text[], OUT key_types text[], OUT columns text,
    OUT mutable boolean, OUT owner_column text
)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    unknown text;
BEGIN
    SELECT c.oid::regclass, c.relreplident = 'f' INTO relation, mutable
    FROM pg_publication AS p
    JOIN pg_publication_rel AS r ON r.prpubid = p.oid
    JOIN pg_class AS c ON c.oid = r.prrelid
    WHERE p.pubname = 'payment_gateway_publication'
      AND c.relnamespace = 'public'::regnamespace
      AND c.relname = told_table AND c.relname NOT LIKE 'capture\_%';
    IF relation IS NULL THEN
        RAISE EXCEPTION 'table % is not published', told_table USING ERRCODE = 'undefined_table';
    END IF;

    SELECT array_agg(a.attname ORDER BY k.place), array_agg(a.atttypid::regtype ORDER BY k.place)
    INTO key_names, key_types
    FROM pg_index AS i
    CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k (number, place)
    JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number
    WHERE i.indrelid = relation AND i.indisprimary;

    SELECT string_agg(
               CASE
                   WHEN t.kind IN ('int8', 'numeric') AND a.attname LIKE '%\_minor'
                     OR t.kind IN ('numeric', 'jsonb', 'json')
                       THEN format('%1$I::text AS %1$I', a.attname)
                   WHEN t.kind = 'timestamptz'
                       THEN format('to_char(%1$I AT TIME ZONE ''UTC'', '
                                   '''YYYY-MM-DD"T"HH24:MI:SS.US"Z"'') AS %1$I', a.attname)
                   ELSE quote_ident(a.attname)
               END, ', ' ORDER BY a.attnum),
           string_agg(a.attname || ' (' || t.kind || ')', ', ') FILTER (WHERE t.kind NOT IN (
               'int2', 'int4', 'int8', 'numeric', 'bool', 'text', 'varchar', 'bpchar', 'uuid',
               'timestamptz', 'jsonb', 'json')),
           max(a.attname) FILTER (
               WHERE a.attname = CASE told_table WHEN 'merchants' THEN 'id' ELSE 'merchant_id' END)
    INTO columns, unknown, owner_column
    FROM pg_attribute AS a
    CROSS JOIN LATERAL (SELECT typname::text AS kind FROM pg_type WHERE oid = a.atttypid) AS t
    WHERE a.attrelid = relation AND a.attnum > 0 AND NOT a.attisdropped;
    IF unknown IS NOT NULL THEN
        RAISE EXCEPTION 'table %: backfill_shape() does not know how the stream has %',
            told_table, unknown USING ERRCODE = 'feature_not_supported';
    END IF;
END
$$;

-- Tell the next rows of a table, in the order of its key: those after `after_key`, about `most`,
-- where they are in the range (of the key's first column, both ends included) and the merchant's.
-- Returns how many and how large they were, and the key up to which all is told: NULL at the end.
--
-- The chunk's last key is settled before any row is locked, so that a row that moves or vanishes
-- meanwhile cannot make it skip others.
CREATE FUNCTION backfill_tell(
    run bigint, told_table name, after_key text[], range_from text, range_to text, merchant text,
    most int, OUT told bigint, OUT bytes bigint, OUT last_key text[]
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    shape CONSTANT record := backfill_shape(told_table);
    -- For example: id | (entry_id, seq) and $4[1]::text | ($4[1]::text, $4[2]::integer)
    key_row CONSTANT text := (
        SELECT 'ROW(' || string_agg(quote_ident(k), ', ') || ')' FROM unnest(shape.key_names) AS k);
    key_order CONSTANT text := (
        SELECT string_agg(quote_ident(k), ', ') FROM unnest(shape.key_names) AS k);
    key_texts CONSTANT text := (
        SELECT 'ARRAY[' || string_agg(quote_ident(k) || '::text', ', ') || ']'
        FROM unnest(shape.key_names) AS k);
    after_row CONSTANT text := (
        SELECT 'ROW(' || string_agg(format('$1[%s]::%s', place, kind), ', ') || ')'
        FROM unnest(shape.key_types) WITH ORDINALITY AS k (kind, place));
    wanted text := format('($2 IS NULL OR %1$I >= $2::%2$s) AND ($3 IS NULL OR %1$I <= $3::%2$s)',
                          shape.key_names[1], shape.key_types[1]);
BEGIN
    IF most NOT BETWEEN 1 AND 100000 THEN
        RAISE EXCEPTION 'a chunk is of 1 to 100000 rows, not %', most
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF after_key IS NOT NULL THEN
        wanted := format('%s > %s AND ', key_row, after_row) || wanted;
    END IF;
    EXECUTE format('SELECT %s FROM %s WHERE %s ORDER BY %s OFFSET $4 LIMIT 1',
                   key_texts, shape.relation, wanted, key_order)
        INTO last_key USING after_key, range_from, range_to, most - 1;
    IF last_key IS NOT NULL THEN
        wanted := wanted || format(' AND %s <= %s', key_row, replace(after_row, '$1', '$4'));
    END IF;
    IF merchant IS NOT NULL THEN
        wanted := wanted || format(' AND %I = $5', shape.owner_column);
    END IF;
    EXECUTE format(
        'WITH passed AS (
             INSERT INTO public.capture_backfill (run, table_name, operation, image)
             SELECT $6, %L, ''snapshot'', row_to_json(row_told)::text
             FROM (SELECT %s FROM %s WHERE %s ORDER BY %s %s) AS row_told
             RETURNING octet_length(image) AS size)
         SELECT count(*), coalesce(sum(size), 0) FROM passed',
        told_table, shape.columns, shape.relation, wanted, key_order,
        CASE WHEN shape.mutable THEN 'FOR SHARE' ELSE '' END)
        INTO told, bytes USING after_key, range_from, range_to, last_key, merchant, run;
END
$$;

-- Tell that rows are gone, each by the image it had last. What the table does have is left out; it
-- cannot get it meanwhile, since the table takes no change until this commits. Returns how many.
CREATE FUNCTION backfill_tell_gone(run bigint, told_table name, images text[]) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    shape CONSTANT record := backfill_shape(told_table);
    same_key CONSTANT text := (
        SELECT string_agg(format('kept.%I = (lost.image::jsonb ->> %L)::%s', name, name, kind), ' AND ')
        FROM unnest(shape.key_names, shape.key_types) AS k (name, kind));
    told bigint;
BEGIN
    EXECUTE format('LOCK TABLE %s IN SHARE MODE', shape.relation);
    EXECUTE format(
        'INSERT INTO public.capture_backfill (run, table_name, operation, image)
         SELECT $1, %L, ''delete'', lost.image
         FROM unnest($2) WITH ORDINALITY AS lost (image, place)
         WHERE NOT EXISTS (SELECT FROM %s AS kept WHERE %s)
         ORDER BY lost.place',
        told_table, shape.relation, same_key) USING run, images;
    GET DIAGNOSTICS told = ROW_COUNT;
    RETURN told;
END
$$;

-- Empty the passage. What went through it is in the log.
CREATE FUNCTION backfill_clear() RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    TRUNCATE public.capture_backfill;
END
$$;

GRANT EXECUTE ON FUNCTION
    backfill_tell(bigint, name, text[], text, text, text, int),
    backfill_tell_gone(bigint, name, text[]),
    backfill_clear()
TO giovang_capture;
