//! The schema: applied by us, by sqlx-cli and as plain SQL; verified, snapshotted, reversible.

mod support;

use std::time::Duration;

use pgonce::{Error, ErrorKind, Idempotency};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool};
use support::{Database, charge, operation};
use tokio::task::JoinSet;

async fn run(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(pool)
        .await
        .unwrap_or_else(|error| panic!("{sql}: {error}"));
}

async fn works(pool: &PgPool) {
    let outcome =
        Idempotency::new(pool.clone()).execute(&operation(), async |_| Ok::<_, Error>(7)).await.unwrap();
    assert_eq!(outcome.into_inner(), 7);
}

#[tokio::test]
async fn migrating_twice_is_harmless() {
    let db = Database::empty().await;
    for _ in 0..3 {
        pgonce::migrate(&db.pool).await.unwrap();
        works(&db.pool).await;
    }
    assert_eq!(db.count("pgonce._sqlx_migrations").await, pgonce::MIGRATIONS.len() as i64);
    pgonce::verify(&db.pool).await.unwrap();
}

#[tokio::test]
async fn migrating_from_twenty_connections_at_once_is_harmless() {
    let db = Database::empty().await;
    let pool = db.pool_of(20);
    let mut runs = JoinSet::new();
    for _ in 0..20 {
        let pool = pool.clone();
        runs.spawn(async move { pgonce::migrate(&pool).await });
    }
    for run in runs.join_all().await {
        run.unwrap();
    }
    assert_eq!(db.count("pgonce._sqlx_migrations").await, pgonce::MIGRATIONS.len() as i64);
    works(&db.pool).await;
    // No session keeps the migrator's lock.
    db.wait_until(
        "SELECT NOT EXISTS (SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                   WHERE l.locktype = 'advisory' AND d.datname = current_database())",
    )
    .await;
}

#[tokio::test]
async fn the_applications_own_migrations_are_not_disturbed() {
    let db = Database::empty().await;
    // What sqlx's migrator leaves behind for an application, with a version 1 of its own.
    let theirs = "CREATE TABLE _sqlx_migrations (version bigint PRIMARY KEY, description text NOT NULL,
        installed_on timestamptz NOT NULL DEFAULT now(), success boolean NOT NULL, checksum bytea NOT NULL,
        execution_time bigint NOT NULL);
        INSERT INTO _sqlx_migrations VALUES (1, 'accounts', 'epoch', true, '\\x00', 1)";
    run(&db.pool, theirs).await;
    pgonce::migrate(&db.pool).await.unwrap();
    let rows: Vec<String> = sqlx::query_scalar("SELECT m::text FROM public._sqlx_migrations m")
        .fetch_all(&db.pool)
        .await
        .unwrap();
    assert_eq!(rows.len(), 1);
    assert!(rows[0].starts_with("(1,accounts,"), "{rows:?}");
    works(&db.pool).await;
}

#[tokio::test]
async fn the_plain_sql_is_all_that_other_tools_need() {
    let db = Database::empty().await;
    for migration in pgonce::MIGRATIONS {
        run(&db.pool, &format!("BEGIN; {}; COMMIT", migration.up)).await;
    }
    pgonce::verify(&db.pool).await.unwrap();
    works(&db.pool).await;
}

#[tokio::test]
async fn the_down_scripts_undo_everything() {
    let db = Database::empty().await;
    let objects = "SELECT coalesce(string_agg(c.relname, ' ' ORDER BY c.relname), '') FROM pg_class c
                   JOIN pg_namespace n ON n.oid = c.relnamespace
                   WHERE n.nspname = 'pgonce' AND c.relname NOT LIKE '%sqlx%'";
    for _ in 0..2 {
        for migration in pgonce::MIGRATIONS {
            run(&db.pool, migration.up).await;
        }
        works(&db.pool).await;
        for migration in pgonce::MIGRATIONS.iter().rev() {
            run(&db.pool, migration.down).await;
        }
        let left: String = sqlx::query_scalar(objects).fetch_one(&db.pool).await.unwrap();
        assert_eq!(left, "");
    }
}

