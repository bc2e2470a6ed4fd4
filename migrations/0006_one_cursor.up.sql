-- pgonce, schema version 6: messages are guarded like operations in optimistic mode.
--
-- What refused to commit an unfinished message was a trigger. PostgreSQL reads and plans its condition anew for each statement
-- that inserts a row, that of every operation too, and ran its function for each message. The cursor of migration 5 does the
-- same once for a transaction, however many messages it has, and rows that are written by hand need nothing.

-- Whoever waits for the table waits behind this migration, too: better to fail, and to be run again, than to wait for long
-- behind a closure that runs for long.
SET LOCAL lock_timeout = '5s';

DROP TRIGGER IF EXISTS messages_finished_before_commit ON pgonce.keys;
DROP FUNCTION pgonce.refuse_unfinished();

CREATE OR REPLACE FUNCTION pgonce.refuse_commit() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a transaction was to be committed before its message or operation was finished'
        USING ERRCODE = 'integrity_constraint_violation', SCHEMA = 'pgonce', TABLE = 'keys',
            CONSTRAINT = 'operations_finished_before_commit';
END
$$;

COMMENT ON FUNCTION pgonce.refuse_commit() IS 'Refuses a COMMIT by the closure of a message, or of an operation in optimistic mode.';
COMMENT ON FUNCTION pgonce.finish(xid8) IS 'For consumers of an earlier release that are still running: they call it before their COMMIT.';
