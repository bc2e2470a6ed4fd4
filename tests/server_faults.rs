//! The server ends a session, or cancels its statement, at each step of a call: nothing is half done, the caller hears
//! the truth, and the next call works.

mod support;

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use pgonce::{Claim, Error, ErrorKind, Idempotency, InFlight, Operation};
use sqlx::{AssertSqlSafe, Executor, PgPool};
use support::{Database, charge, key, operation, scope};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Fresh,
    /// Of a key that has expired.
    TakeOver,
    /// Of a failure, in a savepoint.
    Recorded,
    /// `execute_once`.
    Once,
    /// `claim` and `complete`.
    Claimed,
    /// `execute_in`, in a transaction with a write of the caller's.
    Joined,
}

/// What another session does to the call's.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Terminate,
    Cancel,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// Between two statements: before the server gets the one with this text.
    Before(&'static str),
    /// While a statement runs: a trigger at this place holds it up.
    During(&'static str),
}

use Call::*;
use Fault::*;
use Step::*;

const BEGIN: Step = Before("BEGIN ISOLATION");
const CLAIM: Step = Before("INSERT INTO pgonce.keys (scope");
const LOOK: Step = Before("LEFT JOIN pgonce.keys");
const TAKE_OVER: Step = Before("SET fingerprint = $3");
const SAVEPOINT: Step = Before("SAVEPOINT pgonce");
const CLOSURE: Step = Before("INSERT INTO ledger");
const UNDO: Step = Before("ROLLBACK TO SAVEPOINT pgonce");
const FINISH: Step = Before("unfinished = NULL, result = $");
const RELEASE: Step = Before("RELEASE SAVEPOINT pgonce");
const COMMIT: Step = Before("COMMIT\0");

const IN_CLAIM: Step = During("TRIGGER fault BEFORE INSERT ON pgonce.keys FOR EACH ROW");
const IN_TAKE_OVER: Step =
    During("TRIGGER fault BEFORE UPDATE ON pgonce.keys FOR EACH ROW WHEN (NEW.state = 'pending')");
const IN_CLOSURE: Step = During("TRIGGER fault BEFORE INSERT ON ledger FOR EACH ROW");
const IN_FINISH: Step =
    During("TRIGGER fault BEFORE UPDATE ON pgonce.keys FOR EACH ROW WHEN (NEW.state <> 'pending')");
const IN_COMMIT: Step = During(
    "CONSTRAINT TRIGGER fault AFTER INSERT OR UPDATE ON pgonce.keys DEFERRABLE INITIALLY DEFERRED FOR EACH ROW",
);

impl Call {
    fn steps(self) -> &'static [Step] {
        match self {
            Fresh => &[BEGIN, CLAIM, IN_CLAIM, CLOSURE, IN_CLOSURE, FINISH, IN_FINISH, COMMIT, IN_COMMIT],
            TakeOver => &[LOOK, TAKE_OVER, IN_TAKE_OVER, CLOSURE, FINISH, IN_FINISH, COMMIT, IN_COMMIT],
            Recorded => &[SAVEPOINT, IN_CLOSURE, UNDO, FINISH, IN_FINISH, COMMIT, IN_COMMIT],
            Once | Claimed => &[CLOSURE, FINISH, COMMIT, IN_COMMIT],
            Joined => &[
                SAVEPOINT, CLAIM, IN_CLAIM, CLOSURE, IN_CLOSURE, FINISH, IN_FINISH, RELEASE, COMMIT,
                IN_COMMIT,
            ],
        }
    }

    /// Calls, and says whether it was replayed. `charge` writes into the ledger; a recorded failure leaves nothing there.
    async fn make(
        self,
        idempotency: &Idempotency,
        operation: &Operation,
        runs: &AtomicU32,
    ) -> Result<bool, Error> {
        let closure = async |conn: &mut _| {
            runs.fetch_add(1, SeqCst);
            charge(conn, 1).await
        };
        let closure = &closure;
        match self {
            Fresh | TakeOver => {
                let call = idempotency.execute(operation, async |conn| closure(conn).await);
                call.await.map(|outcome| outcome.is_replayed())
            }
            Recorded => {
                let call = idempotency.execute_recording(operation, async |conn| {
                    closure(conn).await?;
                    Ok::<Result<(), String>, Error>(Err("declined".into()))
                });
                call.await.map(|outcome| outcome.is_replayed())
            }
            Once => {
                let call = idempotency.execute_once(operation, async |conn| closure(conn).await);
                call.await.map(|outcome| outcome.is_replayed())
            }
            Claimed => {
                let Claim::Claimed(mut claimed) = idempotency.claim(operation).await? else {
                    return Ok(true);
                };
                let id = closure(&mut claimed).await?;
                claimed.complete(&id).await.map(|()| false)
            }
            Joined => {
                let mut transaction = idempotency.pool().begin().await?;
                transaction.execute("INSERT INTO notes VALUES ('by the caller')").await?;
                let outcome = idempotency
                    .execute_in(&mut transaction, operation, async |conn| closure(conn).await)
                    .await;
                // Whatever became of the operation, the caller goes on.
                let committed = transaction.commit().await;
                let outcome = outcome?;
                committed?;
                Ok(outcome.is_replayed())
            }
        }
    }
}