/// Run by `.ci/run` after a real `sqlx migrate run`; elsewhere the other tests stand for it.
#[tokio::test]
async fn migrates_after_sqlx_cli() {
    let Ok(url) = std::env::var("PGONCE_MIGRATED_URL") else {
        println!("PGONCE_MIGRATED_URL is not set: .ci/run sets it after a run of sqlx-cli");
        return;
    };
    let pool = PgPool::connect(&url).await.unwrap();
    pgonce::migrate(&pool).await.unwrap();
    pgonce::verify(&pool).await.unwrap();
    works(&pool).await;
}

#[tokio::test]
async fn a_migration_that_was_edited_is_refused_and_no_lock_stays() {
    let db = Database::empty().await;
    pgonce::migrate(&db.pool).await.unwrap();
    run(&db.pool, "UPDATE pgonce._sqlx_migrations SET checksum = '\\x00'").await;
    for _ in 0..2 {
        // A second time: the first one's session, which holds the migrator's lock, must be gone.
        let migrate = tokio::time::timeout(Duration::from_secs(60), pgonce::migrate(&db.pool));
        let error = migrate.await.expect("it waits for a lock").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Database);
        assert!(error.to_string().contains("newest"), "{error}");
    }
}

#[tokio::test]
async fn without_migrations_every_call_says_what_to_do() {
    let db = Database::empty().await;
    let idempotency = db.idempotency();
    let (scope, key) = (support::scope(), support::key("order-1"));
    let inbox = idempotency.inbox(scope.clone());
    let batch = [pgonce::Message::new(key.clone())];
    let errors = [
        idempotency.execute(&operation(), async |_| Ok::<_, Error>(1)).await.unwrap_err(),
        idempotency.claim(&operation()).await.unwrap_err(),
        idempotency.find(&scope, &key).await.unwrap_err(),
        idempotency.purge_expired(1).await.unwrap_err(),
        inbox.process("evt-1", async |_| Ok::<_, Error>(())).await.unwrap_err(),
        inbox.process_batch(&batch, async |_, _| Ok::<_, Error>(())).await.unwrap_err(),
        pgonce::verify(&db.pool).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::NotMigrated, "{error}");
        assert!(!error.is_retryable());
        let text = error.to_string();
        assert!(text.contains("sqlx migrate run") && text.contains("pgonce::migrate(&pool)"), "{text}");
    }
}

