//! The statement of [`verify`](crate::verify). Private.

/// One row for everything that is missing: the problem, its remedy, and what it is about. Only reads the catalogs, which everyone may.
pub(crate) const VERIFY: &str = "\
WITH needed_column (name) AS (
    VALUES ('scope'), ('key'), ('fingerprint'), ('state'), ('result'), ('result_format'), ('attempt'),
           ('transaction_id'), ('created_at'), ('completed_at'), ('expires_at'), ('unfinished')
), keys AS (
    SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'pgonce' AND c.relname = 'keys'
), needed_grant (privilege) AS (
    VALUES ('SELECT'), ('INSERT'), ('UPDATE'), ('DELETE')
), guard AS (
    SELECT c.condeferred AND c.convalidated AS deferred,
           EXISTS (SELECT FROM pg_catalog.pg_trigger t WHERE t.tgconstraint = c.oid AND t.tgenabled NOT IN ('O', 'A'))
               AS disabled
    FROM pg_catalog.pg_constraint c JOIN keys ON keys.oid = c.conrelid
    WHERE c.conname = 'keys_finished_before_commit'
), needed_function (name, users) AS (
    VALUES ('refuse_commit', 'messages and calls'), ('allow_commit', 'calls')
), function AS (
    SELECT p.oid, p.proname AS name FROM pg_catalog.pg_proc p
    JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    JOIN needed_function ON needed_function.name = p.proname
    WHERE n.nspname = 'pgonce'
)
SELECT 'table pgonce.keys is missing' AS problem,
       'call `pgonce::migrate(&pool)` as the owner of the database, or run `sqlx migrate run` in the folder of the '
       'pgonce crate' AS remedy, 'schema' AS subject
WHERE NOT EXISTS (SELECT FROM keys)
UNION ALL
SELECT pg_catalog.format('column pgonce.keys.%s is missing', needed_column.name),
       'apply the migrations of this release with `pgonce::migrate(&pool)` or `sqlx migrate run`', 'schema'
FROM needed_column, keys
WHERE NOT EXISTS (
    SELECT FROM pg_catalog.pg_attribute a
    WHERE a.attrelid = keys.oid AND a.attname = needed_column.name AND NOT a.attisdropped
)
UNION ALL
SELECT 'the primary key of pgonce.keys on (scope, key) is missing',
       'nothing keeps an operation from running twice: restore it with '
       'ALTER TABLE pgonce.keys ADD CONSTRAINT keys_pkey PRIMARY KEY (scope, key)', 'guards'
FROM keys
WHERE NOT EXISTS (
    SELECT FROM pg_catalog.pg_constraint c
    WHERE c.conrelid = keys.oid AND c.contype = 'p' AND pg_catalog.pg_get_constraintdef(c.oid) LIKE '%(scope, key)'
)
UNION ALL
SELECT 'the constraint keys_finished_before_commit is missing or not deferred',
       'nothing keeps a pending key from being committed: restore it with '
       'ALTER TABLE pgonce.keys ADD CONSTRAINT keys_finished_before_commit FOREIGN KEY (unfinished) '
       'REFERENCES pgonce.unfinished (id) DEFERRABLE INITIALLY DEFERRED', 'guards'
FROM keys
WHERE NOT EXISTS (SELECT FROM guard WHERE deferred)
UNION ALL
SELECT 'triggers of keys_finished_before_commit are disabled',
       'nothing keeps a pending key from being committed: ALTER TABLE pgonce.keys ENABLE TRIGGER ALL', 'guards'
WHERE EXISTS (SELECT FROM guard WHERE disabled)
UNION ALL
SELECT 'the trigger messages_finished_before_commit of an earlier release is there',
       'it refuses every message: apply the migrations of this release with `pgonce::migrate(&pool)` or `sqlx migrate run`',
       'schema'
FROM pg_catalog.pg_trigger t JOIN keys ON keys.oid = t.tgrelid
WHERE t.tgname = 'messages_finished_before_commit'
UNION ALL
SELECT pg_catalog.format('the function pgonce.%s is missing', needed_function.name),
       pg_catalog.format('%s in optimistic mode need it: apply the migrations of this release with '
                         '`pgonce::migrate(&pool)` or `sqlx migrate run`', needed_function.users), 'schema'
FROM needed_function, keys
WHERE NOT EXISTS (SELECT FROM function WHERE function.name = needed_function.name)
UNION ALL
SELECT pg_catalog.format('role %I lacks EXECUTE on function pgonce.%s', current_user, function.name),
       pg_catalog.format('GRANT EXECUTE ON FUNCTION pgonce.%s TO %I', function.name, current_user), 'grants'
FROM function
WHERE NOT pg_catalog.has_function_privilege(function.oid, 'EXECUTE')
UNION ALL
SELECT pg_catalog.format('pgonce.keys has the trigger %I', t.tgname),
       pg_catalog.format('it fires before, and may change or hide rows: DROP TRIGGER %I ON pgonce.keys', t.tgname), 'guards'
FROM pg_catalog.pg_trigger t JOIN keys ON keys.oid = t.tgrelid
WHERE NOT t.tgisinternal AND t.tgtype & 2 = 2 AND t.tgenabled <> 'D'
UNION ALL
SELECT pg_catalog.format('pgonce.keys has the rule %I', r.rulename),
       pg_catalog.format('it may change or hide rows: DROP RULE %I ON pgonce.keys', r.rulename), 'guards'
FROM pg_catalog.pg_rewrite r JOIN keys ON keys.oid = r.ev_class
UNION ALL
SELECT 'pgonce.keys has row-level security',
       'a claim must see every row: ALTER TABLE pgonce.keys DISABLE ROW LEVEL SECURITY', 'guards'
FROM keys
WHERE pg_catalog.row_security_active(keys.oid)
UNION ALL
SELECT 'session_replication_role is not origin',
       'foreign keys are not enforced in such a session: take the setting from the role or the connection', 'settings'
WHERE pg_catalog.current_setting('session_replication_role') <> 'origin'
UNION ALL
SELECT pg_catalog.format('role %I lacks USAGE on schema pgonce', current_user),
       pg_catalog.format('GRANT USAGE ON SCHEMA pgonce TO %I', current_user), 'grants'
FROM pg_catalog.pg_namespace n
WHERE n.nspname = 'pgonce' AND NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
UNION ALL
SELECT pg_catalog.format('role %I lacks %s on pgonce.keys', current_user, needed_grant.privilege),
       pg_catalog.format('GRANT %s ON pgonce.keys TO %I', needed_grant.privilege, current_user), 'grants'
FROM needed_grant, keys
WHERE NOT pg_catalog.has_table_privilege(keys.oid, needed_grant.privilege)
UNION ALL
SELECT 'the server is a standby', 'connect to the primary: keys are written, and replays must not be stale', 'server'
WHERE pg_catalog.pg_is_in_recovery()";
