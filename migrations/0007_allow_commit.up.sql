-- pgonce, schema version 7: an operation in optimistic mode is committed by a plain COMMIT.

-- Closes the cursor that refuses every COMMIT (see migration 5). The statement that stores the result calls it, so that no further
-- one is needed; where there is no such cursor, outside of the transaction that was opened with one, it fails.
CREATE FUNCTION pgonce.allow_commit() RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    guard pg_catalog.refcursor := 'pgonce_open';
BEGIN
    CLOSE guard;
    RETURN true;
END
$$;

COMMENT ON FUNCTION pgonce.allow_commit() IS 'Ends what refuses a COMMIT, in the statement that stores the result of an operation in optimistic mode.';
