//! What only the database knows: how many keys there are.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use pgonce::{Error, Idempotency, Reaper};
use sqlx::{Connection, PgConnection};

use crate::meter::Meter;
use crate::support::{Database, operation};

crate::scenarios![the_keys_are_counted:keys_that_are_live_and_expired, a_sample_of_many, a_purge, a_reaper, partitions];

fn gauge(meter: &Meter, name: &str) -> f64 {
    let scrape = meter.scrape();
    let of_name: Vec<_> = scrape.0.iter().filter(|(series, _)| series.name == name).collect();
    let [(series, value)] = of_name[..] else { panic!("{name}: {of_name:?}") };
    assert!(series.labels.is_empty());
    *value
}

/// Live and expired keys, and the lag in seconds.
fn gauges(meter: &Meter) -> (f64, f64, f64) {
    let [live, expired, lag] = ["pgonce_live_keys", "pgonce_expired_keys", "pgonce_reaper_lag_seconds"];
    (gauge(meter, live), gauge(meter, expired), gauge(meter, lag))
}

/// So many keys that expire in an hour, or that have been expired for an hour.
async fn insert(db: &Database, live: i64, expired: i64) {
    let mut conn = db.pool.acquire().await.unwrap();
    sqlx::query(
        "INSERT INTO pgonce.keys (scope, key, fingerprint, attempt, state, result, result_format, transaction_id,
                                  created_at, completed_at, expires_at)
         SELECT 'acct_42', 'key-' || n, decode(repeat('00', 33), 'hex'), gen_random_uuid(), 'completed', '1', 'json',
                pg_current_xact_id(), now(), now(), now() + CASE WHEN n <= $1 THEN interval '1 hour'
                ELSE interval '-1 hour' END
         FROM generate_series(1, $1 + $2) AS n",
    )
    .bind(live)
    .bind(expired)
    .execute(&mut *conn)
    .await
    .unwrap();
    // A session keeps what it has counted for up to ten seconds.
    sqlx::raw_sql("SELECT pg_stat_force_next_flush()").execute(&mut *conn).await.unwrap();
}

/// Drives the work until this is so.
async fn poll_until(work: impl Future<Output = ()>, so: impl Fn() -> bool) {
    let mut work = pin!(work);
    poll_fn(|context| match work.as_mut().poll(context) {
        Poll::Pending if !so() => Poll::Pending,
        _ => Poll::Ready(()),
    })
    .await;
}

async fn keys_that_are_live_and_expired(meter: &Meter) {
    // Its statistics are to be its own.
    let db = Database::new().await;
    let idempotency = db.idempotency();
    idempotency.sample_metrics().await.unwrap();
    assert_eq!(gauges(meter), (0.0, 0.0, 0.0));

    let mut conn = db.pool.begin().await.unwrap();
    // One of them is pending, which nobody may delete.
    let pending = operation().with_retention(Duration::ZERO);
    let closure = async |_: &mut PgConnection| Ok::<_, Error>(1);
    idempotency.execute_in(&mut conn, &pending, closure).await.unwrap();
    insert(&db, 100, 30).await;
    db.wait_until("SELECT pg_stat_get_live_tuples('pgonce.keys'::regclass) = 130").await;
    idempotency.sample_metrics().await.unwrap();
    let (live, expired, lag) = gauges(meter);
    assert_eq!((live, expired), (100.0, 30.0));
    assert!((3600.0..3660.0).contains(&lag), "{lag}");

    conn.rollback().await.unwrap();

    // Where they cannot be known, they stay.
    let away = Idempotency::new(db.pool_of(1));
    away.pool().close().await;
    away.sample_metrics().await.unwrap_err();
    assert_eq!(gauges(meter), (live, expired, lag));
}

