-- The chain of digests that makes a change in the audit trail show.
--
-- Each audit row gets one link: the SHA-256 of the row, and the SHA-256 of the link before together
-- with it. Who alters, removes or slips in a row must make every later link anew, and the head that
-- somebody noted elsewhere then stands in no chain. Links are made by the watcher, seconds after
-- the row; writing a row costs exactly what it did.
--
-- Rows commit in another order than their ids are given, so "all ids up to here" is not "all rows
-- up to here". What makes it so is the horizon: an id, and the id of a database transaction that
-- began after that id was given. A row's database transaction has its own id before the row has
-- one (audit_write runs after a write, audit_record sees to it); so once every database transaction
-- older than the horizon's has ended, no row can appear below the horizon's id. Those that
-- committed late are linked then, and `complete_id` says so: an unlinked row at or below it was
-- put in by hand.

CREATE TABLE audit_chain (
    seq          bigint PRIMARY KEY CHECK (seq > 0),
    log_id       bigint NOT NULL UNIQUE,
    event_time   timestamptz NOT NULL,
    row_digest   bytea NOT NULL CHECK (length(row_digest) = 32),
    chain_digest bytea NOT NULL CHECK (length(chain_digest) = 32)
);
-- No foreign key to the rows: a year that went to the archive keeps its links, and with them the
-- digests its rows must have.
CREATE INDEX audit_chain_by_age ON audit_chain USING brin (event_time);

-- How far the chain is; its row lock is what lets one sealer work at a time.
CREATE TABLE audit_chain_head (
    one          boolean PRIMARY KEY DEFAULT true CHECK (one),
    seq          bigint NOT NULL DEFAULT 0,
    chain_digest bytea NOT NULL DEFAULT sha256('') CHECK (length(chain_digest) = 32),
    reached_id   bigint NOT NULL DEFAULT 0,   -- the greatest id linked
    complete_id  bigint NOT NULL DEFAULT 0,   -- no row at or below it is unlinked, or ever will be
    horizon_id   bigint NOT NULL DEFAULT 0,
    horizon_xact xid8,
    CHECK (complete_id <= horizon_id)
) WITH (fillfactor = 50);
INSERT INTO audit_chain_head DEFAULT VALUES;

CREATE TRIGGER audit_chain_is_history BEFORE UPDATE OR DELETE ON audit_chain
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_chain_stays BEFORE TRUNCATE ON audit_chain
    EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_chain_head_stays BEFORE DELETE ON audit_chain_head
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
-- Digests tell nothing of a tenant. Only who verifies has a reason to read them, and nobody but
-- audit_seal writes them.
GRANT SELECT ON audit_chain, audit_chain_head, audit_logs_id_seq TO giovang_operator;

-- The digest of a row, version 1: SHA-256 over the version and each column as `octets:text`, or
-- `-` for NULL, joined by commas. Times are microseconds since 1970. No two rows share a text.
CREATE FUNCTION audit_row_digest(log audit_logs) RETURNS bytea
LANGUAGE plpgsql STABLE SET search_path = pg_catalog
AS $$
DECLARE
    id         CONSTANT text := log.id;
    event_time CONSTANT text := (extract(epoch FROM log.event_time) * 1000000)::bigint;
    before     CONSTANT text := log.before;
    after      CONSTANT text := log.after;
BEGIN
    RETURN sha256(convert_to(concat_ws(',', 'giovang-audit-1',
        octet_length(id) || ':' || id,
        octet_length(event_time) || ':' || event_time,
        octet_length(log.actor) || ':' || log.actor,
        octet_length(log.action) || ':' || log.action,
        octet_length(log.subject_type) || ':' || log.subject_type,
        octet_length(log.subject_id) || ':' || log.subject_id,
        coalesce(octet_length(log.merchant_id) || ':' || log.merchant_id, '-'),
        coalesce(octet_length(log.request_id) || ':' || log.request_id, '-'),
        coalesce(octet_length(before) || ':' || before, '-'),
        coalesce(octet_length(after) || ':' || after, '-')), 'UTF8'));
END
$$;

