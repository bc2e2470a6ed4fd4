-- Makes pgonce.keys a table of 16 hash partitions, with all that the schema has: primary key, index for the purge,
-- the guard, view, grants. See docs/operations.md for when that is worth it.
--
-- After all migrations, as the owner, in one transaction:
--
--     psql --single-transaction --set ON_ERROR_STOP=1 --file docs/partitioned.sql
--
-- Keys stay unique, since every partition has all rows of its keys. Calls wait while it runs, for as long as the copy
-- takes; the disk needs room for a second copy.

SET LOCAL lock_timeout = '5s';
LOCK TABLE pgonce.keys IN ACCESS EXCLUSIVE MODE;

-- The names are free for the new table.
ALTER TABLE pgonce.keys RENAME CONSTRAINT keys_pkey TO unpartitioned_pkey;
ALTER INDEX pgonce.keys_expires_at_idx RENAME TO unpartitioned_expires_at_idx;
ALTER TABLE pgonce.keys RENAME TO unpartitioned;

-- The columns with their collations.
CREATE TABLE pgonce.keys (LIKE pgonce.unpartitioned INCLUDING CONSTRAINTS INCLUDING COMMENTS)
    PARTITION BY HASH (scope, key);

DO $$
BEGIN
    FOR n IN 0..15 LOOP
        EXECUTE format(
            'CREATE TABLE pgonce.%I PARTITION OF pgonce.keys FOR VALUES WITH (MODULUS 16, REMAINDER %s)',
            'keys_' || lpad(n::text, 2, '0'), n
        );
    END LOOP;
END
$$;

-- Before the indexes and the foreign key, which would be asked for every row.
INSERT INTO pgonce.keys SELECT * FROM pgonce.unpartitioned;

ALTER TABLE pgonce.keys
    ADD CONSTRAINT keys_pkey PRIMARY KEY (scope, key),
    ADD CONSTRAINT keys_finished_before_commit FOREIGN KEY (unfinished)
        REFERENCES pgonce.unfinished (id) DEFERRABLE INITIALLY DEFERRED;
CREATE INDEX keys_expires_at_idx ON pgonce.keys (expires_at);

-- What belongs to the table and is not copied: the view's query, the comment, the owner and the grants.
DO $$
DECLARE
    old oid := 'pgonce.unpartitioned'::regclass;
    statement text;
BEGIN
    EXECUTE 'CREATE OR REPLACE VIEW pgonce.readable_keys AS '
        || replace(pg_get_viewdef('pgonce.readable_keys'::regclass), 'unpartitioned', 'keys');
    EXECUTE format('COMMENT ON TABLE pgonce.keys IS %L', obj_description(old, 'pg_class'));
    FOR statement IN
        SELECT format('ALTER TABLE pgonce.keys OWNER TO %s', relowner::regrole) FROM pg_class WHERE oid = old
        UNION ALL
        SELECT format('GRANT %s ON pgonce.keys TO %s', privilege_type,
                      CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END)
        FROM pg_class, aclexplode(relacl) WHERE oid = old AND grantee <> relowner
    LOOP
        EXECUTE statement;
    END LOOP;
END
$$;

-- A partitioned table has no settings of its own.
DO $$
DECLARE
    partition regclass;
BEGIN
    FOR partition IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'pgonce.keys'::regclass LOOP
        EXECUTE format('ALTER TABLE %s SET (autovacuum_vacuum_scale_factor = 0.05)', partition);
    END LOOP;
END
$$;

DROP TABLE pgonce.unpartitioned;
ANALYZE pgonce.keys;
