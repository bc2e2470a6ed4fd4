-- pgonce, schema version 2: messages.
--
-- A message has no result to keep. Its row is inserted as completed and not written again: no second statement, no dead
-- tuple. keys_finished_before_commit, which refuses pending rows, has nothing to refuse then; for rows without a result
-- the trigger below does the same.

-- Whoever waits for the table waits behind this migration, too: better to fail, and to be run again, than to wait for long
-- behind a closure that runs for long.
SET LOCAL lock_timeout = '5s';

-- The transaction that inserted such a row is its xmin. (To name it in the row would assign a transaction id, and so write
-- WAL, for every duplicate.) Every row that is there already has passed the stricter check, so none is read again.
ALTER TABLE pgonce.keys
    DROP CONSTRAINT keys_state,
    ADD CONSTRAINT keys_state CHECK (
        CASE state
            WHEN 'pending' THEN
                unfinished IS NOT NULL AND completed_at IS NULL AND transaction_id IS NULL AND result IS NULL
            WHEN 'completed' THEN
                unfinished IS NULL AND completed_at IS NOT NULL AND (transaction_id IS NOT NULL OR result IS NULL)
            WHEN 'failed' THEN
                unfinished IS NULL AND completed_at IS NOT NULL AND transaction_id IS NOT NULL
            ELSE false
        END
    ) NOT VALID;

-- The last statement before COMMIT: proves that this is the transaction that claimed, and that it is alive, since nothing
-- can be called in an aborted one. The setting ends with the transaction.
CREATE FUNCTION pgonce.finish(claimed_by xid8) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF pg_catalog.pg_current_xact_id_if_assigned() IS DISTINCT FROM claimed_by THEN
        RAISE EXCEPTION 'the transaction that claimed has ended' USING ERRCODE = 'no_active_sql_transaction';
    END IF;
    PERFORM pg_catalog.set_config('pgonce.finished', claimed_by::text, true);
END
$$;

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

-- Refuses every COMMIT of a message that is not pgonce's own.
CREATE CONSTRAINT TRIGGER messages_finished_before_commit
    AFTER INSERT OR UPDATE OF state ON pgonce.keys
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.state = 'completed' AND NEW.result IS NULL)
    EXECUTE FUNCTION pgonce.refuse_unfinished();

COMMENT ON FUNCTION pgonce.finish(xid8) IS 'Last statement before the COMMIT of a message: proves that the transaction which claimed it is alive.';
COMMENT ON FUNCTION pgonce.refuse_unfinished() IS 'Refuses to commit a message before pgonce.finish was called.';
