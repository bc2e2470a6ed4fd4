//! The schema changes while calls run: the application's tables under a warm connection, and pgonce's own.

mod support;

use std::time::{Duration, Instant};

use pgonce::{Error, ErrorKind, Idempotency, InFlight, Isolation, Operation, Outcome};
use sqlx::{Column, Executor, PgPool, Row};
use support::{Database, charge, key, operation, scope};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const LEVELS: [Isolation; 3] = [Isolation::ReadCommitted, Isolation::RepeatableRead, Isolation::Serializable];

async fn must_not_run(_: &mut sqlx::PgConnection) -> Result<i64, Error> {
    panic!("must not run")
}

/// A call inside of its closure.
struct Running {
    go_on: oneshot::Sender<()>,
    call: JoinHandle<Result<Outcome<i64>, Error>>,
}

async fn running(idempotency: &Idempotency, operation: Operation) -> Running {
    let (entered, is_inside) = oneshot::channel();
    let (go_on, told) = oneshot::channel::<()>();
    let idempotency = idempotency.clone();
    let call = tokio::spawn(async move {
        idempotency
            .execute_once(&operation, async |conn| {
                let id = charge(conn, 42).await?;
                entered.send(()).expect("the test waits");
                told.await.expect("the test says so");
                Ok::<_, Error>(id)
            })
            .await
    });
    is_inside.await.expect("it gets inside of its closure");
    Running { go_on, call }
}

