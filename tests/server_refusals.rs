//! The server says no: real serialization failures and real deadlocks under each isolation level, and COMMITs that a
//! deferred constraint refuses. What conflicts is run again or handed back, what is wrong is not repeated.

mod support;

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use pgonce::{Claim, ClosureError, Error, ErrorKind, Idempotency, InFlight, Isolation, Operation};
use sqlx::{Executor, PgConnection, PgPool};
use support::private::Bank;
use support::{Database, charge, key, scope};
use throwaway_postgres::Settings;

const LEVELS: [(Isolation, &str); 3] = [
    (Isolation::ReadCommitted, "BEGIN ISOLATION LEVEL READ COMMITTED"),
    (Isolation::RepeatableRead, "BEGIN ISOLATION LEVEL REPEATABLE READ"),
    (Isolation::Serializable, "BEGIN ISOLATION LEVEL SERIALIZABLE"),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Execute,
    Recording,
    Once,
    Claimed,
    Joined,
}

/// What a rival does to the first attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rival {
    /// Waits for our row while we ask for its own.
    Deadlocks,
    /// Changes a row that we have seen, before we do.
    Updates,
    /// Writes what we have read and reads what we write: before we write, before the finish, before the COMMIT.
    SkewsWrite,
    SkewsFinish,
    SkewsCommit,
}

use Call::*;
use Rival::*;

const CALLS: [Call; 5] = [Execute, Recording, Once, Claimed, Joined];
const RIVALS: [Rival; 5] = [Deadlocks, Updates, SkewsWrite, SkewsFinish, SkewsCommit];

impl Rival {
    fn conflicts_under(self, isolation: Isolation) -> bool {
        match self {
            Deadlocks => true,
            Updates => isolation != Isolation::ReadCommitted,
            SkewsWrite | SkewsFinish | SkewsCommit => isolation == Isolation::Serializable,
        }
    }
}

/// The rival's transaction, from its begin to its commit.
async fn skew(pool: &PgPool) -> Result<(), sqlx::Error> {
    let mut rival = pool.begin_with("BEGIN ISOLATION LEVEL SERIALIZABLE").await?;
    rival.execute("SELECT count(*) FROM ledger").await?;
    rival.execute("INSERT INTO notes VALUES ('by the rival')").await?;
    rival.commit().await
}

/// Returns when the rival holds bob and waits for alice. It never becomes the victim itself.
async fn wait_for_our_row(db: &Database) -> Result<(), sqlx::Error> {
    let mut rival = db.pool.begin().await?;
    rival.execute("SET LOCAL deadlock_timeout = '1h'").await?;
    rival.execute("SELECT FROM accounts WHERE id = 'bob' FOR UPDATE").await?;
    tokio::spawn(async move {
        rival.execute("SELECT FROM accounts WHERE id = 'alice' FOR UPDATE").await?;
        rival.commit().await
    });
    db.wait_until(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')",
    )
    .await;
    Ok(())
}

async fn closure(
    db: &Database,
    conn: &mut PgConnection,
    rival: Rival,
    runs: &AtomicU32,
) -> Result<i64, Error> {
    let first = runs.fetch_add(1, SeqCst) == 0;
    conn.execute("SELECT count(*) FROM notes").await?;
    match rival {
        Deadlocks if first => {
            conn.execute("SET LOCAL deadlock_timeout = '1ms'").await?;
            conn.execute("SELECT FROM accounts WHERE id = 'alice' FOR UPDATE").await?;
            wait_for_our_row(db).await?;
        }
        Updates if first => {
            db.pool.execute("UPDATE accounts SET balance = balance WHERE id = 'alice'").await?;
        }
        SkewsWrite if first => skew(&db.pool).await?,
        _ => {}
    }
    let id = charge(conn, 1).await?;
    if first && rival == SkewsFinish {
        skew(&db.pool).await?;
    }
    Ok(id)
}

async fn make(
    db: &Database,
    call: Call,
    rival: Rival,
    idempotency: &Idempotency,
    begin: &'static str,
    operation: &Operation,
    runs: &AtomicU32,
) -> Result<(), Error> {
    match call {
        Execute => {
            let call = idempotency.execute(operation, async |conn| closure(db, conn, rival, runs).await);
            call.await.map(|outcome| assert!(!outcome.is_replayed()))
        }
        Recording => {
            let call = idempotency.execute_recording(operation, async |conn| {
                Ok::<Result<_, String>, Error>(Ok(closure(db, conn, rival, runs).await?))
            });
            call.await.map(|outcome| assert!(!outcome.is_replayed()))
        }
        Once => {
            let call = idempotency.execute_once(operation, async |conn| closure(db, conn, rival, runs).await);
            call.await.map(|outcome| assert!(!outcome.is_replayed()))
        }
        Claimed => {
            let Claim::Claimed(mut claimed) = idempotency.claim(operation).await? else { panic!("replayed") };
            let id = closure(db, &mut claimed, rival, runs).await?;
            claimed.complete(&id).await
        }
        Joined => {
            let mut transaction = idempotency.pool().begin_with(begin).await?;
            let call = idempotency
                .execute_in(&mut transaction, operation, async |conn| closure(db, conn, rival, runs).await);
            assert!(!call.await?.is_replayed());
            Ok(transaction.commit().await?)
        }
    }
}

