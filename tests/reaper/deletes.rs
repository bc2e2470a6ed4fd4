//! What is deleted, and what is not.

use std::time::Duration;

use pgonce::{Idempotency, Inbox, Operation, Reaper};
use sqlx::postgres::PgPoolOptions;

use crate::scene::{add_expired, keys, numbered, restless};
use crate::support::{Database, charge, key, operation, scope, sqlstate};

/// A live key, and a pending one that was committed with the guard dropped.
async fn add_live_and_pending(db: &Database) {
    db.idempotency().execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    sqlx::raw_sql(
        "ALTER TABLE pgonce.keys DROP CONSTRAINT keys_finished_before_commit;
         INSERT INTO pgonce.keys (scope, key, fingerprint, state, unfinished, attempt, created_at, expires_at)
         VALUES ('acct_42/charges', 'pending', decode(repeat('00', 33), 'hex'), 'pending', 0, gen_random_uuid(),
                 'epoch', 'epoch')",
    )
    .execute(&db.pool)
    .await
    .unwrap();
}

#[tokio::test]
async fn it_deletes_what_is_expired_in_batches_and_nothing_else() {
    let db = Database::new().await;
    add_live_and_pending(&db).await;
    add_expired(&db.pool, 25).await;
    sqlx::raw_sql(
        "CREATE TABLE batches (id int GENERATED ALWAYS AS IDENTITY, deleted bigint, setting text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO batches (deleted, setting)
             SELECT count(*), current_setting('synchronous_commit') || ' '
                 || current_setting('idle_in_transaction_session_timeout') FROM gone;
             RETURN NULL;
         END $$;
         CREATE TRIGGER note AFTER DELETE ON pgonce.keys REFERENCING OLD TABLE AS gone EXECUTE FUNCTION note()",
    )
    .execute(&db.pool)
    .await
    .unwrap();

    let reaper = Reaper::new(db.idempotency()).with_batch_size(10).with_rest(0);
    let reaped = reaper.run_once().await.unwrap();
    assert_eq!((reaped.deleted, reaped.yielded), (25, false));
    let hour = Duration::from_secs(59 * 60)..Duration::from_secs(61 * 60);
    assert!(hour.contains(&reaped.lag), "{:?}", reaped.lag);
    assert_eq!(keys(&db).await, ["pending", "order-1"]);
    let batches: Vec<(i64, String)> =
        sqlx::query_as("SELECT deleted, setting FROM batches ORDER BY id").fetch_all(&db.pool).await.unwrap();
    let expected = [10, 10, 5].map(|deleted| (deleted, "off 5s".to_owned()));
    assert_eq!(batches, expected, "short, and neither the disk nor a stalled client keeps rows locked");

    let again = reaper.run_once().await.unwrap();
    assert_eq!((again.deleted, again.lag), (0, Duration::ZERO));
}

#[tokio::test]
async fn in_the_background_it_goes_on_with_what_expires_later() {
    let db = Database::new().await;
    add_live_and_pending(&db).await;
    let reaper = restless(db.idempotency()).with_batch_size(2).spawn();
    for _ in 0..3 {
        add_expired(&db.pool, 5).await;
        db.wait_until("SELECT count(*) = 2 FROM pgonce.keys").await;
    }
    assert!(!reaper.is_finished());
    reaper.stop().await;
    assert_eq!(keys(&db).await, ["pending", "order-1"]);
}

#[tokio::test]
async fn messages_go_by_their_own_retention() {
    let db = Database::new().await;
    let keys_for = |retention| db.idempotency().with_retention(retention);
    for (name, retention) in [("forgotten", Duration::ZERO), ("remembered", Duration::from_secs(60))] {
        let inbox = Inbox::new(db.pool.clone(), scope()).with_retention(retention);
        inbox.process(name, async |conn| charge(conn, 1).await).await.unwrap();
        let operation = Operation::new(scope(), key(&format!("{name} too").replace(' ', "-")));
        keys_for(retention).execute(&operation, async |conn| charge(conn, 1).await).await.unwrap();
    }
    assert_eq!(Reaper::new(db.idempotency()).run_once().await.unwrap().deleted, 2);
    let mut left = keys(&db).await;
    left.sort();
    assert_eq!(left, ["remembered", "remembered-too"]);
}

#[tokio::test]
async fn a_hardened_pool_does_and_a_read_only_one_says_so() {
    let db = Database::new().await;
    add_expired(&db.pool, 3).await;
    let read_only = db.options().options([("default_transaction_read_only", "on")]);
    let read_only = Idempotency::new(PgPoolOptions::new().connect_lazy_with(read_only));
    let refused = Reaper::new(read_only).run_once().await.unwrap_err();
    assert_eq!(sqlstate(&refused).as_deref(), Some("25006"));
    let hardened = Idempotency::connect(db.options()).await.unwrap();
    assert_eq!(Reaper::new(hardened).run_once().await.unwrap().deleted, 3);
}

#[tokio::test]
async fn keys_that_were_made_to_expire_by_hand_are_deleted_too() {
    let db = Database::new().await;
    add_expired(&db.pool, 5).await;
    sqlx::raw_sql("UPDATE pgonce.keys SET expires_at = '-infinity' WHERE key::int < 4")
        .execute(&db.pool)
        .await
        .unwrap();
    let reaper = Reaper::new(db.idempotency()).with_batch_size(2);
    assert_eq!(reaper.run_once().await.unwrap().deleted, 5);
}

#[tokio::test]
async fn a_deleted_key_is_a_new_request() {
    let db = Database::new().await;
    add_expired(&db.pool, 1).await;
    Reaper::new(db.idempotency()).run_once().await.unwrap();
    let outcome = db.idempotency().execute(&numbered(1), async |conn| charge(conn, 42).await).await.unwrap();
    assert!(!outcome.is_replayed());
    db.assert_charged_once().await;
}

#[tokio::test]
async fn in_partitions_a_row_at_the_same_place_is_another_row() {
    let db = Database::new().await;
    sqlx::raw_sql(
        "ALTER TABLE pgonce.keys RENAME TO plain;
         CREATE TABLE pgonce.keys (LIKE pgonce.plain) PARTITION BY HASH (scope, key);
         CREATE INDEX ON pgonce.keys (expires_at);
         CREATE TABLE pgonce.keys_0 PARTITION OF pgonce.keys FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE TABLE pgonce.keys_1 PARTITION OF pgonce.keys FOR VALUES WITH (MODULUS 2, REMAINDER 1)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let expired = "SELECT array_agg(key ORDER BY key) FROM pgonce.keys WHERE expires_at <= clock_timestamp()";
    for by_function in [false, true] {
        add_expired(&db.pool, 40).await;
        // In each partition, every second row lives.
        sqlx::raw_sql("UPDATE pgonce.keys SET expires_at = 'infinity' WHERE key::int % 2 = 0")
            .execute(&db.pool)
            .await
            .unwrap();
        let purged: i64 = if by_function {
            sqlx::query_scalar("SELECT pgonce.purge_expired()").fetch_one(&db.pool).await.unwrap()
        } else {
            Reaper::new(db.idempotency()).run_once().await.unwrap().deleted.try_into().unwrap()
        };
        assert_eq!(purged, 20);
        let left: Option<Vec<String>> = sqlx::query_scalar(expired).fetch_one(&db.pool).await.unwrap();
        assert_eq!(left, None, "all that was expired is gone");
        assert_eq!(db.count("pgonce.keys").await, 20, "and what lives is there");
        sqlx::raw_sql("TRUNCATE pgonce.keys").execute(&db.pool).await.unwrap();
    }
}
