-- pgonce, schema version 4: less to check at every write.
--
-- PostgreSQL reads and plans the expression of each CHECK, and of each trigger's WHEN, anew for each statement that writes. For
-- this table, in the two statements of a call, that was more than half of all that a call made the server do. The CHECKs
-- refused what no release of pgonce writes; what reads a row checks it again, and no call runs on a row that it does not
-- understand. (One more thing was refused: to make a pending row look finished by hand, `SET unfinished = NULL`.)
--
-- What keeps a pending row and an unfinished message from being committed are the deferred constraints
-- keys_finished_before_commit and messages_finished_before_commit, as before. The latter asks shorter, and not when an operation is
-- finished: a message's row is inserted, or it is taken over, with another fingerprint.

-- Whoever waits for the table waits behind this migration, too: better to fail, and to be run again, than to wait for long
-- behind a closure that runs for long.
SET LOCAL lock_timeout = '5s';

ALTER TABLE pgonce.keys
    DROP CONSTRAINT keys_scope_length,
    DROP CONSTRAINT keys_key_length,
    DROP CONSTRAINT keys_fingerprint_length,
    DROP CONSTRAINT keys_state,
    DROP CONSTRAINT keys_result_has_format;

DROP TRIGGER messages_finished_before_commit ON pgonce.keys;
CREATE CONSTRAINT TRIGGER messages_finished_before_commit
    AFTER INSERT OR UPDATE OF fingerprint ON pgonce.keys
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.result IS NULL AND NEW.unfinished IS NULL)
    EXECUTE FUNCTION pgonce.refuse_unfinished();
