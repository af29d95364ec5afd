-- The outbox, version 1: a message is a row that a service writes in its own local transaction. For a service's own database.
-- May be run any number of times, also by several at once. Described in docs/guide/06-messages.md.
BEGIN;
SELECT pg_catalog.pg_advisory_xact_lock(4704371092365091);

CREATE SCHEMA IF NOT EXISTS holdfast;

CREATE SEQUENCE IF NOT EXISTS holdfast.outbox_position AS bigint CACHE 1;

-- The first five columns are those that outbox readers of other makers expect.
CREATE TABLE IF NOT EXISTS holdfast.outbox (
    id            uuid NOT NULL PRIMARY KEY DEFAULT pg_catalog.gen_random_uuid(),
    aggregatetype text COLLATE "C" NOT NULL CONSTRAINT hf4123_topic
        CHECK (aggregatetype OPERATOR(pg_catalog.~) '^[A-Za-z0-9._-]{1,64}$'),
    aggregateid   text COLLATE "C" NOT NULL CONSTRAINT hf4123_key
        CHECK (pg_catalog.octet_length(aggregateid) BETWEEN 1 AND 255),
    type          text COLLATE "C" NOT NULL CONSTRAINT hf4123_kind
        CHECK (pg_catalog.octet_length(type) BETWEEN 1 AND 255),
    payload       jsonb NOT NULL CONSTRAINT hf4123_payload
        CHECK (pg_catalog.octet_length(payload::text) OPERATOR(pg_catalog.<=) 61440),
    -- W3C trace context of the local transaction, if it has one.
    traceparent   text COLLATE "C" CONSTRAINT hf4123_traceparent
        CHECK (traceparent OPERATOR(pg_catalog.~) '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$'),
    position      bigint NOT NULL DEFAULT 0,
    at            timestamptz NOT NULL DEFAULT pg_catalog.now(),
    -- Written by the relay: why this message holds up its key.
    stuck         text
);
CREATE UNIQUE INDEX IF NOT EXISTS outbox_position ON holdfast.outbox (position);
CREATE INDEX IF NOT EXISTS outbox_stuck ON holdfast.outbox (position) WHERE stuck IS NOT NULL;

-- Gives a message its place. Messages of one key are locked from here until their local transaction ends, so that their positions
-- are in the order of commit: a reader that sees one sees all before it. And a message that is seen must outlive a crash.
CREATE OR REPLACE FUNCTION holdfast.take_place() RETURNS trigger
LANGUAGE plpgsql VOLATILE SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $body$
BEGIN
    PERFORM pg_advisory_xact_lock(1330987087, hashtext(NEW.aggregatetype || E'\n' || NEW.aggregateid));
    NEW.position := nextval('holdfast.outbox_position');
    NEW.at := clock_timestamp();
    NEW.stuck := NULL;
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'local', true);
    END IF;
    PERFORM pg_notify('holdfast_outbox', '');
    RETURN NEW;
END
$body$;

CREATE OR REPLACE TRIGGER take_place BEFORE INSERT ON holdfast.outbox
    FOR EACH ROW EXECUTE FUNCTION holdfast.take_place();

-- Writes a message in the local transaction that calls it, and returns its id. If that commits, the message takes effect once, behind
-- those of the same topic and key that were committed before it; if it rolls back there is no message. Waits for other local transactions that
-- have published under the same topic and key. A value out of its bounds raises SQLSTATE 22023.
CREATE OR REPLACE FUNCTION holdfast.publish(topic text, key text, kind text, payload jsonb, traceparent text DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql VOLATILE SECURITY INVOKER
SET search_path = pg_catalog, pg_temp
AS $body$
#variable_conflict use_column
DECLARE
    message uuid;
BEGIN
    IF publish.topic IS NULL OR publish.topic COLLATE "C" !~ '^[A-Za-z0-9._-]{1,64}$' THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'HF4123 holdfast.publish: not a topic',
            HINT = 'A topic has 1 to 64 characters of A-Z, a-z, 0-9, dot, _ and -.';
    ELSIF publish.key IS NULL OR octet_length(publish.key) NOT BETWEEN 1 AND 255 THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = format('HF4123 holdfast.publish: the key has %s bytes', coalesce(octet_length(publish.key), 0)),
            HINT = 'A key has 1 to 255 bytes. Messages of one key go in order, so take what they are about, an account for example.';
    ELSIF publish.kind IS NULL OR octet_length(publish.kind) NOT BETWEEN 1 AND 255 THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = format('HF4123 holdfast.publish: the kind has %s bytes', coalesce(octet_length(publish.kind), 0)),
            HINT = 'A kind has 1 to 255 bytes, points.earned.v1 for example.';
    ELSIF publish.payload IS NULL OR octet_length(publish.payload::text) > 61440 THEN
        RAISE EXCEPTION USING ERRCODE = '22023',
            MESSAGE = format('HF4123 holdfast.publish: the payload has %s bytes', coalesce(octet_length(publish.payload::text), 0)),
            HINT = 'A payload is JSON of at most 61,440 bytes. Keep what is larger in a table and send its key.';
    ELSIF publish.traceparent COLLATE "C" !~ '^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$' THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = 'HF4123 holdfast.publish: not a traceparent',
            HINT = 'Pass the W3C header traceparent unchanged, or nothing.';
    END IF;
    INSERT INTO holdfast.outbox AS o (aggregatetype, aggregateid, type, payload, traceparent)
    VALUES (publish.topic, publish.key, publish.kind, publish.payload, publish.traceparent)
    RETURNING o.id INTO message;
    RETURN message;
END
$body$;

COMMENT ON TABLE holdfast.outbox IS 'holdfast outbox 1';
COMMIT;
