//! `pgonce.purge_expired`, for pg_cron.

use pgonce::Claim;
use sqlx::PgPool;

use crate::scene::{add_expired, keys, numbered};
use crate::support::{Database, charge, operation};

async fn purge(pool: &PgPool, max_rows: i32) -> i64 {
    sqlx::query_scalar("SELECT pgonce.purge_expired($1)").bind(max_rows).fetch_one(pool).await.unwrap()
}

#[tokio::test]
async fn it_deletes_the_oldest_expired_keys_up_to_its_limit_and_nothing_else() {
    let db = Database::new().await;
    db.idempotency().execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    add_expired(&db.pool, 6).await;
    sqlx::raw_sql(
        "ALTER TABLE pgonce.keys DROP CONSTRAINT keys_finished_before_commit;
         UPDATE pgonce.keys SET state = 'pending', unfinished = 0, completed_at = NULL, transaction_id = NULL,
             result = NULL, result_format = NULL WHERE key = '2'",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    assert_eq!(purge(&db.pool, 0).await, 0);
    assert_eq!(purge(&db.pool, 2).await, 2);
    assert_eq!(keys(&db).await, ["2", "4", "5", "6", "order-1"]);
    let rest: i64 = sqlx::query_scalar("SELECT pgonce.purge_expired()").fetch_one(&db.pool).await.unwrap();
    assert_eq!(rest, 3);
    assert_eq!(keys(&db).await, ["2", "order-1"]);
}

#[tokio::test]
async fn it_skips_a_takeover_and_works_once_at_a_time() {
    let db = Database::new().await;
    add_expired(&db.pool, 4).await;
    let Claim::Claimed(taker) = db.idempotency().claim(&numbered(1)).await.unwrap() else {
        panic!("it is expired")
    };
    let mut first = db.pool.begin().await.unwrap();
    let purged: i64 =
        sqlx::query_scalar("SELECT pgonce.purge_expired(2)").fetch_one(&mut *first).await.unwrap();
    assert_eq!(purged, 2);
    assert_eq!(purge(&db.pool, 10).await, 0, "the first one holds the lock");
    first.commit().await.unwrap();
    assert_eq!(purge(&db.pool, 10).await, 1);
    taker.release().await;
    assert_eq!(purge(&db.pool, 10).await, 1);
}

#[tokio::test]
async fn without_a_limit_it_takes_the_usual_one() {
    let db = Database::new().await;
    add_expired(&db.pool, 10_001).await;
    let expire = "UPDATE pgonce.keys SET expires_at = now() - interval '1 hour'";
    sqlx::raw_sql(expire).execute(&db.pool).await.unwrap();
    let purge = "SELECT pgonce.purge_expired(NULL)";
    let purged: i64 = sqlx::query_scalar(purge).fetch_one(&db.pool).await.unwrap();
    assert_eq!((purged, db.count("pgonce.keys").await), (10_000, 1));
}
