//! What is dropped, killed or restarted behind a PgBouncer in transaction mode leaves nothing half done.

#[path = "../../support/mod.rs"]
mod support;

use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::poll_fn;
use pgbouncer_tests::{PgBouncer, Program};
use pgonce::{Error, ErrorKind, Idempotency, InFlight, Operation, Outcome};
use sqlx::{ConnectOptions, PgConnection};
use support::{Database, charge, key, operation, scope};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

async fn start() -> (Database, PgBouncer, Idempotency) {
    let db = Database::new().await;
    let pgbouncer = PgBouncer::start(Program::New, &db.url(), &[("default_pool_size", "2")]).await;
    let idempotency =
        Idempotency::new(pgbouncer.pool(2)).with_in_flight(InFlight::Wait(Duration::from_secs(60)));
    (db, pgbouncer, idempotency)
}

#[tokio::test]
async fn a_call_that_is_dropped_leaves_no_transaction_and_no_key_behind() {
    let (db, pgbouncer, _) = start().await;
    let idempotency = Idempotency::new(db.forwarded_pool_to(&pgbouncer.options()).await)
        .with_in_flight(InFlight::Wait(Duration::from_secs(60)));
    for polls in 0.. {
        let operation = Operation::new(scope(), key(&format!("dropped/{polls}")));
        let call = idempotency.execute(&operation, async |conn| charge(conn, 1).await);
        let completed = poll_at_most(call, polls).await.is_some();

        // Nobody is in a transaction or waits, at the server.
        db.wait_until_idle().await;
        let keys = db.count("pgonce.keys").await;
        assert_eq!(db.count("ledger").await, keys, "torn after {polls} polls");
        assert_eq!(db.balance("bob").await, keys, "torn after {polls} polls");
        let again = idempotency.execute(&operation, async |conn| charge(conn, 1).await).await.unwrap();
        assert_eq!(again.is_replayed(), db.count("ledger").await == keys, "after {polls} polls");
        if completed {
            assert!(polls > 4, "{polls} polls cannot have been all await points");
            return;
        }
    }
}

#[tokio::test]
async fn a_statement_of_a_dropped_call_keeps_the_key_only_until_it_ends() {
    let (db, _pgbouncer, idempotency) = start().await;
    let mut barrier = Barrier::put_up(&db).await;
    let call = tokio::spawn({
        let idempotency = idempotency.clone();
        async move {
            let closure = async |conn: &mut PgConnection| {
                charge(conn, 42).await?;
                sqlx::query("SELECT wait_at_barrier()").execute(conn).await?;
                Ok::<_, Error>(())
            };
            idempotency.execute(&operation(), closure).await
        }
    });
    db.wait_until("SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted)").await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    let reject = idempotency.clone().with_in_flight(InFlight::Reject);
    let error = reject.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InFlight);
    barrier.take_down().await;
    idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    db.assert_charged_once().await;
}

#[tokio::test]
async fn a_killed_connection_to_the_server_or_a_killed_pgbouncer_leaves_nothing() {
    let (db, mut pgbouncer, idempotency) = start().await;
    for kill_pgbouncer in [false, true] {
        let go_on = Arc::new(Semaphore::new(0));
        let call = spawn_charge(&idempotency, Some(go_on.clone()));
        // The call is between two statements.
        db.wait_until(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE state = 'idle in transaction'
             AND datname = current_database() AND query LIKE 'INSERT INTO ledger%')",
        )
        .await;
        if kill_pgbouncer {
            pgbouncer.kill();
        } else {
            db.kill_open_transactions().await;
        }
        go_on.add_permits(1);
        let error = call.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Database, "{error}");
        assert!(error.is_retryable(), "{error}");
        db.wait_until_idle().await;
        db.assert_untouched().await;
        if kill_pgbouncer {
            pgbouncer.start_again().await;
        }
    }
    // The same pool goes on.
    idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    db.assert_charged_once().await;
}

