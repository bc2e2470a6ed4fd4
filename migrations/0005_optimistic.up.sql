-- pgonce, schema version 5: a closure that runs before its key is claimed.

-- What a COMMIT of the closure's own meets. There is no pending row by which it could be refused; but PostgreSQL runs the query
-- of a cursor WITH HOLD that is open at COMMIT, and this one fails. pgonce closes it before its own COMMIT.
CREATE FUNCTION pgonce.refuse_commit() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a transaction was to be committed before the result of its operation was stored'
        USING ERRCODE = 'integrity_constraint_violation', SCHEMA = 'pgonce', TABLE = 'keys',
            CONSTRAINT = 'operations_finished_before_commit';
END
$$;

COMMENT ON FUNCTION pgonce.refuse_commit() IS 'Refuses a COMMIT by the closure of an operation in optimistic mode.';
