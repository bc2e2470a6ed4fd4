-- pgonce, schema version 3: what an operator needs.

-- Who made a key forget, and why. A retry after that runs its operation again, so it must not happen without a trace.
CREATE TABLE pgonce.evictions (
    id           bigint           GENERATED ALWAYS AS IDENTITY,
    evicted_at   timestamptz      NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    evicted_by   text COLLATE "C" NOT NULL DEFAULT session_user,
    reason       text             NOT NULL,
    -- What the key was. The result is not kept: it may hold what nobody else is to read.
    scope        text COLLATE "C" NOT NULL,
    key          text COLLATE "C" NOT NULL,
    fingerprint  bytea            NOT NULL,
    state        text COLLATE "C" NOT NULL,
    attempt      uuid             NOT NULL,
    created_at   timestamptz      NOT NULL,
    completed_at timestamptz,
    expires_at   timestamptz      NOT NULL,

    CONSTRAINT evictions_pkey PRIMARY KEY (id),
    CONSTRAINT evictions_reason_is_given CHECK (reason ~ '\S' AND length(reason) <= 1000)
);

CREATE INDEX evictions_key_idx ON pgonce.evictions (scope, key);

-- For pg_cron, and whoever has no process to run the reaper in. One batch, the oldest first, in the caller's transaction.
-- Returns 0 at once while a reaper is at work: both hold the same lock. Skips what a takeover has locked.
--
-- The clock is read once: compared with a volatile function, no index would end the walk. The settings keep the planner,
-- which does not know max_rows, from reading the whole table for one batch.
CREATE FUNCTION pgonce.purge_expired(max_rows integer DEFAULT 10000) RETURNS bigint
LANGUAGE sql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
    WITH election AS MATERIALIZED (
        SELECT pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended('pgonce.reaper', 0)) AS won,
               pg_catalog.clock_timestamp() AS clock
    ), expired AS MATERIALIZED (
        SELECT tableoid, ctid FROM pgonce.keys
        WHERE expires_at <= (SELECT clock FROM election WHERE won) AND state <> 'pending'
        ORDER BY expires_at
        LIMIT coalesce(max_rows, 10000)
        FOR UPDATE SKIP LOCKED
    ), purged AS (
        DELETE FROM pgonce.keys USING expired
        WHERE keys.ctid = expired.ctid AND keys.tableoid = expired.tableoid
        RETURNING 1
    )
    SELECT count(*) FROM purged
$$;

COMMENT ON TABLE pgonce.evictions IS 'Keys that an operator made pgonce forget before their retention ended.';
COMMENT ON FUNCTION pgonce.purge_expired(integer) IS 'Deletes one batch of expired keys, the oldest first, and says how many.';
