-- The barrier of Holdfast: makes every branch operation take effect once. For a participant's own database.
-- May be run any number of times, also by several at once. Described in docs/guide/barrier.md.
BEGIN;
SELECT pg_catalog.pg_advisory_xact_lock(4704371092365091);

CREATE SCHEMA IF NOT EXISTS holdfast;

CREATE TABLE IF NOT EXISTS holdfast.barrier (
    -- Not ~ '^[A-Za-z0-9-]{1,35}$', which says the same: counting within the expression takes eight times as long.
    gid     text COLLATE "C" NOT NULL CHECK (gid OPERATOR(pg_catalog.!~) '[^A-Za-z0-9-]'
        AND pg_catalog.length(gid) OPERATOR(pg_catalog.>=) 1 AND pg_catalog.length(gid) OPERATOR(pg_catalog.<=) 35),
    branch  integer NOT NULL CHECK (branch OPERATOR(pg_catalog.>=) 1),
    op      text COLLATE "C" NOT NULL CHECK (op IN ('action', 'cancel', 'compensate', 'confirm', 'try')),
    -- Who wrote the row; another operation than op: it blocks op for good.
    by_op   text COLLATE "C" NOT NULL CHECK (by_op IN ('action', 'cancel', 'compensate', 'confirm', 'try')),
    answer  text COLLATE "C" NOT NULL DEFAULT 'done' CHECK (answer IN ('done', 'refused', 'working')),
    code    text CHECK (pg_catalog.length(code) OPERATOR(pg_catalog.<=) 64),
    message text CHECK (pg_catalog.length(message) OPERATOR(pg_catalog.<=) 1024),
    at      timestamptz NOT NULL DEFAULT pg_catalog.now(),
    PRIMARY KEY (gid, branch, op),
    CHECK ((answer OPERATOR(pg_catalog.=) 'refused') OPERATOR(pg_catalog.=) (code IS NOT NULL)),
    CHECK ((code IS NULL) OPERATOR(pg_catalog.=) (message IS NULL))
);
CREATE INDEX IF NOT EXISTS barrier_at ON holdfast.barrier USING brin (at);

-- Enters an operation: call it first in the local transaction that carries the operation out, and do what it returns:
--   proceed   carry it out in this local transaction, commit, answer done
--   repeat    it was done before: commit, answer done
--   empty     an undo of what never took effect: commit, answer done
--   refused   it was refused before: answer refused (code and message stand in its row)
--   late      a try or action behind its undo: answer refused
--   disorder  no coordinator asks this: answer neither done nor refused; people must look
-- A wrong gid, branch or op raises SQLSTATE 22023. Waits for another local transaction that has entered the same operation.
CREATE OR REPLACE FUNCTION holdfast.enter(gid text, branch integer, op text) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    saga      boolean;
    first_op  text;
    undo_op   text;
    claims    text[];
    mine      text[];
    other     boolean;
    first_any boolean;
    first_own text;
    undo_own  text;
    conf_any  boolean;
    conf_own  text;
    verdict   text;
