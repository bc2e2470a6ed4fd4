//! What somebody has broken or dropped of the schema is found, and mended by what the doctor says.

use crate::doctor::complaints;
use crate::scene::{SCOPE, execute, expired, json, operation, run, sql};
use crate::support::Database;

/// Nothing is wrong with the schema and the table.
async fn assert_sound(db: &Database) {
    let document = json(db, &["doctor"]).await;
    for check in ["schema", "guards", "indexes", "vacuum"] {
        assert!(complaints(&document, check).is_empty(), "{document}");
    }
}

#[tokio::test]
async fn each_break_of_the_schema_is_found() {
    let db = Database::new().await;
    assert_sound(&db).await;
    for (breaks, check, says, mends) in [
        (
            "ALTER TABLE pgonce.keys DROP CONSTRAINT keys_finished_before_commit",
            "guards",
            "keys_finished_before_commit is missing",
            "ALTER TABLE pgonce.keys ADD CONSTRAINT keys_finished_before_commit FOREIGN KEY (unfinished)
             REFERENCES pgonce.unfinished (id) DEFERRABLE INITIALLY DEFERRED",
        ),
        (
            "ALTER TABLE pgonce.keys DISABLE TRIGGER ALL",
            "guards",
            "are disabled",
            "ALTER TABLE pgonce.keys ENABLE TRIGGER ALL",
        ),
        (
            "DROP INDEX pgonce.keys_expires_at_idx",
            "indexes",
            "no index on expires_at",
            "CREATE INDEX keys_expires_at_idx ON pgonce.keys (expires_at)",
        ),
        (
            "CREATE INDEX broken ON pgonce.keys (created_at);
             UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'pgonce.broken'::regclass",
            "indexes",
            "the index broken is not valid",
            "REINDEX INDEX CONCURRENTLY pgonce.broken",
        ),
        (
            "ALTER TABLE pgonce.keys DROP CONSTRAINT keys_pkey",
            "guards",
            "the primary key of pgonce.keys on (scope, key) is missing",
            "ALTER TABLE pgonce.keys ADD CONSTRAINT keys_pkey PRIMARY KEY (scope, key)",
        ),
        (
            "ALTER TABLE pgonce.keys SET (autovacuum_enabled = false)",
            "vacuum",
            "autovacuum is off for pgonce.keys",
            "ALTER TABLE pgonce.keys RESET (autovacuum_enabled)",
        ),
    ] {
        sql(&db.pool, breaks).await;
        let document = json(&db, &["doctor"]).await;
        let found = complaints(&document, check);
        assert_eq!(found.len(), 1, "after {breaks}: {document}");
        assert!(found[0]["message"].as_str().unwrap().contains(says), "{}", found[0]);
        assert_eq!(found[0]["status"], "problem");
        sql(&db.pool, mends).await;
    }
    assert_sound(&db).await;
}

/// However the schema came there: the notes of a migrator say nothing of what was dropped since, and without them it must not be
/// taken for an older version.
#[tokio::test]
async fn what_was_dropped_of_the_schema_is_found_and_mended_by_what_is_said() {
    for noted in [true, false] {
        let db = Database::new().await;
        if !noted {
            sql(&db.pool, "DROP TABLE pgonce._sqlx_migrations").await;
        }
        for (breaks, says) in [
            ("DROP TABLE pgonce.evictions", "the table pgonce.evictions is missing"),
            ("DROP FUNCTION pgonce.purge_expired", "the function pgonce.purge_expired is missing"),
            ("DROP FUNCTION pgonce.refuse_commit", "the function pgonce.refuse_commit is missing"),
            ("DROP FUNCTION pgonce.allow_commit", "the function pgonce.allow_commit is missing"),
        ] {
            // Without notes, what the newest migration has made is all that tells of it.
            if breaks.ends_with("allow_commit") && !noted {
                continue;
            }
            sql(&db.pool, breaks).await;
            let document = json(&db, &["doctor"]).await;
            let found = complaints(&document, "schema");
            assert_eq!(found.len(), 1, "after {breaks}: {document}");
            assert!(found[0]["message"].as_str().unwrap().starts_with(says), "{}", found[0]);
            assert_eq!(found[0]["status"], "problem");
            run(&db, &["doctor"]).await.ending(1).does_not_say("as this release has it");
            sql(&db.pool, found[0]["fix"].as_str().unwrap()).await;
            assert_sound(&db).await;
        }
        execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;
        run(&db, &["evict", SCOPE, "order-1", "--reason", "a test", "--yes"]).await.ending(0);
        execute(&db.idempotency(), &expired(SCOPE, "order-1")).await;
        assert_eq!(db.count("pgonce.purge_expired() WHERE purge_expired = 1").await, 1);
    }
}

/// The others are explained all the same.
#[tokio::test]
async fn without_the_table_of_evictions_only_evictions_fail() {
    let db = Database::new().await;
    execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;
    sql(&db.pool, "DROP TABLE pgonce.evictions").await;
    run(&db, &["show", SCOPE, "order-1"]).await.ending(0).says("completed");
    for args in [&["evictions"][..], &["evict", SCOPE, "order-1", "--reason", "a test", "--yes"]] {
        run(&db, args).await.ending(4).says("table pgonce.evictions is missing").says("pgonce doctor");
    }
    assert_eq!(db.count("pgonce.keys").await, 1);
}

/// In partitions, too: their index is not made concurrently.
#[tokio::test]
async fn the_index_of_partitions_is_missed_and_mended() {
    let db = Database::new().await;
    sql(&db.pool, concat!("BEGIN;", include_str!("../../docs/partitioned.sql"), "COMMIT;")).await;
    sql(&db.pool, "DROP INDEX pgonce.keys_expires_at_idx").await;
    let document = json(&db, &["doctor"]).await;
    let found = complaints(&document, "indexes");
    assert_eq!(found.len(), 1, "{document}");
    sql(&db.pool, found[0]["fix"].as_str().unwrap()).await;
    assert_sound(&db).await;
    sql(
        &db.pool,
        "CREATE INDEX broken ON pgonce.keys_07 (created_at);
         UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'pgonce.broken'::regclass",
    )
    .await;
    run(&db, &["doctor"]).await.ending(1).says("REINDEX INDEX CONCURRENTLY pgonce.broken");
}

/// A partitioned table has no size, and seems never to have been frozen; its partitions have and were.
#[tokio::test]
async fn a_table_in_partitions_is_sound_and_has_a_size() {
    let db = Database::new().await;
    execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;
    sql(&db.pool, concat!("BEGIN;", include_str!("../../docs/partitioned.sql"), "COMMIT;")).await;
    assert_sound(&db).await;
    let stats = json(&db, &["stats"]).await;
    assert_eq!(stats["total"]["live"], 1);
    assert!(stats["table_bytes"].as_i64() > Some(0) && stats["index_bytes"].as_i64() > Some(0), "{stats}");
}
