//! The server is restarted under load: everything that was acknowledged is there, and nothing is there twice.

mod support;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pgonce::{Error, ErrorKind, Idempotency, InFlight, Operation, Outcome};
use sqlx::{Connection, PgConnection};
use support::private::Bank;
use support::{charge, key, scope};
use throwaway_postgres::Settings;
use tokio::task::{JoinSet, block_in_place};

const WORKERS: usize = 6;
const CONNECTIONS: u32 = 8;

/// What the clients were told.
#[derive(Default)]
struct Told {
    /// Operation, ledger id, whether it was replayed.
    acknowledged: Mutex<Vec<(Operation, i64, bool)>>,
    /// Errors of the server's.
    failed: AtomicUsize,
    /// The keys of which somebody was told that it is unknown whether they were committed.
    unknown: Mutex<HashSet<String>>,
    stop: AtomicBool,
}

impl Told {
    fn acknowledged(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }
}

/// Makes the same call until it succeeds. An error that says that this is in vain is a failure of the test.
async fn persist(
    idempotency: &Idempotency,
    operation: &Operation,
    worker: usize,
    told: &Told,
) -> Outcome<i64> {
    loop {
        match idempotency.execute(operation, async |conn| pay(conn, worker).await).await {
            Ok(outcome) => return outcome,
            Err(error) => {
                assert!(error.is_retryable(), "{:?}: {error:?}", error.kind());
                if error.kind() == ErrorKind::CommitUnknown {
                    told.unknown.lock().unwrap().insert(operation.key().to_string());
                } else if error.kind() != ErrorKind::InFlight {
                    told.failed.fetch_add(1, SeqCst);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// From the worker's purse into its box, so that the workers do not wait for each other's rows.
async fn pay(conn: &mut PgConnection, worker: usize) -> Result<i64, Error> {
    for (account, change) in [(format!("purse {worker}"), -1_i64), (format!("box {worker}"), 1)] {
        sqlx::query("UPDATE accounts SET balance = balance + $2 WHERE id = $1")
            .bind(account)
            .bind(change)
            .execute(&mut *conn)
            .await?;
    }
    let insert = sqlx::query_scalar("INSERT INTO ledger (amount) VALUES (1) RETURNING id");
    Ok(insert.fetch_one(conn).await?)
}

/// Pays until it is told to stop; every second key is one that all workers use.
async fn work(idempotency: Idempotency, worker: usize, told: Arc<Told>) {
    for n in 0.. {
        if told.stop.load(SeqCst) {
            return;
        }
        let name = if n % 2 == 0 { format!("hot/{n}") } else { format!("cold/{worker}/{n}") };
        let operation = Operation::new(scope(), key(&name));
        let outcome = persist(&idempotency, &operation, worker, &told).await;
        let replayed = outcome.is_replayed();
        told.acknowledged.lock().unwrap().push((operation, outcome.into_inner(), replayed));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_restarts_in_the_middle_of_load() {
    const PURSE: i64 = 1_000_000;
    let mut bank = Bank::start(Settings::durable()).await;
    sqlx::query(
        "INSERT INTO accounts SELECT kind || ' ' || n, CASE kind WHEN 'purse' THEN $1 ELSE 0 END
         FROM generate_series(0, $2) AS n, unnest(ARRAY['purse', 'box']) AS kind",
    )
    .bind(PURSE)
    .bind(WORKERS as i32 - 1)
    .execute(&bank.pool)
    .await
    .unwrap();
    let idempotency = Idempotency::new(bank.pool_of(CONNECTIONS));
    let told = Arc::new(Told::default());
    let mut workers = JoinSet::new();
    for worker in 0..WORKERS {
        // Some duplicates wait, some are told.
        let wait = if worker % 2 == 0 { InFlight::Reject } else { InFlight::Wait(Duration::from_secs(30)) };
        workers.spawn(work(idempotency.clone().with_in_flight(wait), worker, told.clone()));
    }
    for fast in [true, false, false, true] {
        let (before, begin) = (told.acknowledged(), Instant::now());
        while told.acknowledged() < before + 60 {
            assert!(workers.try_join_next().is_none(), "a worker has given up");
            assert!(begin.elapsed() < Duration::from_secs(60), "no call gets through");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        block_in_place(|| {
            let server = &mut bank.server;
            if fast { server.stop_fast() } else { server.stop_immediately() }.unwrap();
            server.start_again().unwrap();
        });
    }
    told.stop.store(true, SeqCst);
    let last = tokio::time::timeout(Duration::from_secs(60), workers.join_all());
    last.await.expect("a call does not get through");
    assert!(told.failed.load(SeqCst) > 0, "no call has noticed a restart");

    // One row for one key, and no money came or went.
    bank.assert_whole().await;
    let executed = bank.number("SELECT count(*) FROM pgonce.keys").await;
    let paid = bank.number("SELECT sum(balance)::bigint FROM accounts WHERE id LIKE 'box %'").await;
    let left = bank.number("SELECT sum(balance)::bigint FROM accounts WHERE id LIKE 'purse %'").await;
    assert_eq!((paid, left), (executed, WORKERS as i64 * PURSE - executed));

    // All clients of a key were told the same, and one that it was the one; and they are told so for ever.
    let acknowledged = std::mem::take(&mut *told.acknowledged.lock().unwrap());
    let mut keys: HashMap<String, (i64, u32)> = HashMap::new();
    for (operation, id, replayed) in &acknowledged {
        let (first, executed) = keys.entry(operation.key().to_string()).or_insert((*id, 0));
        assert_eq!(first, id, "{operation:?}");
        *executed += u32::from(!replayed);
    }
    for (key, (_, executed)) in &keys {
        // Who was told that it is unknown asked again, and then it was a replay.
        let known = !told.unknown.lock().unwrap().contains(key);
        assert!(*executed == 1 || (*executed == 0 && !known), "{key}: {executed} were told so");
    }
    assert_eq!(keys.len() as i64, executed, "a key that nobody asked for");
    for (operation, id, _) in &acknowledged {
        let again =
            idempotency.execute(operation, async |_| -> Result<i64, Error> { panic!("must not run") }).await;
        assert_eq!(again.unwrap(), Outcome::Replayed(*id));
        let record = idempotency.find(operation.scope(), operation.key()).await.unwrap().unwrap();
        assert_eq!(record.result_bytes(), Some(id.to_string().as_bytes()));
    }

    // The pool has all its connections again, and none is in a transaction.
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut conn = idempotency.pool().acquire().await.unwrap();
        sqlx::query("SELECT 1").execute(&mut *conn).await.unwrap();
        assert!(!conn.is_in_transaction());
        connections.push(conn);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_synchronous_commit_key_and_business_row_are_lost_together() {
    // Nothing but a full buffer, or the WAL writer every ten seconds, brings what was committed to the disk.
    let settings = Settings::fast().with("synchronous_commit", "off").with("wal_writer_delay", "10s");
    let mut bank = Bank::start(settings).await;
    sqlx::raw_sql("CHECKPOINT").execute(&bank.pool).await.unwrap();
    let mut acknowledged = Vec::new();
    let mut lost = 0;
    for round in 0..20 {
        let idempotency = Idempotency::new(bank.pool_of(1));
        for n in 0..5 {
            let operation = Operation::new(scope(), key(&format!("{round}/{n}")));
            let first = idempotency.execute(&operation, async |conn| charge(conn, 1).await).await.unwrap();
            assert!(!first.is_replayed());
            acknowledged.push(operation);
        }
        block_in_place(|| {
            bank.server.stop_immediately().unwrap();
            bank.server.start_again().unwrap();
        });
        bank.pool = bank.pool_of(2);
        let there = bank.number("SELECT count(*) FROM pgonce.keys").await;
        lost = acknowledged.len() as i64 - there;
        bank.assert_whole().await;
        assert_eq!(bank.number("SELECT balance FROM accounts WHERE id = 'bob'").await, there);
        if lost > 0 {
            break;
        }
    }
    assert!(lost > 0, "nothing was lost, so nothing is proven");

    // The same calls again: what was lost is executed, what was kept is replayed.
    let idempotency = Idempotency::new(bank.pool.clone());
    let mut executed = 0;
    for operation in &acknowledged {
        for _ in 0..2 {
            let again = idempotency.execute(operation, async |conn| charge(conn, 1).await).await.unwrap();
            executed += i64::from(!again.is_replayed());
        }
    }
    assert_eq!(executed, lost);
    bank.assert_whole().await;
    assert_eq!(bank.number("SELECT balance FROM accounts WHERE id = 'bob'").await, acknowledged.len() as i64);
    assert_eq!(bank.number("SELECT count(*) FROM ledger").await, acknowledged.len() as i64);
}
