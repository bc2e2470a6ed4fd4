//! Migrations, applied while calls of two releases are running.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use pgonce::{Error, ErrorKind, Idempotency, Operation};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::former::{pay, pay_amount};
use crate::support::{Database, key, scope};
use crate::upgrade::{DAY, consumer, current, former, formerly, message};

/// The schema as this version left it, with the bookkeeping of `pgonce::migrate`.
pub async fn step_back_to(version: i64, pool: &PgPool) {
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
        // And consumers, each message delivered to both. The current release's only come when the schema is theirs.
        for _ in 0..if version < 2 { 0 } else { 2 } {
            let (stop, mut former) = (Arc::clone(&stop), former(&db).await);
            clients.spawn(async move {
                for n in FIRST.. {
                    former.process(&message(n), DAY, n as i64).await;
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
        let consumed = db.count("pgonce.keys WHERE scope = 'consumer'").await as usize;
        let inbox = idempotency.inbox(consumer());
        clients.spawn({
            let stop = Arc::clone(&stop);
            async move {
                let mut processed = 0;
                for n in FIRST + consumed.. {
                    let pay = async |conn: &mut PgConnection| pay_amount(conn, n as i64).await;
                    match inbox.process(message(n).key().clone(), pay).await {
                        Ok(delivery) => processed += usize::from(!delivery.is_duplicate()),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::InFlight, "{error}"),
                    }
                    if processed >= 5 && stop.load(SeqCst) {
                        break;
                    }
                }
            }
        });
        paid(40).await;
        stop.store(true, SeqCst);
        clients.join_all().await;
        assert!(!long.await.unwrap().unwrap().is_replayed());

        pgonce::verify(&db.pool).await.unwrap();
        for (torn, what) in [(TORN_OPERATIONS, "operations"), (TORN_MESSAGES, "messages")] {
            assert_eq!(db.count(torn).await, 0, "{what}, from version {version}");
        }
    }
}

/// The number of the first message, which is also its amount: no operation has such an amount.
const FIRST: usize = 1000;

const TORN_OPERATIONS: &str = "\
(SELECT * FROM ledger WHERE amount < 1000) AS ledger
FULL JOIN (SELECT * FROM pgonce.keys WHERE scope <> 'consumer') AS keys ON convert_from(result, 'UTF8') = id::text
WHERE id IS NULL OR key IS NULL OR state <> 'completed'";

const TORN_MESSAGES: &str = "\
(SELECT amount, count(*) AS times FROM ledger WHERE amount >= 1000 GROUP BY amount) AS ledger
FULL JOIN (SELECT * FROM pgonce.keys WHERE scope = 'consumer') AS keys ON key = 'evt-' || amount
WHERE amount IS NULL OR key IS NULL OR times > 1 OR state <> 'completed'";

/// All that a migration could have changed.
const SCHEMA: &str = "\
SELECT format('%s %s', classid::regclass, pg_describe_object(classid, objid, 0)) FROM pg_depend
WHERE refclassid = 'pg_namespace'::regclass AND refobjid = 'pgonce'::regnamespace
UNION ALL
SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'pgonce'::regnamespace
UNION ALL
SELECT format('%s %s %s', conname, convalidated, pg_get_constraintdef(oid)) FROM pg_constraint
WHERE conrelid = 'pgonce.keys'::regclass
UNION ALL
SELECT pg_get_triggerdef(oid) FROM pg_trigger WHERE tgrelid = 'pgonce.keys'::regclass
UNION ALL
SELECT format('%s %s', attname, attnotnull) FROM pg_attribute WHERE attrelid = 'pgonce.keys'::regclass
UNION ALL
SELECT format('applied %s %s', version, success) FROM pgonce._sqlx_migrations
ORDER BY 1";

/// Of each one that needs the table for itself; they wait at the same time, for as long as their `lock_timeout` says.
#[tokio::test]
async fn a_migration_that_does_not_get_its_lock_changes_nothing_and_can_be_run_again() {
    let migrations = [2, 4, 6].map(async |version| {
        let db = Database::new().await;
        step_back_to(version - 1, &db.pool).await;
        let schema = async || sqlx::query_scalar::<_, String>(SCHEMA).fetch_all(&db.pool).await.unwrap();
        let before = schema().await;
        let idempotency = db.idempotency();
        let long = idempotency.claim(&Operation::new(scope(), key("long"))).await.unwrap();

        let error = pgonce::migrate(&db.pool).await.unwrap_err();
        assert!(format!("{error:?}").contains("55P03"), "{version}: lock_not_available, not {error:?}");
        assert_eq!(schema().await, before, "{version}");
        // Nobody waits behind it any more, and the long call is as it was.
        let other = Operation::new(scope(), key("other"));
        assert!(!idempotency.execute(&other, async |conn| pay(conn).await).await.unwrap().is_replayed());
        let pgonce::Claim::Claimed(long) = long else { panic!("a new key") };
        long.complete(&1).await.unwrap();

        pgonce::migrate(&db.pool).await.unwrap();
        pgonce::verify(&db.pool).await.unwrap();
        assert_ne!(schema().await, before, "{version}");
    });
    futures_util::future::join_all(migrations).await;
}

const WAITING_MIGRATION: &str = "pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '-- pgonce, schema version%'";