BEGIN
    -- As the column's own check.
    IF enter.gid IS NULL OR enter.gid COLLATE "C" ~ '[^A-Za-z0-9-]' OR length(enter.gid) NOT BETWEEN 1 AND 35 THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'holdfast.enter: not a gid',
            HINT = 'A gid has 1 to 35 characters of A-Z, a-z, 0-9 and -. Pass the header Holdfast-Gid unchanged.';
    ELSIF enter.branch IS NULL OR enter.branch < 1 THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'holdfast.enter: not a branch',
            HINT = 'A branch is a number from 1. Pass the header Holdfast-Branch.';
    ELSIF enter.op IS NULL OR enter.op NOT IN ('action', 'cancel', 'compensate', 'confirm', 'try') THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'holdfast.enter: not an operation',
            HINT = 'An operation is try, confirm, cancel, action or compensate. Pass the header Holdfast-Op.';
    END IF;
    saga := enter.op IN ('action', 'compensate');
    first_op := CASE WHEN saga THEN 'action' ELSE 'try' END;
    undo_op := CASE WHEN saga THEN 'compensate' ELSE 'cancel' END;
    claims := CASE enter.op
        WHEN 'cancel' THEN ARRAY['cancel', 'confirm', 'try']
        WHEN 'compensate' THEN ARRAY['action', 'compensate']
        ELSE ARRAY[enter.op] END;

    WITH written AS (
        INSERT INTO holdfast.barrier AS b (gid, branch, op, by_op)
        SELECT enter.gid, enter.branch, c.claim, enter.op
        FROM unnest(claims) WITH ORDINALITY AS c (claim, place) ORDER BY c.place
        -- An update that never happens locks the row that is there: who undoes waits for the end of who is at it.
        ON CONFLICT (gid, branch, op) DO UPDATE SET at = b.at WHERE false
        RETURNING b.op)
    SELECT coalesce(array_agg(written.op), '{}') INTO mine FROM written;

    -- A statement of its own: it sees what the insert had to wait for.
    SELECT coalesce(bool_or((b.op IN ('action', 'compensate')) <> saga), false),
           coalesce(bool_or(b.op = first_op), false),
           max(b.answer) FILTER (WHERE b.op = first_op AND b.by_op = first_op),
           max(b.answer) FILTER (WHERE b.op = undo_op),
           coalesce(bool_or(b.op = 'confirm'), false),
           max(b.answer) FILTER (WHERE b.op = 'confirm' AND b.by_op = 'confirm')
    INTO other, first_any, first_own, undo_own, conf_any, conf_own
    FROM holdfast.barrier AS b
    WHERE b.gid = enter.gid AND b.branch = enter.branch AND b.op <> ALL (mine);

    IF other THEN
        verdict := 'disorder';
    ELSIF enter.op = first_op THEN
        verdict := CASE
            WHEN first_own = 'refused' THEN 'refused'
            WHEN undo_own IS NOT NULL OR (first_any AND first_own IS NULL) THEN 'late'
            WHEN first_own = 'working' THEN 'proceed'
            WHEN first_own = 'done' THEN 'repeat'
            WHEN conf_any THEN 'disorder'
            ELSE 'proceed' END;
    ELSIF enter.op = 'confirm' THEN
        verdict := CASE
            WHEN conf_own = 'working' THEN 'proceed'
            WHEN conf_own = 'refused' THEN 'refused'
            WHEN conf_own = 'done' THEN 'repeat'
            WHEN conf_any OR undo_own IS NOT NULL THEN 'disorder'
            WHEN first_own = 'done' THEN 'proceed'
            ELSE 'disorder' END;
    ELSE
        verdict := CASE
            WHEN conf_own IS NOT NULL THEN 'disorder'
            WHEN undo_own = 'working' THEN 'proceed'
            WHEN undo_own = 'refused' THEN 'refused'
            WHEN undo_own = 'done' THEN 'repeat'
            WHEN first_own IN ('done', 'working') THEN 'proceed'
            ELSE 'empty' END;
    END IF;

    IF verdict = 'proceed' AND enter.op <> ALL (mine) THEN
        -- It was working; unless it is said again, this time it is done.
        UPDATE holdfast.barrier AS b SET answer = 'done', at = now()
        WHERE b.gid = enter.gid AND b.branch = enter.branch AND b.op = enter.op;
    ELSIF verdict NOT IN ('proceed', 'empty') AND cardinality(mine) > 0 THEN
        DELETE FROM holdfast.barrier AS b
        WHERE b.gid = enter.gid AND b.branch = enter.branch AND b.op = ANY (mine);
    END IF;
    RETURN verdict;
END
$body$;

-- As holdfast.enter, with the value of the header Holdfast-Refusal (empty or NULL where there is none). If it is "waits", that the
-- action was refused before is no answer: a refusal waits for people, who may have removed its cause, so it is to be tried again.
CREATE OR REPLACE FUNCTION holdfast.enter(gid text, branch integer, op text, refusal text) RETURNS text
LANGUAGE plpgsql VOLATILE SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
BEGIN
    IF coalesce(enter.refusal, '') NOT IN ('', 'waits') THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'holdfast.enter: not a word on refusals',
            HINT = 'Pass the header Holdfast-Refusal unchanged, or an empty text where there is none.';
    END IF;
    IF enter.op = 'action' AND enter.refusal = 'waits' THEN
        UPDATE holdfast.barrier AS b SET answer = 'working', code = NULL, message = NULL
        WHERE b.gid = enter.gid AND b.branch = enter.branch AND b.op = 'action' AND b.by_op = 'action' AND b.answer = 'refused'
          AND NOT EXISTS (SELECT FROM holdfast.barrier AS u
                          WHERE u.gid = enter.gid AND u.branch = enter.branch AND u.op = 'compensate');
    END IF;
    RETURN holdfast.enter(enter.gid, enter.branch, enter.op);