/// All that can be seen of the operation.
#[derive(Debug, PartialEq)]
struct Traces {
    ledger: i64,
    money: i64,
    notes: i64,
    /// State and attempt.
    key: Option<(String, uuid::Uuid)>,
}

async fn traces(db: &Database, operation: &Operation) -> Traces {
    let row = sqlx::query_as("SELECT state, attempt FROM pgonce.keys WHERE key = $1")
        .bind(operation.key().as_str());
    Traces {
        ledger: db.count("ledger").await,
        money: db.balance("bob").await,
        notes: db.count("notes").await,
        key: row.fetch_optional(&db.pool).await.unwrap(),
    }
}

/// The session that the fault is for is the only one of this name.
async fn inflict(control: &PgPool, fault: Fault) {
    let function = match fault {
        // Returns when it is gone.
        Terminate => "pg_terminate_backend(pid, 10000)",
        Cancel => "pg_cancel_backend(pid)",
    };
    let sql = format!(
        "SELECT count(*) FROM (SELECT {function} AS hit FROM pg_stat_activity
         WHERE datname = current_database() AND application_name = 'victim') AS sessions WHERE hit"
    );
    let hit: i64 = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(control).await.unwrap();
    assert_eq!(hit, 1, "{fault:?}");
}

/// Calls once, with the fault at this step of its first attempt.
async fn call_with_fault(
    db: &Database,
    call: Call,
    fault: Fault,
    step: Step,
    operation: &Operation,
    runs: &AtomicU32,
) -> (Idempotency, Result<bool, Error>) {
    let (text, pause) = match step {
        Before(text) => (text, None),
        During(trigger) => ("no statement has this text", Some(trigger)),
    };
    let hit = Arc::new(AtomicBool::new(false));
    let gate = {
        let (hit, control) = (hit.clone(), db.pool.clone());
        move || {
            let (hit, control) = (hit.clone(), control.clone());
            async move {
                if !hit.swap(true, SeqCst) {
                    inflict(&control, fault).await;
                }
            }
        }
    };
    // That of an earlier call goes by itself.
    db.wait_until(
        "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
         AND application_name = 'victim')",
    )
    .await;
    let pool = db.gated_pool(text, gate.clone()).await;
    pool.set_connect_options((*pool.connect_options()).clone().application_name("victim"));
    // The server says no to a COMMIT before it has given the key's lock back.
    let idempotency = Idempotency::new(pool).with_in_flight(InFlight::Wait(Duration::from_secs(30)));
    let outcome = match pause {
        None => call.make(&idempotency, operation, runs).await,
        Some(trigger) => {
            let create =
                format!("ALTER SEQUENCE paused RESTART; CREATE {trigger} EXECUTE FUNCTION pause_once()");
            db.pool.execute(AssertSqlSafe(create)).await.unwrap();
            let strike = async {
                db.wait_until(
                    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
                     AND application_name = 'victim' AND wait_event = 'PgSleep')",
                )
                .await;
                gate().await;
            };
            let (outcome, ()) = tokio::join!(call.make(&idempotency, operation, runs), strike);
            let table = if trigger.contains("ON ledger") { "ledger" } else { "pgonce.keys" };
            db.pool.execute(AssertSqlSafe(format!("DROP TRIGGER fault ON {table}"))).await.unwrap();
            outcome
        }
    };
    assert!(hit.load(SeqCst), "the call does not pass {step:?}");
    (idempotency, outcome)
}

