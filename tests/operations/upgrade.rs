//! A rolling deploy: for some minutes two releases are at the same keys, and the migration runs meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use pgonce::{Error, ErrorKind, Idempotency, Operation, Outcome};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::sync::{Barrier, oneshot};
use tokio::task::JoinSet;

use crate::former::{Answer, Former, pay};
use crate::support::{Database, key, scope};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

async fn former(db: &Database) -> Former {
    // Where it should not wait, it does not wait for ever.
    let options = db.options().options([("lock_timeout", "20s")]);
    Former(PgConnection::connect_with(&options).await.unwrap())
}

fn order(n: usize) -> Operation {
    Operation::new(scope(), key(&format!("order-{n}"))).with_params(&n).unwrap()
}

async fn must_not_run(_: &mut PgConnection) -> Result<i64, Error> {
    panic!("must not run")
}

/// The current release's call, made again while the other one is at the key.
async fn current(idempotency: &Idempotency, operation: &Operation) -> i64 {
    loop {
        match idempotency.execute(operation, async |conn| pay(conn).await).await {
            Ok(outcome) => return outcome.into_inner(),
            Err(error) => assert_eq!(error.kind(), ErrorKind::InFlight, "{error}"),
        }
        tokio::task::yield_now().await;
    }
}

/// The former release's.
async fn formerly(former: &mut Former, operation: &Operation) -> i64 {
    loop {
        match former.execute(operation, DAY).await {
            Answer::Executed(charged) | Answer::Replayed(charged) => return charged,
            Answer::InFlight => tokio::task::yield_now().await,
            Answer::Mismatch => panic!("{operation:?}: the parameters are the same"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_releases_race_for_the_same_keys_and_each_is_executed_once() {
    const KEYS: usize = 150;
    let db = Database::new().await;
    // Three of each, and each key is begun by all of them at the same moment.
    let barrier = Arc::new(Barrier::new(6));
    let mut workers = JoinSet::new();
    for n in 0..6 {
        let barrier = Arc::clone(&barrier);
        let (mut former, idempotency) = (former(&db).await, Idempotency::new(db.pool_of(1)));
        workers.spawn(async move {
            let mut told = Vec::new();
            for order in (0..KEYS).map(order) {
                barrier.wait().await;
                told.push(match n % 2 {
                    0 => formerly(&mut former, &order).await,
                    _ => current(&idempotency, &order).await,
                });
            }
            told
        });
    }
    let told = workers.join_all().await;
    for other in &told {
        assert_eq!(other, &told[0], "each call of a key gets the same charge");
    }
    assert_eq!(db.count("ledger").await, KEYS as i64);
    assert_eq!(db.count("pgonce.keys WHERE state = 'completed'").await, KEYS as i64);
}

#[tokio::test]
async fn each_release_understands_what_the_other_has_left() {
    let db = Database::new().await;
    let (mut former, idempotency) = (former(&db).await, db.idempotency());
    let expires = order(0).with_retention(Duration::ZERO);
    let other = |n| order(n).with_params(&"others").unwrap();

    // Results, in both directions, and the refusal of other parameters.
    let Answer::Executed(charged) = former.execute(&order(1), DAY).await else { panic!() };
    assert_eq!(idempotency.execute(&order(1), must_not_run).await.unwrap(), Outcome::Replayed(charged));
    let error = idempotency.execute(&other(1), must_not_run).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FingerprintMismatch);
    let charged = idempotency.execute(&order(2), async |conn| pay(conn).await).await.unwrap().into_inner();
    assert_eq!(former.execute(&order(2), DAY).await, Answer::Replayed(charged));
    assert_eq!(former.execute(&other(2), DAY).await, Answer::Mismatch);

    // Takeovers of what has expired.
    former.execute(&expires, Duration::ZERO).await;
    let taken = idempotency.execute(&expires, async |conn| pay(conn).await).await.unwrap();
    assert!(!taken.is_replayed());
    assert!(matches!(former.execute(&expires, Duration::ZERO).await, Answer::Executed(_)));

    // Each sees that the other is in flight.
    let claim = idempotency.claim(&order(3)).await.unwrap();
    assert_eq!(former.execute(&order(3), DAY).await, Answer::InFlight);
    drop(claim);

    // Messages, alone and in a batch; how the former release looks for a lost COMMIT; and both purges.
    let inbox = idempotency.inbox(pgonce::Scope::new("consumer").unwrap());
    let message = |n: usize| Operation::new(inbox.consumer().clone(), key(&format!("evt-{n}")));
    assert!(former.process(&message(1), DAY).await);
    assert!(inbox.process("evt-1", async |conn| pay(conn).await).await.unwrap().is_duplicate());
    assert!(!inbox.process("evt-2", async |conn| pay(conn).await).await.unwrap().is_duplicate());
    assert!(!former.process(&message(2), DAY).await);
    let batch = [1, 2, 3].map(|n| pgonce::Message::new(message(n).key().clone()));
    let report = inbox
        .process_batch(&batch, async |conn, fresh| {
            assert_eq!(fresh.len(), 1);
            pay(conn).await
        })
        .await
        .unwrap();
    assert!(report.messages.iter().all(pgonce::Handled::is_committed));
    assert!(!former.process(&message(3), DAY).await);
    let record = idempotency.find(&scope(), order(2).key()).await.unwrap().unwrap();
    assert!(former.confirm(&order(2), record.attempt()).await);
    assert!(!former.confirm(&order(2), uuid::Uuid::new_v4()).await);

    assert_eq!(former.purge(10).await, 1);
    former.execute(&expires, Duration::ZERO).await;
    assert_eq!(idempotency.purge_expired(10).await.unwrap(), 1);
    assert_eq!(db.count("ledger").await, 9);
}

/// The schema as this version left it, with the bookkeeping of `pgonce::migrate`.
async fn step_back_to(version: i64, pool: &PgPool) {
    for migration in pgonce::MIGRATIONS.iter().rev().filter(|migration| migration.version > version) {
        sqlx::raw_sql(AssertSqlSafe(format!(
            "BEGIN; {}; DELETE FROM pgonce._sqlx_migrations WHERE version = {}; COMMIT",
            migration.down, migration.version
        )))
        .execute(pool)
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_under_load_fails_no_call_and_none_runs_twice() {
    for version in 1..pgonce::MIGRATIONS.len() as i64 {
        let db = Database::new().await;
        step_back_to(version, &db.pool).await;
        let idempotency = Idempotency::new(db.pool_of(8));

        // A call that is inside of its closure until it is told to go on.
        let (entered, is_inside) = oneshot::channel();
        let (go_on, told) = oneshot::channel::<()>();
        let long = tokio::spawn({
            let idempotency = idempotency.clone();
            async move {
                let long = Operation::new(scope(), key("long"));
                idempotency
                    .execute_once(&long, async |conn| {
                        let paid = pay(conn).await?;
                        entered.send(()).unwrap();
                        told.await.unwrap();
                        Ok::<_, Error>(paid)
                    })
                    .await
            }
        });
        is_inside.await.unwrap();

        // Clients of both releases that go on and on; each key is called by one of each.
        let stop = Arc::new(AtomicBool::new(false));
        let mut clients = JoinSet::new();
        for client in 0..4 {
            let (stop, idempotency, mut former) = (Arc::clone(&stop), idempotency.clone(), former(&db).await);
            clients.spawn(async move {
                for call in 0.. {
                    let order = Operation::new(scope(), key(&format!("{}/{call}", client / 2)));
                    match client % 2 {
                        0 => formerly(&mut former, &order).await,
                        _ => current(&idempotency, &order).await,
                    };
                    if stop.load(SeqCst) {
                        break;
                    }
                }
            });
        }
        let paid = async |more: i64| {
            let enough = db.count("ledger").await + more;
            while db.count("ledger").await < enough {
                tokio::task::yield_now().await;
            }
        };
        paid(20).await;
        let migrate = tokio::spawn({
            let pool = db.pool.clone();
            async move { pgonce::migrate(&pool).await }
        });
        // It is done, or waits for the long call.
        while !migrate.is_finished() && db.count(WAITING_MIGRATION).await == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(
            migrate.is_finished(),
            version >= 6,
            "from version {version}: migrations 2, 4 and 6 wait for running calls, and no other"
        );
        go_on.send(()).unwrap();
        migrate.await.unwrap().unwrap();
        paid(20).await;
        stop.store(true, SeqCst);
        clients.join_all().await;
        assert!(!long.await.unwrap().unwrap().is_replayed());

        pgonce::verify(&db.pool).await.unwrap();
        let torn = "ledger FULL JOIN pgonce.keys ON convert_from(result, 'UTF8') = id::text
                    WHERE id IS NULL OR key IS NULL OR state <> 'completed'";
        assert_eq!(db.count(torn).await, 0, "from version {version}");
    }
}

const WAITING_MIGRATION: &str = "pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '-- pgonce, schema version%'";