#[tokio::test]
async fn every_conflict_under_every_level_is_repeated_or_handed_back() {
    let db = Database::new().await;
    db.pool.execute("CREATE TABLE notes (note text)").await.unwrap();
    let mut executed = 0;
    for (isolation, begin) in LEVELS {
        for rival in RIVALS {
            for call in CALLS {
                let case = format!("{call:?}, {rival:?}, {isolation:?}");
                let operation = Operation::new(scope(), key(&case.replace(' ', "_")));
                let runs = AtomicU32::new(0);
                let gate = {
                    let (pool, fires) = (db.pool.clone(), std::sync::Arc::new(AtomicU32::new(0)));
                    move || {
                        let (pool, fires) = (pool.clone(), fires.clone());
                        async move {
                            if rival == SkewsCommit && fires.fetch_add(1, SeqCst) == 0 {
                                skew(&pool).await.unwrap();
                            }
                        }
                    }
                };
                let pool = db.gated_pool("COMMIT\0", gate).await;
                // The server says no to a COMMIT before it has given the key's lock back.
                let wait = InFlight::Wait(Duration::from_secs(30));
                let idempotency = Idempotency::new(pool).with_isolation(isolation).with_in_flight(wait);
                let outcome = make(&db, call, rival, &idempotency, begin, &operation, &runs).await;

                let conflicts = rival.conflicts_under(isolation);
                let repeats = matches!(call, Execute | Recording);
                if conflicts && !repeats {
                    let error = outcome.expect_err(&case);
                    assert_eq!(error.kind(), ErrorKind::Database, "{case}: {error}");
                    assert!(error.is_retryable() && error.is_conflict(), "{case}: {error}");
                    assert_eq!(runs.load(SeqCst), 1, "{case}");
                    assert_eq!(db.count("ledger").await, executed, "{case}: something was left");
                    assert_eq!(db.count("pgonce.keys").await, executed, "{case}: a key was left");
                    // The caller's to repeat. There is no rival any more.
                    let again = make(&db, call, rival, &idempotency, begin, &operation, &runs).await;
                    again.unwrap_or_else(|error| panic!("{case}: {error}"));
                } else {
                    outcome.unwrap_or_else(|error| panic!("{case}: {error}"));
                }
                assert_eq!(runs.into_inner(), 1 + u32::from(conflicts), "{case}");
                executed += 1;
                assert_eq!(db.count("ledger").await, executed, "{case}");
                assert_eq!(db.balance("bob").await, executed, "{case}");
                assert_eq!(db.count("pgonce.keys WHERE state = 'completed'").await, executed, "{case}");
            }
        }
    }
}

#[tokio::test]
async fn a_key_that_was_committed_after_the_callers_snapshot_is_a_conflict_or_replayed() {
    let db = Database::new().await;
    for (isolation, begin) in LEVELS {
        let idempotency = db.idempotency();
        let operation = Operation::new(scope(), key(&format!("{isolation:?}")));
        let mut transaction = db.pool.begin_with(begin).await.unwrap();
        transaction.execute("SELECT count(*) FROM ledger").await.unwrap();
        let first = idempotency.execute(&operation, async |conn| charge(conn, 1).await).await.unwrap();
        let joined = async |conn: &mut PgConnection| -> Result<i64, Error> {
            panic!("must not run, the key is there: {conn:?}")
        };
        let outcome = idempotency.execute_in(&mut transaction, &operation, joined).await;
        if isolation == Isolation::ReadCommitted {
            assert_eq!(outcome.unwrap().into_inner(), *first.as_ref().into_inner(), "{isolation:?}");
            continue;
        }
        let error = outcome.unwrap_err();
        assert!(error.is_conflict() && error.is_retryable(), "{isolation:?}: {error}");
        transaction.rollback().await.unwrap();
        let mut transaction = db.pool.begin_with(begin).await.unwrap();
        let again = idempotency.execute_in(&mut transaction, &operation, joined).await.unwrap();
        assert!(again.is_replayed(), "{isolation:?}");
    }
}