/// A database in which a statement can be held up, once.
async fn database() -> Database {
    let db = Database::new().await;
    sqlx::raw_sql(
        "CREATE TABLE notes (note text);
         CREATE SEQUENCE paused;
         CREATE FUNCTION pause_once() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF nextval('paused') = 1 THEN PERFORM pg_sleep(300); END IF;
             RETURN NEW;
         END $$",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    db
}

async fn sweep(call: Call, fault: Fault) {
    let db = database().await;
    for (n, &step) in call.steps().iter().enumerate() {
        let case = format!("{call:?}, {fault:?} {step:?}");
        let operation = Operation::new(scope(), key(&format!("{call:?}/{fault:?}/{n}")));
        if call == TakeOver {
            let expires = db.idempotency().with_retention(Duration::ZERO);
            expires.execute(&operation, async |_| Ok::<_, Error>(0_i64)).await.unwrap();
        }
        let before = traces(&db, &operation).await;
        let runs = AtomicU32::new(0);
        let (idempotency, outcome) = call_with_fault(&db, call, fault, step, &operation, &runs).await;
        let after = traces(&db, &operation).await;
        let runs = runs.into_inner();

        let at_commit = matches!(step, COMMIT | IN_COMMIT);
        let survives = match (fault, step) {
            // A session that is idle has nothing to cancel.
            (Cancel, Before(_)) => {
                assert_eq!(runs, 1, "{case}");
                true
            }
            // What was unknown is proven not to have been committed, so it is run again.
            (Terminate, _) if at_commit && matches!(call, Fresh | TakeOver | Recorded) => {
                assert_eq!(runs, 2, "{case}");
                true
            }
            _ => false,
        };
        let charges = i64::from(survives && call != Recorded);
        assert_eq!(after.ledger, before.ledger + charges, "{case}");
        assert_eq!(after.money, before.money + charges, "{case}");
        if survives {
            assert!(!outcome.unwrap_or_else(|error| panic!("{case}: {error}")), "{case}");
            assert_ne!(after.key, before.key, "{case}");
        } else {
            let error = outcome.expect_err(&case);
            assert_eq!(error.kind(), ErrorKind::Database, "{case}: {error}");
            assert!(error.is_retryable(), "{case}: {error}");
            assert_eq!(after.key, before.key, "{case}: nothing is left, and nothing is lost");
            assert!(runs <= 1, "{case}: nothing is to be repeated");
        }
        // The caller's own write is lost with its session only, or when its COMMIT was refused.
        let noted = call == Joined && (survives || (fault == Cancel && !at_commit));
        assert_eq!(after.notes, before.notes + i64::from(noted), "{case}");

        // And again, through the only slot of the same pool: a new key's row is in its place, or the result is.
        let again = call.make(&idempotency, &operation, &AtomicU32::new(0)).await;
        assert_eq!(again.unwrap_or_else(|error| panic!("{case}: {error}")), survives, "{case}");
        let last = traces(&db, &operation).await;
        assert_eq!(last.ledger, before.ledger + i64::from(call != Recorded), "{case}");
        let expected = if call == Recorded { "failed" } else { "completed" };
        assert_eq!(last.key.expect("a key").0, expected, "{case}");
    }
}

#[tokio::test]
async fn a_fresh_call_whose_session_is_terminated_at_any_step() {
    sweep(Fresh, Terminate).await;
}

#[tokio::test]
async fn a_takeover_whose_session_is_terminated_at_any_step() {
    sweep(TakeOver, Terminate).await;
}

#[tokio::test]
async fn a_recorded_failure_whose_session_is_terminated_at_any_step() {
    sweep(Recorded, Terminate).await;
}

#[tokio::test]
async fn a_call_that_repeats_nothing_whose_session_is_terminated_at_any_step() {
    sweep(Once, Terminate).await;
    sweep(Claimed, Terminate).await;
}

#[tokio::test]
async fn a_joined_call_whose_session_is_terminated_at_any_step() {
    sweep(Joined, Terminate).await;
}

#[tokio::test]
async fn a_call_that_is_cancelled_at_any_step() {
    for call in [Fresh, TakeOver, Recorded, Claimed, Joined] {
        sweep(call, Cancel).await;
    }
}

#[tokio::test]
async fn a_session_that_is_terminated_at_every_commit_is_given_up_in_the_end() {
    let db = Database::new().await;
    sqlx::raw_sql(
        "CREATE FUNCTION end_session() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER fault AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION end_session()",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    for attempts in [1, 3] {
        let runs = AtomicU32::new(0);
        let idempotency = Idempotency::new(db.pool_of(1)).with_max_attempts(attempts);
        let error = Fresh.make(&idempotency, &operation(), &runs).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Database, "nothing is unknown about it: {error}");
        assert!(error.is_retryable(), "{error}");
        assert_eq!(runs.into_inner(), attempts);
        db.assert_untouched().await;
    }
}