#[tokio::test]
async fn verify_names_each_thing_that_is_missing_and_its_remedy() {
    for (damage, expected) in [
        (
            "ALTER TABLE pgonce.keys DROP CONSTRAINT keys_finished_before_commit",
            "keys_finished_before_commit is missing",
        ),
        (
            "ALTER TABLE pgonce.keys ALTER CONSTRAINT keys_finished_before_commit NOT DEFERRABLE",
            "not deferred",
        ),
        ("ALTER TABLE pgonce.keys DISABLE TRIGGER ALL", "keys_finished_before_commit are disabled"),
        ("DROP FUNCTION pgonce.refuse_commit", "the function pgonce.refuse_commit is missing"),
        ("DROP FUNCTION pgonce.allow_commit", "the function pgonce.allow_commit is missing"),
        ("ALTER TABLE pgonce.keys DROP CONSTRAINT keys_pkey", "primary key"),
        ("ALTER TABLE pgonce.keys DROP COLUMN attempt", "column pgonce.keys.attempt is missing"),
        ("DROP VIEW pgonce.readable_keys; DROP TABLE pgonce.keys", "table pgonce.keys is missing"),
    ] {
        let db = Database::empty().await;
        pgonce::migrate(&db.pool).await.unwrap();
        run(&db.pool, &damage.replace("DROP COLUMN attempt", "DROP COLUMN attempt CASCADE")).await;
        let error = pgonce::verify(&db.pool).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotMigrated);
        assert!(error.to_string().contains(expected), "{damage}: {error}");
        let Error::NotMigrated { missing, .. } = error else { panic!() };
        assert_eq!(missing.len(), 1, "{damage}: {missing:?}");
        // Where the remedy is a statement, it works.
        for begin in ["ALTER TABLE", "CREATE CONSTRAINT TRIGGER"] {
            if let Some((_, statement)) = missing[0].split_once(begin)
                && expected != "not deferred"
            {
                run(&db.pool, &format!("{begin}{statement}")).await;
                pgonce::verify(&db.pool).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_session_that_ignores_foreign_keys_is_noticed() {
    let db = Database::new().await;
    let pool = PgPoolOptions::new()
        .connect_lazy_with(db.options().options([("session_replication_role", "replica")]));
    let error = pgonce::verify(&pool).await.unwrap_err();
    assert!(error.to_string().contains("session_replication_role"), "{error}");
}

/// The statements of the documentation of `pgonce::migrate`.
const GRANTS: &[&str] =
    &["GRANT USAGE ON SCHEMA pgonce TO app", "GRANT SELECT, INSERT, UPDATE, DELETE ON pgonce.keys TO app"];

#[tokio::test]
async fn a_role_that_owns_nothing_works_with_the_documented_grants_alone() {
    let source = include_str!("../src/migrate.rs");
    assert!(GRANTS.iter().all(|grant| source.contains(grant)), "the documentation has other grants");

    let db = Database::new().await;
    let role = format!("app_{}", uuid::Uuid::new_v4().simple());
    run(
        &db.pool,
        &format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'secret';
             GRANT SELECT, UPDATE ON accounts TO {role}; GRANT INSERT, SELECT ON ledger TO {role}"
        ),
    )
    .await;
    let app = PgPoolOptions::new().connect_lazy_with(db.options().username(&role).password("secret"));
    let idempotency = Idempotency::new(app.clone());

    // Each missing grant is named by verify, and the call that needs it says so.
    let error = pgonce::verify(&app).await.unwrap_err();
    assert!(error.to_string().contains(&format!("GRANT USAGE ON SCHEMA pgonce TO {role}")), "{error}");
    let error = idempotency.execute(&operation(), async |_| Ok::<_, Error>(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Database);
    assert!(error.to_string().contains("grant") && error.to_string().contains("verify"), "{error}");

    for grant in GRANTS {
        pgonce::verify(&app).await.unwrap_err();
        run(&db.pool, &grant.replace(" app", &format!(" {role}"))).await;
    }
    pgonce::verify(&app).await.unwrap();
    for replayed in [false, true] {
        let outcome = idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
        assert_eq!(outcome.is_replayed(), replayed);
    }
    let hardened = Idempotency::connect(db.options().username(&role).password("secret")).await.unwrap();
    assert!(hardened.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap().is_replayed());
    // Nor does an inbox; what guards it is a function, which everybody may call unless somebody has taken that away.
    let inbox = idempotency.inbox(pgonce::Scope::new("consumer").unwrap());
    inbox.process("evt-1", async |_| Ok::<_, Error>(())).await.unwrap();
    assert!(inbox.process("evt-1", async |_| Ok::<_, Error>(())).await.unwrap().is_duplicate());
    run(&db.pool, "REVOKE EXECUTE ON FUNCTION pgonce.refuse_commit FROM PUBLIC").await;
    let error = pgonce::verify(&app).await.unwrap_err();
    let grant = format!("GRANT EXECUTE ON FUNCTION pgonce.refuse_commit TO {role}");
    assert!(error.to_string().contains(&grant), "{error}");
    let error = inbox.process("evt-2", async |_| Ok::<_, Error>(())).await.unwrap_err();
    assert!(error.to_string().contains("grant") && error.to_string().contains("verify"), "{error}");
    run(&db.pool, &grant).await;
    pgonce::verify(&app).await.unwrap();
    inbox.process("evt-2", async |_| Ok::<_, Error>(())).await.unwrap();
    run(&db.pool, "DELETE FROM pgonce.keys WHERE scope = 'consumer'").await;
    // The guard needs no grant either.
    let commits = pgonce::Operation::new(support::scope(), support::key("order-2"));
    let error = idempotency
        .execute(&commits, async |conn| {
            sqlx::raw_sql("COMMIT").execute(conn).await?;
            Ok::<_, Error>(())
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AtomicityViolation);
    run(&db.pool, "UPDATE pgonce.keys SET expires_at = 'epoch'").await;
    assert!(
        !idempotency.execute(&operation(), async |conn| charge(conn, 1).await).await.unwrap().is_replayed()
    );
    run(&db.pool, "UPDATE pgonce.keys SET expires_at = 'epoch'").await;
    assert_eq!(idempotency.purge_expired(10).await.unwrap(), 1);

    // A table that hides rows from it is no table to claim in.
    run(&db.pool, "ALTER TABLE pgonce.keys ENABLE ROW LEVEL SECURITY").await;
    let error = pgonce::verify(&app).await.unwrap_err();
    assert!(error.to_string().contains("row-level security"), "{error}");
    pgonce::verify(&db.pool).await.expect("it does not apply to a superuser");
    run(&db.pool, "ALTER TABLE pgonce.keys DISABLE ROW LEVEL SECURITY").await;
    pgonce::verify(&app).await.unwrap();

    // It may not migrate, and is told who may.
    let error = pgonce::migrate(&app).await.unwrap_err();
    assert!(error.to_string().contains("role that may create a schema"), "{error}");

    app.close().await;
    hardened.pool().close().await;
    run(&db.pool, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_read_only_connection_is_refused_in_words_that_help() {
    let db = Database::new().await;
    let read_only = db.options().options([("default_transaction_read_only", "on")]);
    let idempotency = Idempotency::new(PgPoolOptions::new().connect_lazy_with(read_only));
    let errors = [
        idempotency.execute(&operation(), async |_| Ok::<_, Error>(1)).await.unwrap_err(),
        idempotency.claim(&operation()).await.unwrap_err(),
        idempotency.purge_expired(1).await.unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Database);
        assert!(error.to_string().contains("primary"), "{error}");
        assert!(!error.is_retryable());
    }
    db.assert_untouched().await;
}

#[tokio::test]
async fn a_hostile_search_path_redirects_nothing() {
    let db = Database::new().await;
    // A table of the same name, and what test suites do to travel in time.
    run(
        &db.pool,
        "CREATE SCHEMA evil; CREATE TABLE evil.keys (scope text, key text);
         CREATE FUNCTION evil.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS $$ SELECT '1999-12-31'::timestamptz $$;
         CREATE FUNCTION evil.hashtextextended(text, bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint'",
    )
    .await;
    let search_path = [("search_path", "evil,pg_catalog")];
    let pool = PgPoolOptions::new().connect_lazy_with(db.options().options(search_path));
    works(&pool).await;
    let replayed = Idempotency::new(pool).execute(&operation(), async |_| Ok::<_, Error>(8)).await.unwrap();
    assert_eq!(replayed, pgonce::Outcome::Replayed(7));
    assert_eq!(db.count("evil.keys").await, 0);
    assert_eq!(db.count("pgonce.keys").await, 1);
}

/// From before messages, and before the present guard: what is there stays, and whoever uses an inbox or the optimistic mode too
/// early is told.
#[tokio::test]
async fn later_migrations_keep_the_keys_and_what_is_new_asks_for_them() {
    let db = Database::empty().await;
    let inbox = db.idempotency().inbox(support::scope());
    let optimistic = db.idempotency().with_mode(pgonce::Mode::Optimistic);
    let early = pgonce::Operation::new(support::scope(), support::key("early"));
    for migration in pgonce::MIGRATIONS {
        run(&db.pool, migration.up).await;
        works(&db.pool).await;
        if migration.version >= 7 {
            break;
        }
        let error = optimistic.execute(&early, async |_| Ok::<_, Error>(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotMigrated, "{}: {error}", migration.version);
        let batches: &[bool] = if migration.version < 6 { &[false, true] } else { &[] };
        for &batch in batches {
            let message = pgonce::Message::new(support::key("evt-1"));
            let error = if batch {
                inbox.process_batch(&[message], async |_, _| Ok::<_, Error>(())).await.unwrap_err()
            } else {
                inbox.process(&message, async |_| Ok::<_, Error>(())).await.unwrap_err()
            };
            assert_eq!(error.kind(), ErrorKind::NotMigrated, "{}: {error}", migration.version);
        }
        let error = pgonce::verify(&db.pool).await.unwrap_err();
        assert!(error.to_string().contains("apply the migrations of this release"), "{error}");
    }
    pgonce::verify(&db.pool).await.unwrap();
    inbox.process("evt-1", async |_| Ok::<_, Error>(())).await.unwrap();
    assert!(!optimistic.execute(&early, async |_| Ok::<_, Error>(1)).await.unwrap().is_replayed());
    // Down again: the keys stay, the messages go.
    for migration in pgonce::MIGRATIONS[1..].iter().rev() {
        run(&db.pool, migration.down).await;
    }
    works(&db.pool).await;
    assert_eq!(db.count("pgonce.keys").await, 2);
}

#[tokio::test]
async fn the_view_shows_the_result_as_text() {
    let db = Database::new().await;
    db.idempotency()
        .execute(&operation(), async |_| Ok::<_, Error>("bezahlt: 42 €".to_string()))
        .await
        .unwrap();
    let (state, result, expired): (String, String, bool) =
        sqlx::query_as("SELECT state, result, expired FROM pgonce.readable_keys")
            .fetch_one(&db.pool)
            .await
            .unwrap();
    assert_eq!((state.as_str(), result.as_str(), expired), ("completed", "\"bezahlt: 42 €\"", false));
}

/// Everything in the schema, one line each, the same on every supported version of PostgreSQL.
const SNAPSHOT: &str = "
SELECT line FROM (
    SELECT format('%s %s', CASE c.relkind WHEN 'r' THEN 'table' WHEN 'v' THEN 'view' WHEN 'i' THEN 'index'
                           ELSE c.relkind::text END, c.relname) AS line
    FROM pg_class c WHERE c.relnamespace = 'pgonce'::regnamespace
    UNION ALL
    SELECT format('column %s.%s %s%s%s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
                  CASE WHEN a.attnotnull THEN ' not null' ELSE '' END,
                  (SELECT ' collate ' || l.collname FROM pg_collation l
                   WHERE l.oid = a.attcollation AND l.collname <> 'default'))
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE c.relnamespace = 'pgonce'::regnamespace AND c.relkind IN ('r', 'v') AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT format('constraint %s.%s %s', c.relname, o.conname,
                  regexp_replace(pg_get_constraintdef(o.oid), '\\s+', ' ', 'g'))
    FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid
    WHERE o.connamespace = 'pgonce'::regnamespace AND o.contype <> 'n'
    UNION ALL
    SELECT 'definition ' || indexdef FROM pg_indexes WHERE schemaname = 'pgonce'
    UNION ALL
    SELECT format('function %s(%s)', proname, pg_get_function_identity_arguments(oid)) FROM pg_proc
    WHERE pronamespace = 'pgonce'::regnamespace
    UNION ALL
    SELECT 'trigger ' || pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
    WHERE c.relnamespace = 'pgonce'::regnamespace AND NOT t.tgisinternal
) AS lines WHERE line NOT LIKE '%sqlx_migrations%' ORDER BY line COLLATE \"C\"";

#[tokio::test]
async fn the_schema_is_the_one_that_was_announced() {
    let db = Database::empty().await;
    pgonce::migrate(&db.pool).await.unwrap();
    let lines: Vec<String> = sqlx::query_scalar(SNAPSHOT).fetch_all(&db.pool).await.unwrap();
    let actual = lines.join("\n") + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/snapshots/schema.txt");
    if std::env::var_os("PGONCE_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(path, &actual).unwrap();
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        actual, expected,
        "a migration changed the schema: run this test with PGONCE_UPDATE_SNAPSHOTS=1 and announce the change in \
         CHANGELOG.md"
    );
}

#[test]
fn migrations_are_numbered_without_gaps_and_control_no_transaction() {
    for (n, migration) in pgonce::MIGRATIONS.iter().enumerate() {
        assert_eq!(migration.version, n as i64 + 1, "{}", migration.name);
        for sql in [migration.up, migration.down] {
            assert!(!sql.to_uppercase().contains("COMMIT;"), "{}", migration.name);
        }
    }
    // A file that was forgotten in the list would be applied by sqlx-cli only.
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).unwrap().count();
    assert_eq!(files, 2 * pgonce::MIGRATIONS.len());
}
