-- Undoes 0006_one_cursor.up.sql.

CREATE FUNCTION pgonce.refuse_unfinished() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_catalog.current_setting('pgonce.finished', true) IS DISTINCT FROM pg_catalog.pg_current_xact_id()::text THEN
        RAISE EXCEPTION 'a message was to be committed before pgonce.finish was called'
            USING ERRCODE = 'integrity_constraint_violation', SCHEMA = 'pgonce', TABLE = 'keys',
                CONSTRAINT = 'messages_finished_before_commit',
                HINT = 'To copy such rows by hand: SELECT pgonce.finish(pg_current_xact_id()) before the COMMIT.';
    END IF;
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER messages_finished_before_commit
    AFTER INSERT OR UPDATE OF fingerprint ON pgonce.keys
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.result IS NULL AND NEW.unfinished IS NULL)
    EXECUTE FUNCTION pgonce.refuse_unfinished();

COMMENT ON FUNCTION pgonce.finish(xid8) IS 'Last statement before the COMMIT of a message: proves that the transaction which claimed it is alive.';
COMMENT ON FUNCTION pgonce.refuse_unfinished() IS 'Refuses to commit a message before pgonce.finish was called.';

CREATE OR REPLACE FUNCTION pgonce.refuse_commit() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a transaction was to be committed before the result of its operation was stored'
        USING ERRCODE = 'integrity_constraint_violation', SCHEMA = 'pgonce', TABLE = 'keys',
            CONSTRAINT = 'operations_finished_before_commit';
END
$$;

COMMENT ON FUNCTION pgonce.refuse_commit() IS 'Refuses a COMMIT by the closure of an operation in optimistic mode.';