#[tokio::test]
async fn a_pool_survives_a_restart_of_pgbouncer() {
    let (db, mut pgbouncer, idempotency) = start().await;
    let first = idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    for _ in 0..3 {
        pgbouncer.kill();
        pgbouncer.start_again().await;
        let again = idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
        assert_eq!(again, Outcome::Replayed(*first.as_ref().into_inner()));
    }
    db.assert_charged_once().await;
}

/// Who is killed while the server works on the COMMIT, and whether the COMMIT then takes effect.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Killed {
    PgBouncerAlone,
    PgBouncerAndBackend,
    BackendAlone,
}

#[tokio::test]
async fn what_became_of_a_commit_whose_answer_is_lost_is_found_out() {
    for killed in [Killed::PgBouncerAlone, Killed::PgBouncerAndBackend, Killed::BackendAlone] {
        let (db, mut pgbouncer, idempotency) = start().await;
        let mut barrier = Barrier::put_up(&db).await;
        sqlx::raw_sql(
            "CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION wait_at_barrier_as_trigger()",
        )
        .execute(&db.pool)
        .await
        .unwrap();
        let call = spawn_charge(&idempotency, None);
        db.wait_until("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE query = 'COMMIT' AND wait_event = 'advisory' AND datname = current_database())").await;
        if killed != Killed::BackendAlone {
            pgbouncer.kill();
        }
        if killed != Killed::PgBouncerAlone {
            sqlx::raw_sql("SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity WHERE query = 'COMMIT' AND wait_event = 'advisory' AND datname = current_database()")
                .execute(&db.pool)
                .await
                .unwrap();
        }
        barrier.take_down().await;
        if killed != Killed::BackendAlone {
            pgbouncer.start_again().await;
        }

        let outcome = call.await.unwrap().unwrap_or_else(|error| panic!("{killed:?}: {error}"));
        assert!(!outcome.is_replayed(), "{killed:?}");
        let id = outcome.into_inner();
        // The ids of the runs that were rolled back are not given again.
        assert_eq!(id, if killed == Killed::PgBouncerAlone { 1 } else { 2 }, "{killed:?}: which run");
        let again = idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
        assert_eq!(again, Outcome::Replayed(id), "{killed:?}");
        db.assert_charged_once().await;
    }
}

/// Charges, then waits for the permit.
fn spawn_charge(
    idempotency: &Idempotency,
    go_on: Option<Arc<Semaphore>>,
) -> JoinHandle<Result<Outcome<i64>, Error>> {
    let idempotency = idempotency.clone();
    tokio::spawn(async move {
        let closure = async |conn: &mut PgConnection| {
            let id = charge(conn, 42).await?;
            if let Some(go_on) = &go_on {
                go_on.acquire().await.expect("open").forget();
                sqlx::query("SELECT 1").execute(conn).await?;
            }
            Ok(id)
        };
        idempotency.execute(&operation(), closure).await
    })
}

/// Something to wait for at the server, until the test takes it down.
struct Barrier(PgConnection);

impl Barrier {
    async fn put_up(db: &Database) -> Self {
        // Directly, since it is a lock of the session.
        let mut conn = db.options().connect().await.unwrap();
        sqlx::raw_sql(
            "SELECT pg_advisory_lock(1);
             CREATE FUNCTION wait_at_barrier() RETURNS void LANGUAGE sql AS
                 'SELECT pg_advisory_xact_lock_shared(1)';
             CREATE FUNCTION wait_at_barrier_as_trigger() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN PERFORM wait_at_barrier(); RETURN NULL; END'",
        )
        .execute(&mut conn)
        .await
        .unwrap();
        Self(conn)
    }

    async fn take_down(&mut self) {
        sqlx::raw_sql("SELECT pg_advisory_unlock(1)").execute(&mut self.0).await.unwrap();
    }
}

/// Polls the future as often as it is woken, but at most `polls` times, then drops it. None when it was dropped.
async fn poll_at_most<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}