/// What is refused at COMMIT, the SQLSTATE, and whether trying again may help.
const DEFERRED: [(&str, &str, bool); 6] = [
    (
        "ALTER TABLE ledger ADD CONSTRAINT refused FOREIGN KEY (id) REFERENCES vouchers DEFERRABLE INITIALLY DEFERRED",
        "23503",
        false,
    ),
    (
        "ALTER TABLE ledger ADD CONSTRAINT refused UNIQUE (amount) DEFERRABLE INITIALLY DEFERRED",
        "23505",
        false,
    ),
    ("SELECT refuse_at_commit('P0001')", "P0001", false),
    // These may pass, so the caller is told; only a conflict is repeated here.
    ("SELECT refuse_at_commit('53100')", "53100", true),
    ("SELECT refuse_at_commit('57014')", "57014", true),
    ("SELECT refuse_at_commit('25P03')", "25P03", true),
];

#[tokio::test]
async fn a_commit_that_a_deferred_constraint_refuses_leaves_nothing_and_is_not_repeated() {
    let db = Database::new().await;
    sqlx::raw_sql(
        "CREATE TABLE vouchers (id bigint PRIMARY KEY);
         CREATE TABLE notes (note text);
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = TG_ARGV[0]; END $$;
         CREATE FUNCTION refuse_at_commit(code text) RETURNS void LANGUAGE plpgsql AS $$
         BEGIN
             EXECUTE format('CREATE CONSTRAINT TRIGGER refused AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED
                             FOR EACH ROW EXECUTE FUNCTION refuse(%L)', code);
         END $$;
         INSERT INTO ledger (amount) VALUES (1); INSERT INTO vouchers VALUES (1)",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    for (refusal, code, retryable) in DEFERRED {
        db.pool.execute(refusal).await.unwrap();
        for call in CALLS {
            let case = format!("{code}, {call:?}");
            let operation = Operation::new(scope(), key(&format!("{code}/{call:?}")));
            let idempotency = Idempotency::new(db.pool_of(1));
            let runs = AtomicU32::new(0);
            // Without a rival, since there is no gate.
            let made = make(&db, call, SkewsCommit, &idempotency, LEVELS[0].1, &operation, &runs).await;
            let error = made.expect_err(&case);
            assert_eq!(error.kind(), ErrorKind::Database, "{case}: {error}");
            assert!(error.to_string().contains(code), "{case}: {error}");
            assert_eq!(error.is_retryable(), retryable, "{case}: {error}");
            assert_eq!(runs.into_inner(), 1, "{case}");
            assert_eq!(db.count("ledger").await, 1, "{case}");
            assert_eq!(db.count("pgonce.keys WHERE state <> 'failed'").await, 0, "{case}");
            assert_eq!(db.balance("alice").await, 1000, "{case}");
        }
        // The writes of a recorded failure are undone, and with them what the constraint was about.
        let operation = Operation::new(scope(), key(code));
        let failed = db
            .idempotency()
            .execute_recording(&operation, async |conn| {
                charge(conn, 1).await?;
                Ok::<Result<(), String>, Error>(Err("declined".into()))
            })
            .await;
        assert!(!failed.unwrap().is_replayed(), "{code}");
        sqlx::raw_sql(
            "DROP TRIGGER IF EXISTS refused ON ledger; ALTER TABLE ledger DROP CONSTRAINT IF EXISTS refused",
        )
        .execute(&db.pool)
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn a_key_whose_commit_was_refused_is_free_when_the_caller_hears_of_it() {
    let bank = Bank::start(Settings::fast().with("max_locks_per_transaction", "2000")).await;
    bank.pool
        .execute(
            "ALTER TABLE ledger ADD CONSTRAINT amounts_differ UNIQUE (amount) DEFERRABLE INITIALLY DEFERRED",
        )
        .await
        .unwrap();
    let idempotency = Idempotency::new(bank.pool_of(4));
    let first = Operation::new(scope(), key("first"));
    idempotency.execute(&first, async |conn| charge(conn, 1).await).await.unwrap();
    for round in 0..3 {
        let operation = Operation::new(scope(), key(&format!("refused-{round}")));
        let refused = idempotency
            .execute(&operation, async |conn| {
                charge(conn, 1).await?;
                // The server says no, and then lets go of the locks, which takes it a while.
                conn.execute("SELECT pg_advisory_xact_lock(id) FROM generate_series(1, 100000) AS id")
                    .await?;
                Ok::<_, Error>(())
            })
            .await;
        assert_eq!(support::sqlstate(&refused.unwrap_err()).as_deref(), Some("23505"));
        let again = idempotency.claim(&operation).await;
        assert!(matches!(again, Ok(Claim::Claimed(_))), "round {round}: {again:?}");
    }
}
