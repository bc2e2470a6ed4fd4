-- pgonce, schema version 1: the idempotency keys.
--
-- A shipped migration is never edited; a change is a new file.

CREATE SCHEMA IF NOT EXISTS pgonce;

-- Stays empty for ever: nothing can be inserted. A row of pgonce.keys points here for as long as it is
-- pending, so the deferred foreign key below refuses every COMMIT of a pending row.
CREATE TABLE pgonce.unfinished (
    id smallint,
    CONSTRAINT unfinished_pkey PRIMARY KEY (id),
    CONSTRAINT unfinished_stays_empty CHECK (false)
);

CREATE TABLE pgonce.keys (
    scope          text COLLATE "C" NOT NULL,
    key            text COLLATE "C" NOT NULL,
    fingerprint    bytea            NOT NULL,
    state          text COLLATE "C" NOT NULL,
    -- The exact bytes that every replay gets: jsonb would drop duplicate keys, reorder them and rewrite numbers.
    result         bytea,
    result_format  text COLLATE "C",
    -- The execution that owns the row; a new one for each attempt.
    attempt        uuid             NOT NULL,
    -- The transaction that committed the result.
    transaction_id xid8,
    created_at     timestamptz      NOT NULL,
    completed_at   timestamptz,
    -- Set by the claim and not changed by the finish, so that the finish stays a HOT update.
    expires_at     timestamptz      NOT NULL,
    -- Not null only while the row is pending.
    unfinished     smallint,

    CONSTRAINT keys_pkey PRIMARY KEY (scope, key),
    CONSTRAINT keys_finished_before_commit FOREIGN KEY (unfinished)
        REFERENCES pgonce.unfinished (id) DEFERRABLE INITIALLY DEFERRED,
    CONSTRAINT keys_scope_length CHECK (octet_length(scope) BETWEEN 1 AND 255),
    CONSTRAINT keys_key_length CHECK (octet_length(key) BETWEEN 1 AND 255),
    CONSTRAINT keys_fingerprint_length CHECK (octet_length(fingerprint) = 33),
    CONSTRAINT keys_state CHECK (
        CASE state
            WHEN 'pending' THEN
                unfinished IS NOT NULL AND completed_at IS NULL AND transaction_id IS NULL AND result IS NULL
            WHEN 'completed' THEN
                unfinished IS NULL AND completed_at IS NOT NULL AND transaction_id IS NOT NULL
            WHEN 'failed' THEN
                unfinished IS NULL AND completed_at IS NOT NULL AND transaction_id IS NOT NULL
            ELSE false
        END
    ),
    CONSTRAINT keys_result_has_format CHECK ((result IS NULL) = (result_format IS NULL))
);

-- For the purge of expired keys.
CREATE INDEX keys_expires_at_idx ON pgonce.keys (expires_at);

-- For people: the result as text.
CREATE VIEW pgonce.readable_keys AS
SELECT
    scope,
    key,
    state,
    CASE
        WHEN result_format <> 'json' THEN NULL
        WHEN pg_catalog.getdatabaseencoding() = 'UTF8' THEN pg_catalog.convert_from(result, 'UTF8')
        -- The database may not have the characters.
        ELSE pg_catalog.encode(result, 'escape')
    END AS result,
    expires_at <= pg_catalog.clock_timestamp() AS expired,
    created_at,
    completed_at,
    expires_at,
    pg_catalog.encode(fingerprint, 'hex') AS fingerprint,
    attempt,
    transaction_id
FROM pgonce.keys;

COMMENT ON SCHEMA pgonce IS 'Idempotency keys of the pgonce library.';
COMMENT ON TABLE pgonce.keys IS 'One row per idempotency key; committed together with the business writes of its operation.';
COMMENT ON TABLE pgonce.unfinished IS 'Always empty: target of keys_finished_before_commit, which refuses to commit a pending key.';
COMMENT ON VIEW pgonce.readable_keys IS 'pgonce.keys for people: the result as text.';
