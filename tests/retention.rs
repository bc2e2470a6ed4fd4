//! The end of a key: expiry by the database's clock, takeover, purge, and their races.

mod support;

use std::sync::Arc;
use std::time::Duration;

use pgonce::{Claim, Error, ErrorKind, Idempotency, InFlight, Isolation, Operation, Outcome};
use support::{Database, charge, key, operation, scope};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

async fn expire_all(db: &Database) {
    db.wait_until_idle().await;
    expire_now(db).await;
}

/// Also while a call is under way.
async fn expire_now(db: &Database) {
    sqlx::raw_sql("UPDATE pgonce.keys SET expires_at = clock_timestamp()").execute(&db.pool).await.unwrap();
}

#[tokio::test]
async fn an_expired_key_is_a_new_request() {
    let db = Database::new().await;
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        let idempotency = db.idempotency().with_isolation(isolation);
        let first = idempotency.execute(&operation(), async |conn| charge(conn, 1).await).await.unwrap();
        expire_all(&db).await;
        assert!(idempotency.find(&scope(), &key("order-1")).await.unwrap().is_none());
        // With other parameters: nothing of the old request is left.
        let other = Operation::new(scope(), key("order-1")).with_params("other").unwrap();
        let second = idempotency.execute(&other, async |conn| charge(conn, 1).await).await.unwrap();
        assert!(!second.is_replayed());
        assert_ne!(first, second);
        assert_eq!(
            idempotency.execute(&other, async |conn| charge(conn, 1).await).await.unwrap(),
            Outcome::Replayed(second.into_inner())
        );
        let stale = idempotency.execute(&operation(), async |conn| charge(conn, 1).await).await.unwrap_err();
        assert_eq!(stale.kind(), ErrorKind::FingerprintMismatch);
        assert_eq!(db.count("pgonce.keys").await, 1);
        expire_all(&db).await;
        assert_eq!(idempotency.purge_expired(10).await.unwrap(), 1);
    }
}

#[tokio::test]
async fn a_takeover_that_fails_leaves_the_expired_row_as_it_was() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    expire_all(&db).await;
    let row = "SELECT keys::text FROM pgonce.keys";
    let before: String = sqlx::query_scalar(row).fetch_one(&db.pool).await.unwrap();
    let failed = idempotency
        .execute(&operation(), async |conn| {
            charge(conn, 42).await?;
            Err::<i64, _>(anyhow::anyhow!("no"))
        })
        .await;
    failed.unwrap_err();
    let after: String = sqlx::query_scalar(row).fetch_one(&db.pool).await.unwrap();
    assert_eq!(before, after);
    db.assert_charged_once().await;
}

#[tokio::test]
async fn a_takeover_cannot_be_committed_half_done_either() {
    let db = Database::new().await;
    let idempotency = Idempotency::new(db.pool.clone());
    idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    expire_all(&db).await;
    let error = idempotency
        .execute(&operation(), async |conn| {
            charge(conn, 42).await?;
            sqlx::raw_sql("COMMIT").execute(conn).await?;
            Ok::<_, Error>(0)
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AtomicityViolation);
    db.assert_charged_once().await;
}

#[tokio::test]
async fn of_many_takers_one_executes() {
    let db = Database::new().await;
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable] {
        let idempotency = support::on(db.pool_of(16))
            .with_isolation(isolation)
            .with_in_flight(InFlight::Wait(Duration::from_secs(60)))
            .with_max_attempts(50);
        let outcome = idempotency.execute(&operation(), async |conn| charge(conn, 1).await).await.unwrap();
        let old = outcome.into_inner();
        for round in 0..5 {
            expire_all(&db).await;
            let ledger = db.count("ledger").await;
            let start = Arc::new(Barrier::new(16));
            let mut calls = JoinSet::new();
            for _ in 0..16 {
                let (idempotency, start) = (idempotency.clone(), start.clone());
                calls.spawn(async move {
                    start.wait().await;
                    idempotency.execute(&operation(), async |conn| charge(conn, 1).await).await.unwrap()
                });
            }
            let outcomes = calls.join_all().await;
            assert_eq!(
                outcomes.iter().filter(|outcome| !outcome.is_replayed()).count(),
                1,
                "{isolation:?} {round}"
            );
            assert!(
                outcomes.iter().all(|outcome| *outcome.as_ref().into_inner() != old),
                "the old result is gone"
            );
            assert_eq!(db.count("ledger").await, ledger + 1);
        }
        expire_all(&db).await;
        idempotency.purge_expired(1).await.unwrap();
    }
}

#[tokio::test]
async fn the_retention_of_the_operation_comes_before_the_general_one() {
    let db = Database::new().await;
    let day = 24 * 60 * 60;
    let cases = [
        (None, None, day),
        (Some(2 * day), None, 2 * day),
        (Some(2 * day), Some(60), 60),
        (Some(u64::MAX), None, 100 * 365 * day),
    ];
    for (n, (general, own, expected)) in cases.into_iter().enumerate() {
        let mut idempotency = db.idempotency();
        let mut operation = Operation::new(scope(), key(&n.to_string()));
        if let Some(general) = general {
            idempotency = idempotency.with_retention(Duration::from_secs(general));
        }
        if let Some(own) = own {
            operation = operation.with_retention(Duration::from_secs(own));
        }
        idempotency.execute(&operation, async |_| Ok::<_, Error>(())).await.unwrap();
        let record = idempotency.find(&scope(), operation.key()).await.unwrap().unwrap();
        assert_eq!((record.expires_at() - record.created_at()).num_seconds(), expected as i64);
    }
    // Without any retention nothing is replayed, and nothing breaks.
    let forgetful = db.idempotency().with_retention(Duration::ZERO);
    for _ in 0..2 {
        let outcome = forgetful.execute(&operation(), async |conn| charge(conn, 1).await).await.unwrap();
        assert!(!outcome.is_replayed());
    }
}

