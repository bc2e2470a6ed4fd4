//! The server's own time-outs, set by whoever runs it: a call that meets one has done nothing, says so in time, and may
//! be made again.

mod support;

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use pgonce::{Error, ErrorKind, Idempotency};
use sqlx::Executor;
use sqlx::postgres::PgPoolOptions;
use support::{Database, charge, operation, sqlstate};

/// What takes too long.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Slow {
    /// The claim, behind a lock on pgonce's table.
    Claim,
    /// A statement of the closure, behind a lock on a row of its own.
    LockedRow,
    /// A statement of the closure.
    Statement,
    /// The closure, between two statements.
    Closure,
    /// Nothing that the call itself does.
    Nothing,
}

/// The time-out, which it is to be, and whether it ends the session.
struct Case {
    setting: &'static str,
    slow: Slow,
    code: &'static str,
    ends_session: bool,
}

const fn case(setting: &'static str, slow: Slow, code: &'static str, ends_session: bool) -> Case {
    Case { setting, slow, code, ends_session }
}

/// `statement_timeout` is not for COMMIT: the server disarms it before the deferred triggers run.
const CASES: [Case; 6] = [
    case("lock_timeout", Slow::Claim, "55P03", false),
    case("lock_timeout", Slow::LockedRow, "55P03", false),
    case("statement_timeout", Slow::Claim, "57014", false),
    case("statement_timeout", Slow::LockedRow, "57014", false),
    case("statement_timeout", Slow::Statement, "57014", false),
    case("idle_in_transaction_session_timeout", Slow::Closure, "25P03", true),
];

/// Only PostgreSQL 17 and later have it.
const TRANSACTION_TIMEOUT: [Case; 4] = [
    case("transaction_timeout", Slow::Claim, "25P04", true),
    case("transaction_timeout", Slow::LockedRow, "25P04", true),
    case("transaction_timeout", Slow::Statement, "25P04", true),
    case("transaction_timeout", Slow::Closure, "25P04", true),
];

const VICTIM_IS_THERE: &str = "SELECT EXISTS (SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'victim')";

/// One connection, with this time-out. It is long enough, as a rule, for all that is not meant to be slow.
fn idempotency(db: &Database, setting: &str) -> Idempotency {
    let options = db.options().application_name("victim").options([(setting, "250ms")]);
    Idempotency::new(PgPoolOptions::new().max_connections(1).connect_lazy_with(options))
}

async fn call(db: &Database, idempotency: &Idempotency, slow: Slow, runs: &AtomicU32) -> Result<i64, Error> {
    // Another's locks, for as long as the call lasts.
    let mut rival = db.pool.begin().await.unwrap();
    let lock = match slow {
        Slow::Claim => "LOCK TABLE pgonce.keys IN ACCESS EXCLUSIVE MODE",
        Slow::LockedRow => "SELECT FROM accounts WHERE id = 'alice' FOR UPDATE",
        _ => "SELECT 1",
    };
    rival.execute(lock).await.unwrap();
    let operation = operation();
    let call = idempotency.execute(&operation, async |conn| {
        runs.fetch_add(1, SeqCst);
        let id = charge(conn, 42).await?;
        match slow {
            Slow::Statement => {
                conn.execute("SELECT pg_sleep(300)").await?;
            }
            Slow::Closure => {
                while sqlx::query_scalar::<_, bool>(VICTIM_IS_THERE).fetch_one(&db.pool).await? {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            _ => {}
        }
        Ok::<_, Error>(id)
    });
    // Not a measurement of speed: without the time-out it would take five minutes.
    let outcome = tokio::time::timeout(Duration::from_secs(60), call).await.expect("no time-out");
    outcome.map(|outcome| outcome.into_inner())
}

/// Whether the server is recent enough for `transaction_timeout`.
async fn has_transaction_timeout(db: &Database) -> bool {
    let find = "SELECT EXISTS (SELECT FROM pg_settings WHERE name = 'transaction_timeout')";
    sqlx::query_scalar(find).fetch_one(&db.pool).await.unwrap()
}

#[tokio::test]
async fn every_timeout_leaves_nothing_and_may_be_retried() {
    let db = Database::new().await;
    let newer = has_transaction_timeout(&db).await;
    let cases = CASES.iter().chain(TRANSACTION_TIMEOUT.iter().filter(|_| newer));
    for &Case { setting, slow, code: expected, ends_session } in cases {
        let case = format!("{setting}, {slow:?}");
        let idempotency = idempotency(&db, setting);
        let runs = AtomicU32::new(0);
        let error = call(&db, &idempotency, slow, &runs).await.expect_err(&case);
        assert_eq!(error.kind(), ErrorKind::Database, "{case}: {error}");
        assert!(error.is_retryable(), "{case}: {error}");
        match sqlstate(&error) {
            Some(code) => assert_eq!(code, expected, "{case}: {error}"),
            // The connection was gone before the reason could be read.
            None => assert!(ends_session, "{case}: {error}"),
        }
        assert!(runs.into_inner() <= u32::from(slow != Slow::Claim), "{case}: run or repeated in vain");
        db.assert_untouched().await;

        // The same call again, through the only slot of the same pool. On a busy machine it may itself take too long.
        let operation = operation();
        let again = async || idempotency.execute(&operation, async |conn| charge(conn, 42).await).await;
        let mut outcome = again().await;
        for _ in 0..50 {
            if outcome.as_ref().is_err_and(Error::is_retryable) {
                outcome = again().await;
            }
        }
        assert!(!outcome.unwrap_or_else(|error| panic!("{case}: {error}")).is_replayed(), "{case}");
        db.assert_charged_once().await;
        let reset = "TRUNCATE pgonce.keys, ledger; UPDATE accounts SET balance = 1000 WHERE id = 'alice'";
        db.pool.execute(reset).await.unwrap();
    }
}

#[tokio::test]
async fn a_transaction_timeout_at_the_commit_is_resolved_by_running_again() {
    let db = Database::new().await;
    sqlx::raw_sql(
        "CREATE SEQUENCE paused;
         CREATE FUNCTION pause_once() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF nextval('paused') = 1 THEN PERFORM pg_sleep(300); END IF;
             RETURN NULL;
         END $$;
         CREATE CONSTRAINT TRIGGER pause AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION pause_once()",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    if !has_transaction_timeout(&db).await {
        // Then the server refuses the setting, and there is nothing to time out.
        let error =
            call(&db, &idempotency(&db, "transaction_timeout"), Slow::Nothing, &AtomicU32::new(0)).await;
        assert_eq!(sqlstate(&error.unwrap_err()).as_deref(), Some("42704"));
        return;
    }
    let runs = AtomicU32::new(0);
    let idempotency = idempotency(&db, "transaction_timeout");
    call(&db, &idempotency, Slow::Nothing, &runs).await.unwrap();
    assert_eq!(runs.into_inner(), 2, "the first was ended by the server before it was committed");
    db.assert_charged_once().await;
}