/// Waits until so many sessions wait for a table's lock.
async fn wait_until_locked_out(db: &Database, sessions: i64) {
    let begin = Instant::now();
    loop {
        assert!(begin.elapsed() < Duration::from_secs(60), "never so many: {sessions}");
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = 'relation'",
        )
        .fetch_one(&db.pool)
        .await
        .unwrap();
        if waiting == sessions {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn start(pool: &PgPool, statement: &'static str) -> JoinHandle<()> {
    let pool = pool.clone();
    tokio::spawn(async move {
        pool.execute(statement).await.expect(statement);
    })
}

#[tokio::test]
async fn a_business_table_that_gets_a_column_fails_the_plans_that_its_connection_has_cached() {
    let db = Database::new().await;
    let idempotency = Idempotency::new(db.pool_of(1));
    let columns = async |operation: &Operation| {
        let call = idempotency.execute(operation, async |conn| {
            charge(conn, 42).await?;
            let all = sqlx::query("SELECT * FROM accounts WHERE id = $1").bind("alice");
            let row = all.fetch_one(conn).await?;
            Ok::<_, Error>(row.columns().iter().map(|column| column.name().to_owned()).collect::<Vec<_>>())
        });
        call.await
    };
    columns(&Operation::new(scope(), key("warm"))).await.unwrap();
    sqlx::raw_sql(
        "ALTER TABLE accounts ADD COLUMN note text; UPDATE accounts SET balance = 1000 WHERE id = 'alice';
         TRUNCATE ledger, pgonce.keys",
    )
    .execute(&db.pool)
    .await
    .unwrap();

    // "cached plan must not change result type". It is the application's statement, and would fail on this connection
    // without pgonce as well. Nothing is left of the call.
    let error = columns(&operation()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Database);
    assert!(error.to_string().contains("0A000"), "{error}");
    db.assert_untouched().await;
    // The remedy, besides naming the columns: another connection, or an empty cache.
    let mut conn = idempotency.pool().acquire().await.unwrap();
    sqlx::Connection::clear_cached_statements(&mut *conn).await.unwrap();
    drop(conn);
    let outcome = columns(&operation()).await.unwrap();
    assert_eq!(outcome, Outcome::Executed(["id", "balance", "note"].map(String::from).to_vec()));
    db.assert_charged_once().await;
}

#[tokio::test]
async fn a_column_that_a_newer_release_adds_disturbs_no_call_on_a_warm_connection() {
    let db = Database::new().await;
    let pool = db.pool_of(1);
    // All statements of pgonce's, so that they are all prepared.
    let everything = async |name: &str| {
        for isolation in LEVELS {
            let idempotency = Idempotency::new(pool.clone()).with_isolation(isolation);
            let operation =
                |what: &str| Operation::new(scope(), key(&format!("{name}/{isolation:?}/{what}")));
            let fresh = operation("fresh");
            let first = idempotency.execute(&fresh, async |conn| charge(conn, 1).await).await.unwrap();
            let again = idempotency.execute(&fresh, must_not_run).await.unwrap();
            assert_eq!(again, Outcome::Replayed(first.into_inner()), "{name}");
            let other = fresh.clone().with_params(&"others").unwrap();
            let mismatch = idempotency.execute(&other, must_not_run).await.unwrap_err();
            assert_eq!(mismatch.kind(), ErrorKind::FingerprintMismatch, "{name}");
            let found = idempotency.find(fresh.scope(), fresh.key()).await.unwrap();
            assert_eq!(found.unwrap().fingerprint(), fresh.fingerprint(), "{name}");
            let expires = operation("expires").with_retention(Duration::ZERO);
            for _ in 0..2 {
                let taken = idempotency.execute(&expires, async |conn| charge(conn, 1).await).await.unwrap();
                assert!(!taken.is_replayed(), "{name}");
            }
            let declined = idempotency
                .execute_recording(&operation("declined"), async |conn| {
                    charge(conn, 1).await?;
                    Ok::<Result<(), String>, Error>(Err("declined".into()))
                })
                .await;
            assert_eq!(declined.unwrap(), Outcome::Executed(Err("declined".into())), "{name}");
            assert_eq!(idempotency.purge_expired(10).await.unwrap(), 1, "{name}");
        }
        sqlx::query_scalar::<_, i32>("SELECT pg_backend_pid()").fetch_one(&pool).await.unwrap()
    };
    let before = everything("before").await;
    sqlx::raw_sql(
        "ALTER TABLE pgonce.keys ADD COLUMN note text, ADD COLUMN priority int NOT NULL DEFAULT 0;
         CREATE INDEX ON pgonce.keys (priority)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    assert_eq!(everything("after").await, before, "on the same connection");
    assert_eq!(db.count("ledger").await, 2 * 3 * 3);
    assert_eq!(db.balance("bob").await, 2 * 3 * 3);
}

#[tokio::test]
async fn a_schema_that_is_dropped_in_mid_run_is_named_and_can_come_back() {
    let db = Database::new().await;
    let idempotency = Idempotency::new(db.pool_of(1));
    let other = Operation::new(scope(), key("order-2"));
    let first = running(&idempotency, operation()).await;
    let drop_schema = start(&db.pool, "DROP SCHEMA pgonce CASCADE");
    wait_until_locked_out(&db, 1).await;
    // It waits for the call, which can be finished.
    first.go_on.send(()).unwrap();
    assert!(!first.call.await.unwrap().unwrap().is_replayed());
    drop_schema.await.unwrap();
    assert_eq!(db.count("ledger").await, 1);

    for error in [
        idempotency.execute(&other, must_not_run).await.unwrap_err(),
        idempotency.claim(&other).await.map(drop).unwrap_err(),
        idempotency.find(other.scope(), other.key()).await.map(drop).unwrap_err(),
        idempotency.purge_expired(10).await.map(drop).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::NotMigrated, "{error}");
        assert!(!error.is_retryable(), "{error}");
    }
    // The same connection knows the statements of before.
    pgonce::migrate(&db.pool).await.unwrap();
    let outcome = idempotency.execute(&other, async |conn| charge(conn, 42).await).await.unwrap();
    assert!(!outcome.is_replayed());
    assert!(idempotency.execute(&other, must_not_run).await.unwrap().is_replayed());
}

/// What waits until nobody works on the table, and lets nobody in meanwhile. The last one is not as good as it should be
/// for those who have a snapshot already: to them, the table is empty afterwards.
const MAINTENANCE: [&str; 3] = [
    "VACUUM FULL pgonce.keys",
    "REINDEX TABLE pgonce.keys",
    "ALTER TABLE pgonce.keys ADD COLUMN IF NOT EXISTS note uuid DEFAULT gen_random_uuid()",
];

#[tokio::test]
async fn maintenance_of_the_table_waits_for_calls_and_blocks_calls_and_changes_no_outcome() {
    for maintenance in MAINTENANCE {
        let db = Database::new().await;
        for isolation in LEVELS {
            let case = format!("{isolation:?}, {maintenance}");
            let idempotency = Idempotency::new(db.pool_of(8))
                .with_isolation(isolation)
                .with_in_flight(InFlight::Wait(Duration::from_secs(60)));
            let operation = |name: &str| Operation::new(scope(), key(&format!("{isolation:?}/{name}")));
            let (done, expired) = (operation("done"), operation("expired").with_retention(Duration::ZERO));
            let charged = async |operation: &Operation| {
                idempotency.execute(operation, async |conn| charge(conn, 1).await).await.unwrap().into_inner()
            };
            let (done_id, _) = (charged(&done).await, charged(&expired).await);
            let ledger = db.count("ledger").await;

            let first = running(&idempotency, operation("first")).await;
            let work = start(&db.pool, maintenance);
            wait_until_locked_out(&db, 1).await;
            let calls = [done, operation("first"), expired, operation("new")].map(|operation| {
                let idempotency = idempotency.clone();
                tokio::spawn(async move {
                    idempotency.execute(&operation, async |conn| charge(conn, 1).await).await
                })
            });
            wait_until_locked_out(&db, 5).await;
            first.go_on.send(()).unwrap();
            let first_id = first.call.await.unwrap().expect(&case).into_inner();
            work.await.unwrap();
            let mut outcomes = Vec::new();
            for call in calls {
                outcomes.push(call.await.unwrap().expect(&case));
            }
            assert_eq!(outcomes[0], Outcome::Replayed(done_id), "{case}");
            assert_eq!(outcomes[1], Outcome::Replayed(first_id), "{case}");
            assert!(!outcomes[2].is_replayed(), "{case}: it had expired");
            assert!(!outcomes[3].is_replayed(), "{case}: it was new");
            assert_eq!(db.count("ledger").await, ledger + 3, "{case}");
            assert_eq!(db.count("pgonce.keys WHERE state <> 'completed'").await, 0, "{case}");
            db.pool.execute("ALTER TABLE pgonce.keys DROP COLUMN IF EXISTS note").await.unwrap();
        }
    }
}