/// The table is not read as a whole, though the planner would rather do so: the keys do not lie in the order in which they expire.
async fn a_sample_of_many(meter: &Meter) {
    let db = Database::new().await;
    insert(&db, 3000, 30).await;
    for statement in [
        "UPDATE pgonce.keys SET expires_at = expires_at + random() * interval '1 hour' WHERE expires_at > now()",
        "VACUUM ANALYZE pgonce.keys",
        "SELECT pg_stat_force_next_flush()",
    ] {
        sqlx::raw_sql(statement).execute(&db.pool).await.unwrap();
    }
    let read = async || {
        let read =
            "SELECT seq_scan, idx_tup_read FROM pg_stat_user_tables JOIN pg_stat_user_indexes USING (relid)
                    WHERE indexrelname = 'keys_expires_at_idx'";
        let mut conn = PgConnection::connect_with(&db.options()).await.unwrap();
        sqlx::query_as::<_, (i64, i64)>(read).fetch_one(&mut conn).await.unwrap()
    };
    let before = read().await;
    let idempotency = Idempotency::new(db.pool_of(1));
    idempotency.sample_metrics().await.unwrap();
    // A session counts for all to see when it has ended.
    idempotency.pool().close().await;
    db.wait_until_idle().await;
    let after = read().await;
    assert_eq!(gauges(meter).1, 30.0);
    assert_eq!(after.0, before.0, "the whole table was read");
    assert!(after.1 - before.1 < 200, "{} entries were read", after.1 - before.1);
}

async fn a_purge(meter: &Meter) {
    let db = meter.database().await;
    let idempotency = db.idempotency();
    insert(db, 1, 5).await;
    let work =
        async { idempotency.purge_expired(3).await.unwrap() + idempotency.purge_expired(3).await.unwrap() };
    let (purged, gained) = meter.gains(work).await;
    assert_eq!(purged, 5);
    assert_eq!(gained.of("pgonce_purged_keys_total", []), [([], 5)]);
}

/// What it deletes, and what each of its turns comes to; and it reports the gauges by itself.
async fn a_reaper(meter: &Meter) {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    insert(&db, 1, 5).await;
    let reaper = Reaper::new(idempotency.clone()).with_batch_size(2).with_rest(0);
    let cycles = "pgonce_reaper_cycles_total";
    let (reaped, gained) = meter.gains(reaper.run_once()).await;
    assert_eq!(reaped.unwrap().deleted, 5);
    assert_eq!(gained.of("pgonce_purged_keys_total", []), [([], 5)]);
    assert_eq!(gained.of(cycles, ["result"]), [(["done".into()], 1)]);

    let mut other = db.pool.begin().await.unwrap();
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended('pgonce.reaper', 0))";
    sqlx::raw_sql(lock).execute(&mut *other).await.unwrap();
    let (reaped, gained) = meter.gains(reaper.run_once()).await;
    assert!(reaped.unwrap().yielded);
    assert_eq!(gained.of(cycles, ["result"]), [(["not_elected".into()], 1)]);
    other.rollback().await.unwrap();

    sqlx::raw_sql("UPDATE pgonce.keys SET expires_at = now() - interval '1 hour'")
        .execute(&db.pool)
        .await
        .unwrap();
    // Its first turn, and then a pause of a minute.
    let turn = poll_until(reaper.run(), || gauge(meter, "pgonce_expired_keys") == 1.0);
    tokio::time::timeout(Duration::from_secs(30), turn).await.expect("it reports what it finds");

    let away = Idempotency::new(db.pool_of(1));
    away.pool().close().await;
    let (reaped, gained) = meter.gains(Reaper::new(away).run_once()).await;
    reaped.unwrap_err();
    assert_eq!(gained.of(cycles, ["result"]), [(["failed".into()], 1)]);
}

/// Where the table is partitioned, the figures are those of all partitions.
async fn partitions(meter: &Meter) {
    let db = Database::new().await;
    sqlx::raw_sql(
        "BEGIN;
         ALTER TABLE pgonce.keys RENAME TO old_keys;
         CREATE TABLE pgonce.keys (LIKE pgonce.old_keys) PARTITION BY HASH (scope, key);
         CREATE TABLE pgonce.keys_0 PARTITION OF pgonce.keys FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE TABLE pgonce.keys_1 PARTITION OF pgonce.keys FOR VALUES WITH (MODULUS 2, REMAINDER 1);
         COMMIT;",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    insert(&db, 100, 30).await;
    // After the statistics were reset, as after a crash, there is what the last ANALYZE has found.
    sqlx::raw_sql("ANALYZE pgonce.keys").execute(&db.pool).await.unwrap();
    sqlx::raw_sql("SELECT pg_stat_reset()").execute(&db.pool).await.unwrap();
    db.idempotency().sample_metrics().await.unwrap();
    let (live, expired, _) = gauges(meter);
    assert_eq!((live, expired), (100.0, 30.0));
}
