-- Undoes 0002_messages.up.sql: forgets every message.

DROP TRIGGER messages_finished_before_commit ON pgonce.keys;
DROP FUNCTION pgonce.refuse_unfinished();
DROP FUNCTION pgonce.finish(xid8);
DELETE FROM pgonce.keys WHERE state = 'completed' AND result IS NULL;
ALTER TABLE pgonce.keys
    DROP CONSTRAINT keys_state,
    ADD CONSTRAINT keys_state CHECK (
        CASE state
            WHEN 'pending' THEN
                unfinished IS NOT NULL AND completed_at IS NULL AND transaction_id IS NULL AND result IS NULL
            WHEN 'completed' THEN
                unfinished IS NULL AND completed_at IS NOT NULL AND transaction_id IS NOT NULL
            WHEN 'failed' THEN
                unfinished IS NULL AND completed_at IS NOT NULL AND transaction_id IS NOT NULL
            ELSE false
        END
    );