#[tokio::test]
async fn the_purge_takes_the_oldest_expired_keys_up_to_its_limit_and_nothing_else() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    for n in 0..10 {
        let operation = Operation::new(scope(), key(&n.to_string()));
        idempotency.execute(&operation, async |_| Ok::<_, Error>(n)).await.unwrap();
    }
    // 0 to 6 expired, 0 first.
    sqlx::raw_sql(
        "UPDATE pgonce.keys SET expires_at = clock_timestamp() - (10 - key::int) * interval '1 minute' WHERE key < '7'",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    assert_eq!(idempotency.purge_expired(0).await.unwrap(), 0);
    assert_eq!(idempotency.purge_expired(3).await.unwrap(), 3);
    let left: Vec<String> =
        sqlx::query_scalar("SELECT key FROM pgonce.keys ORDER BY key").fetch_all(&db.pool).await.unwrap();
    assert_eq!(left, ["3", "4", "5", "6", "7", "8", "9"]);
    assert_eq!(idempotency.purge_expired(u32::MAX).await.unwrap(), 4);
    assert_eq!(idempotency.purge_expired(u32::MAX).await.unwrap(), 0);
    assert_eq!(db.count("pgonce.keys").await, 3);
}

#[tokio::test]
async fn the_purge_skips_a_key_that_is_being_taken_over() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    idempotency.execute(&operation(), async |conn| charge(conn, 1).await).await.unwrap();
    expire_all(&db).await;
    let Claim::Claimed(mut taker) = idempotency.claim(&operation()).await.unwrap() else {
        panic!("it is expired")
    };
    assert_eq!(idempotency.purge_expired(10).await.unwrap(), 0, "neither waits for it nor deletes it");
    charge(&mut taker, 1).await.unwrap();
    taker.complete(&7).await.unwrap();
    assert_eq!(idempotency.purge_expired(10).await.unwrap(), 0, "it is live again");
    let replayed = idempotency.execute(&operation(), async |_| Ok::<_, Error>(0)).await.unwrap();
    assert_eq!(replayed, Outcome::Replayed(7));
}

#[tokio::test]
async fn a_takeover_that_comes_too_late_replays() {
    // Between the look that finds the row expired and the UPDATE that takes it over, the row has become live again.
    let db = Database::new().await;
    db.idempotency().execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    expire_all(&db).await;

    let (reached, mut is_reached) = tokio::sync::mpsc::unbounded_channel();
    let (go_on, told) = tokio::sync::watch::channel(false);
    let pool = db
        .gated_pool("SET fingerprint = $3", move || {
            let (reached, mut told) = (reached.clone(), told.clone());
            async move {
                reached.send(()).unwrap();
                told.wait_for(|go_on| *go_on).await.unwrap();
            }
        })
        .await;
    let late = tokio::spawn(async move {
        Idempotency::new(pool).execute(&operation(), async |conn| charge(conn, 42).await).await
    });
    is_reached.recv().await.unwrap();
    sqlx::raw_sql("UPDATE pgonce.keys SET expires_at = clock_timestamp() + interval '1 hour'")
        .execute(&db.pool)
        .await
        .unwrap();
    go_on.send(true).unwrap();
    assert!(late.await.unwrap().unwrap().is_replayed());
    db.assert_charged_once().await;
}

#[tokio::test]
async fn a_key_that_vanishes_under_a_claim_is_claimed_again() {
    // The claim meets the row, the row is deleted, the claim looks for it and finds nothing.
    let db = Database::new().await;
    db.idempotency().execute(&operation(), async |conn| charge(conn, 1).await).await.unwrap();
    let (reached, mut is_reached) = tokio::sync::mpsc::unbounded_channel();
    let (go_on, told) = tokio::sync::watch::channel(false);
    let pool = db
        .gated_pool("LEFT JOIN pgonce.keys", move || {
            let (reached, mut told) = (reached.clone(), told.clone());
            async move {
                reached.send(()).unwrap();
                told.wait_for(|go_on| *go_on).await.unwrap();
            }
        })
        .await;
    let call = tokio::spawn(async move {
        Idempotency::new(pool).execute(&operation(), async |conn| charge(conn, 1).await).await
    });
    is_reached.recv().await.unwrap();
    expire_now(&db).await;
    assert_eq!(db.idempotency().purge_expired(10).await.unwrap(), 1);
    go_on.send(true).unwrap();
    assert!(!call.await.unwrap().unwrap().is_replayed());
    assert_eq!(db.count("ledger").await, 2);
    assert_eq!(db.count("pgonce.keys").await, 1);
}