END
$body$;

-- Records that a try or action that was entered in this local transaction is refused, so that the same call is told the same:
-- undo what it did, call this, commit, answer refused. A confirm, cancel or compensate cannot be refused: roll back instead.
CREATE OR REPLACE FUNCTION holdfast.refuse(gid text, branch integer, op text, code text, message text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
BEGIN
    IF refuse.op IS NULL OR refuse.op NOT IN ('action', 'try') THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'holdfast.refuse: only a try or an action can be refused',
            HINT = 'A confirm, cancel or compensate must succeed in the end: roll back, and it will be asked again.';
    END IF;
    UPDATE holdfast.barrier AS b
    SET answer = 'refused', code = left(coalesce(refuse.code, ''), 64), message = left(coalesce(refuse.message, ''), 1024)
    WHERE b.gid = refuse.gid AND b.branch = refuse.branch AND b.op = refuse.op AND b.by_op = refuse.op AND b.at = now();
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = '55000', MESSAGE = 'holdfast.refuse: not entered in this local transaction',
            HINT = 'Call holdfast.enter first, in the same local transaction, and refuse only when it returns proceed.';
    END IF;
END
$body$;

-- Records that an operation that was entered in this local transaction is under way: commit, answer working (HTTP 425). It will
-- be asked again, and then enter returns proceed.
CREATE OR REPLACE FUNCTION holdfast.working(gid text, branch integer, op text) RETURNS void
LANGUAGE plpgsql VOLATILE SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
BEGIN
    UPDATE holdfast.barrier AS b SET answer = 'working'
    WHERE b.gid = working.gid AND b.branch = working.branch AND b.op = working.op AND b.by_op = working.op AND b.at = now();
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = '55000', MESSAGE = 'holdfast.working: not entered in this local transaction',
            HINT = 'Call holdfast.enter first, in the same local transaction, and only when it returns proceed.';
    END IF;
END
$body$;

-- Deletes the rows of at most branches_max branches that ended longer than keep ago, and says how many rows. A call that comes
-- even later would be taken for new, so keep is at least two days.
CREATE OR REPLACE FUNCTION holdfast.prune(keep interval, branches_max integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    pruned bigint;
BEGIN
    IF prune.keep IS NULL OR prune.keep < interval '2 days' THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'holdfast.prune: keep is less than two days',
            HINT = 'Keep the rows longer than any global transaction can take, resumed ones included; 90 days is usual.';
    ELSIF prune.branches_max IS NULL OR prune.branches_max NOT BETWEEN 1 AND 100000 THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'holdfast.prune: branches_max is not within 1 and 100,000',
            HINT = 'Prune little at a time, and again until it returns 0.';
    END IF;
    WITH ended AS (
        SELECT e.gid, e.branch FROM holdfast.barrier AS e
        WHERE e.at < now() - prune.keep AND e.answer <> 'working' AND e.by_op = e.op
          AND e.op IN ('action', 'cancel', 'confirm')
          AND NOT EXISTS (SELECT FROM holdfast.barrier AS y
                          WHERE y.gid = e.gid AND y.branch = e.branch AND (y.at >= now() - prune.keep OR y.op = 'compensate' AND y.answer = 'working'))
        LIMIT prune.branches_max
        FOR UPDATE SKIP LOCKED),
    gone AS (
        DELETE FROM holdfast.barrier AS b USING ended WHERE b.gid = ended.gid AND b.branch = ended.branch RETURNING 1)
    SELECT count(*) INTO pruned FROM gone;
    RETURN pruned;
END
$body$;

COMMENT ON TABLE holdfast.barrier IS 'holdfast barrier 2';
COMMIT;
