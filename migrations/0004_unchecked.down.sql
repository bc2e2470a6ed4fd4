-- Undoes 0004_unchecked.up.sql. Rows that are there already are not read.

ALTER TABLE pgonce.keys
    ADD CONSTRAINT keys_scope_length CHECK (octet_length(scope) BETWEEN 1 AND 255) NOT VALID,
    ADD CONSTRAINT keys_key_length CHECK (octet_length(key) BETWEEN 1 AND 255) NOT VALID,
    ADD CONSTRAINT keys_fingerprint_length CHECK (octet_length(fingerprint) = 33) NOT VALID,
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
    ) NOT VALID,
    ADD CONSTRAINT keys_result_has_format CHECK ((result IS NULL) = (result_format IS NULL)) NOT VALID;

DROP TRIGGER messages_finished_before_commit ON pgonce.keys;
CREATE CONSTRAINT TRIGGER messages_finished_before_commit
    AFTER INSERT OR UPDATE OF state ON pgonce.keys
    DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.state = 'completed' AND NEW.result IS NULL)
    EXECUTE FUNCTION pgonce.refuse_unfinished();
