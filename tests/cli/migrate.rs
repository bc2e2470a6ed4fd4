//! The schema is brought up to date; and what happens when it is of another version.

use pgonce::MIGRATIONS;

use crate::scene::{SCOPE, execute, json, operation, run, sql};
use crate::support::Database;

const EVICT: [&str; 6] = ["evict", SCOPE, "order-1", "--reason", "a test", "--yes"];

/// The first `count` migrations, applied by another tool.
async fn migrated_by_hand(count: usize) -> Database {
    let db = Database::empty().await;
    for migration in &MIGRATIONS[..count] {
        sql(&db.pool, &format!("BEGIN; {}; COMMIT", migration.up)).await;
    }
    db
}

#[tokio::test]
async fn an_empty_database_is_migrated_once() {
    let db = Database::empty().await;
    for args in [&["list"][..], &["show", SCOPE, "order-1"], &["stats"], &["purge"], &["evictions"], &EVICT] {
        run(&db, args).await.ending(4).says("pgonce.keys is missing").says("pgonce migrate");
    }
    run(&db, &["doctor"]).await.ending(1).says("there is no pgonce in database");

    let said = run(&db, &["migrate", "--dry-run"]).await.ending(0);
    said.says("missing 1 keys").says("missing 2 messages").says("missing 3 operations");
    let document = json(&db, &["migrate", "--dry-run"]).await;
    assert_eq!((&document["version"], &document["applied"]), (&0.into(), &false.into()));
    assert_eq!(document["missing"][2]["name"], "operations");
    let schemas = "pg_namespace WHERE nspname = 'pgonce'";
    assert_eq!(db.count(schemas).await, 0, "a dry run leaves nothing");

    run(&db, &["migrate"]).await.ending(0).says("applied 1 keys").says("applied 3 operations");
    pgonce::verify(&db.pool).await.unwrap();
    run(&db, &["migrate"]).await.ending(0).says("nothing to do");
    let document = json(&db, &["migrate"]).await;
    assert_eq!(document["missing"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn it_waits_no_longer_than_it_was_told_to() {
    let db = Database::empty().await;
    sql(&db.pool, &format!("ALTER DATABASE {} SET default_transaction_read_only = on", db.name())).await;
    let mut other = db.pool.begin_with("BEGIN READ WRITE").await.unwrap();
    sqlx::raw_sql("CREATE SCHEMA pgonce").execute(&mut *other).await.unwrap();
    run(&db, &["migrate", "--timeout", "1"]).await.ending(7).says("did not answer in time");
    other.rollback().await.unwrap();
    run(&db, &["migrate"]).await.ending(0).says("applied 3 operations");
}

#[tokio::test]
async fn an_older_schema_can_be_read_and_is_brought_up_to_date() {
    let db = Database::empty().await;
    // As an earlier release left it.
    pgonce::migrate(&db.pool).await.unwrap();
    for migration in MIGRATIONS[2..].iter().rev() {
        sql(&db.pool, migration.down).await;
    }
    sql(&db.pool, "DELETE FROM pgonce._sqlx_migrations WHERE version > 2").await;
    execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;

    let said = run(&db, &["show", SCOPE, "order-1"]).await.ending(0);
    said.says("completed").says("warning: ").says("is of version 2, not 7").says("pgonce migrate");
    run(&db, &["list"]).await.ending(0).says("order-1");
    run(&db, &["stats"]).await.ending(0).says("1 key live");
    for args in [&["evictions"][..], &["purge"], &EVICT] {
        run(&db, args).await.ending(4).says("is of version 2, not 7").says("pgonce migrate");
    }
    run(&db, &["doctor"]).await.ending(1).says("version 2, but this release has version 7");

    run(&db, &["migrate"]).await.ending(0).says("applied 3 operations").does_not_say("2 messages");
    run(&db, &EVICT).await.ending(0);
}

/// Without notes a version shows by what its migration has made.
#[tokio::test]
async fn each_version_is_known_by_what_it_has() {
    let db = Database::empty().await;
    for migration in MIGRATIONS {
        sql(&db.pool, &format!("BEGIN; {}; COMMIT", migration.up)).await;
        let version = migration.version;
        let (doctor, show) =
            (run(&db, &["doctor"]).await.ending(1), run(&db, &["show", SCOPE, "order-1"]).await.ending(1));
        show.says("unknown");
        if version == MIGRATIONS.len() as i64 {
            doctor.says("ok       schema        version 7, as this release has it; not by sqlx's migrator");
            show.does_not_say("warning");
        } else {
            doctor.says(&format!("problem  schema        version {version}, but this release has version 7"));
            show.says(&format!(
                "warning: the schema of database {} is of version {version}, not 7",
                db.name()
            ));
        }
    }
    // And on the way back, as an operator may go it.
    for migration in MIGRATIONS.iter().rev() {
        sql(&db.pool, &format!("BEGIN; {}; COMMIT", migration.down)).await;
        let before = migration.version - 1;
        let document = json(&db, &["migrate", "--dry-run"]).await;
        assert_eq!(document["version"], before, "{document}");
    }
}

#[tokio::test]
async fn a_newer_schema_can_be_read_and_is_not_written_to() {
    let db = Database::new().await;
    execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;
    sql(
        &db.pool,
        "INSERT INTO pgonce._sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (99, 'of the future', true, '', 0)",
    )
    .await;
    let said = run(&db, &["show", SCOPE, "order-1"]).await.ending(0);
    said.says("completed").says("is of version 99, not 7").says("newer release");
    for (args, says) in [(&["list"][..], "order-1"), (&["stats"], "1 key live")] {
        let said = run(&db, args).await.ending(0);
        said.says(says).says("warning: ").says("is of version 99, not 7").says("newer release");
    }
    for args in [&EVICT[..], &["evictions"], &["purge"], &["migrate"], &["migrate", "--dry-run"]] {
        run(&db, args).await.ending(4).says("is of version 99, not 7").says("newer release");
    }
    assert_eq!(db.count("pgonce.keys").await, 1);
    run(&db, &["doctor"]).await.ending(1).says("version 99, but this release has version 7");
}

#[tokio::test]
async fn a_database_of_another_tool_stays_with_it() {
    let db = migrated_by_hand(2).await;
    run(&db, &["migrate"]).await.ending(4).says("another tool").says("--dry-run --sql");
    let said = run(&db, &["migrate", "--dry-run", "--sql"]).await.ending(0);
    said.does_not_say("CREATE TABLE pgonce.keys");
    sql(&db.pool, &said.out).await;
    run(&db, &["migrate"]).await.ending(0).says("nothing to do");
    execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;
    run(&db, &EVICT).await.ending(0);
}