-- Link the rows of (after_id, through_id] that have no link yet, looking at `most` at the most;
-- returns how many it linked, and the id up to which none is left. The caller holds the head.
CREATE FUNCTION audit_link(
    after_id bigint, through_id bigint, most int, OUT linked int, OUT looked_through bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, public
AS $$
DECLARE
    head      audit_chain_head;
    found_row record;
    looked_at int := 0;
BEGIN
    SELECT * INTO STRICT head FROM audit_chain_head;
    linked := 0;
    FOR found_row IN
        SELECT candidate.id, candidate.event_time, link.seq IS NOT NULL AS has_link,
               CASE WHEN link.seq IS NULL THEN audit_row_digest(candidate.log) END AS digest
        FROM (SELECT log.id, log.event_time, log
              FROM audit_logs AS log
              WHERE log.id > after_id AND log.id <= through_id
              ORDER BY log.id LIMIT most) AS candidate
        LEFT JOIN audit_chain AS link ON link.log_id = candidate.id
        ORDER BY candidate.id
    LOOP
        looked_at := looked_at + 1;
        looked_through := found_row.id;
        CONTINUE WHEN found_row.has_link;
        linked := linked + 1;
        head.seq := head.seq + 1;
        head.chain_digest := sha256(head.chain_digest || found_row.digest);
        head.reached_id := greatest(head.reached_id, found_row.id);
        INSERT INTO audit_chain (seq, log_id, event_time, row_digest, chain_digest)
        VALUES (head.seq, found_row.id, found_row.event_time, found_row.digest,
                head.chain_digest);
    END LOOP;
    IF looked_at < most THEN
        looked_through := through_id;
    END IF;
    IF linked > 0 THEN
        UPDATE audit_chain_head
        SET seq = head.seq, chain_digest = head.chain_digest, reached_id = head.reached_id;
    END IF;
END
$$;

-- One bounded step of sealing: `most` rows that are new, and as many that may have come late.
-- Returns how many it linked, and whether there is more to do at once. It does nothing where
-- another sealer is at work.
CREATE FUNCTION audit_seal(most int, OUT linked int, OUT more boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
DECLARE
    head     audit_chain_head;
    given_id bigint;
    own_xact xid8;
    step     record;
BEGIN
    IF most NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'a step of sealing looks at 1 to 10000 rows'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF pg_current_xact_id_if_assigned() IS NOT NULL THEN
        RAISE EXCEPTION 'audit_seal is the first write of its database transaction'
            USING ERRCODE = 'invalid_transaction_state';
    END IF;
    linked := 0;
    more := false;

    -- In this order: an id that was given already, then a database transaction that begins after.
    SELECT CASE WHEN is_called THEN last_value ELSE 0 END INTO given_id FROM audit_logs_id_seq;
    PERFORM FROM audit_chain_head WHERE complete_id = given_id;
    IF FOUND THEN
        RETURN;
    END IF;
    own_xact := pg_current_xact_id();
    SELECT * INTO head FROM audit_chain_head FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN;
    END IF;

    -- What is new, in the order of ids; whatever is on its way below them comes later.
    SELECT * INTO step FROM audit_link(head.reached_id, given_id, most);
    linked := step.linked;
    more := step.looked_through < given_id;

    -- Once the horizon is passed: what committed late.
    IF head.complete_id < head.horizon_id
       AND pg_snapshot_xmin(pg_current_snapshot()) >= head.horizon_xact THEN
        SELECT * INTO step FROM audit_link(head.complete_id, head.horizon_id, most);
        linked := linked + step.linked;
        head.complete_id := step.looked_through;
        more := more OR head.complete_id < head.horizon_id;
    END IF;
    -- The next horizon. One that lies in the future came with rows from another server, whose
    -- count of database transactions means nothing here.
    IF head.complete_id = head.horizon_id OR head.horizon_xact > own_xact THEN
        head.horizon_id := given_id;
        head.horizon_xact := own_xact;
    END IF;
    UPDATE audit_chain_head SET complete_id = head.complete_id, horizon_id = head.horizon_id,
                                horizon_xact = head.horizon_xact;
END
$$;
GRANT EXECUTE ON FUNCTION audit_seal(int) TO giovang_watcher;

-- What is not the write of a row leaves its audit row by this: a person signed in, a chain
-- transaction was set aside. Who and for whom is the unit of work's to say, not the caller's; and
-- no application role has a grant on the table itself any more.
CREATE FUNCTION audit_record(action text, subject_type text, subject_id text, after jsonb)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public
AS $$
BEGIN
    -- Before the row has its id; see the top.
    PERFORM pg_current_xact_id();
    INSERT INTO audit_logs (actor, action, subject_type, subject_id, merchant_id, request_id, after)
    VALUES (coalesce(nullif(current_setting('giovang.actor', true), ''), 'role:' || session_user),
            audit_record.action, audit_record.subject_type, audit_record.subject_id,
            nullif(giovang_tenant(), ''),
            nullif(current_setting('giovang.request_id', true), ''),
            audit_record.after);
END
$$;
GRANT EXECUTE ON FUNCTION audit_record(text, text, text, jsonb)
    TO giovang_api, giovang_operator, giovang_watcher;
REVOKE INSERT ON audit_logs FROM giovang_api, giovang_operator, giovang_watcher;
