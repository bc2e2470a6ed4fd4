//! A message that makes its batch fail.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use pgonce::{BatchReport, Error, ErrorKind, Handled, Inbox, Message, Poison};
use sqlx::{Executor, PgConnection};

use super::scene::{apply, assert_untouched, assert_whole, ids, inbox, ledger, messages, process, word};
use super::support::{Database, key};

const BOTH: [Poison; 2] = [Poison::Halve, Poison::OneByOne];

/// What the closure meets.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("cannot read message {0}")]
    Unreadable(i64),
    #[error(transparent)]
    Pgonce(#[from] Error),
}

#[rustfmt::skip]
impl pgonce::ClosureError for Trouble { fn as_error(&self) -> &(dyn std::error::Error + 'static) { self } }

/// Applies the batch, but for those with a bad amount. Counts the runs.
async fn apply_unless(
    inbox: &Inbox,
    batch: &[Message<i64>],
    bad: impl Fn(i64) -> bool + Clone + Send + Sync,
    runs: &AtomicUsize,
) -> Result<BatchReport<(), Trouble>, Trouble> {
    inbox
        .process_batch(batch, async |conn: &mut PgConnection, fresh: &[&Message<i64>]| {
            runs.fetch_add(1, SeqCst);
            apply(conn, fresh).await?;
            match fresh.iter().find(|message| bad(*message.body())) {
                Some(message) => Err(Trouble::Unreadable(*message.body())),
                None => Ok(()),
            }
        })
        .await
}

#[tokio::test]
async fn by_default_the_batch_fails() {
    let db = Database::new().await;
    let runs = AtomicUsize::new(0);
    let batch = messages(ids("evt", 8));
    let error = apply_unless(&inbox(&db), &batch, |amount| amount == 5, &runs).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot read message 5");
    assert_eq!(runs.load(SeqCst), 1);
    assert_untouched(&db).await;
}

#[tokio::test]
async fn the_one_poison_message_is_told_apart_and_the_others_are_committed() {
    for (poison, most) in [(Poison::Halve, 1 + 2 * 4), (Poison::OneByOne, 1 + 16)] {
        for bad in 0..16 {
            let db = Database::new().await;
            let inbox = inbox(&db).with_poison(poison);
            let runs = AtomicUsize::new(0);
            let report =
                apply_unless(&inbox, &messages(ids("evt", 16)), |amount| amount == bad, &runs).await.unwrap();

            let mut expected = ["P"; 16];
            expected[bad as usize] = "F";
            assert_eq!(word(&report), expected.concat(), "{poison:?}");
            let Handled::Failed(error) = &report.messages[bad as usize] else { panic!("{bad}") };
            assert_eq!(error.to_string(), format!("cannot read message {bad}"));
            assert!(runs.load(SeqCst) <= most, "{poison:?}: {} runs", runs.load(SeqCst));
            assert_eq!(
                report.results.len(),
                db.count("(SELECT DISTINCT xmin::text FROM ledger) AS commits").await as usize
            );
            assert!(ledger(&db).await.is_sorted(), "the others keep their order");
            assert_eq!(db.count("ledger").await, 15);
            assert_whole(&db).await;
        }
    }
}

#[tokio::test]
async fn many_poison_messages_and_nothing_else() {
    for poison in BOTH {
        let db = Database::new().await;
        let inbox = inbox(&db).with_poison(poison);
        let batch = messages(ids("evt", 9));
        let runs = AtomicUsize::new(0);
        let report = apply_unless(&inbox, &batch, |amount| amount % 3 == 1, &runs).await.unwrap();
        assert_eq!(word(&report), "PFPPFPPFP", "{poison:?}");
        // What is committed stays so, and what failed is as free as before.
        let report = apply_unless(&inbox, &batch, |_| true, &runs).await.unwrap();
        assert_eq!(word(&report), "DFDDFDDFD", "{poison:?}");
        assert_whole(&db).await;
        assert_eq!(word(&process(&inbox, &batch).await.unwrap()), "DPDDPDDPD");
        assert_whole(&db).await;
    }
}

#[tokio::test]
async fn a_batch_of_one_that_fails_is_reported_like_others() {
    let db = Database::new().await;
    for poison in BOTH {
        let inbox = inbox(&db).with_poison(poison);
        let runs = AtomicUsize::new(0);
        let report = apply_unless(&inbox, &messages(["evt"]), |_| true, &runs).await.unwrap();
        assert_eq!((word(&report).as_str(), runs.load(SeqCst)), ("F", 1));
    }
    assert_untouched(&db).await;
}

/// Nothing of it is committed: to acknowledge it as a duplicate would lose it.
#[tokio::test]
async fn the_second_one_of_a_poison_message_is_released() {
    let db = Database::new().await;
    let batch = messages(["a", "bad", "b", "bad", "a"]);
    for poison in BOTH {
        let inbox = inbox(&db).with_poison(poison);
        let report = apply_unless(&inbox, &batch, |amount| amount == 1, &AtomicUsize::new(0)).await.unwrap();
        assert!(["PFPRD", "DFDRD"].contains(&word(&report).as_str()), "{}", word(&report));
    }
    assert_whole(&db).await;
}

#[tokio::test]
async fn what_only_the_commit_or_a_time_out_shows_is_told_apart_too() {
    for (bad, code) in [("duplicate", "23505"), ("slow", "57014"), ("conflicting", "40001")] {
        let db = Database::new().await;
        sqlx::raw_sql("CREATE TABLE names (name text UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO names VALUES ('x')")
            .execute(&db.pool)
            .await
            .unwrap();
        let inbox =
            db.idempotency().with_max_attempts(2).inbox(super::scene::consumer()).with_poison(Poison::Halve);
        let report = inbox
            .process_batch(&messages(ids("evt", 6)), async |conn, fresh| {
                apply(conn, fresh).await?;
                if fresh.iter().any(|message| *message.body() == 4) {
                    let statement = match bad {
                        "duplicate" => "INSERT INTO names VALUES ('x')",
                        "slow" => "SET LOCAL statement_timeout = 1; SELECT pg_sleep(60)",
                        _ => "DO $$ BEGIN RAISE EXCEPTION 'provoked' USING ERRCODE = '40001'; END $$",
                    };
                    conn.execute(statement).await?;
                }
                Ok::<_, Error>(())
            })
            .await
            .unwrap();
        assert_eq!(word(&report), "PPPPFP", "{bad}");
        let Handled::Failed(error) = &report.messages[4] else { panic!("{bad}") };
        assert_eq!(super::support::sqlstate(error).as_deref(), Some(code));
        assert_whole(&db).await;
    }
}

#[derive(Debug, thiserror::Error)]
enum Shape {
    /// Hides the `sqlx::Error` itself from the chain of sources.
    #[error(transparent)]
    Transparent(sqlx::Error),
    #[error("the database failed")]
    Source(#[source] sqlx::Error),
    #[error(transparent)]
    Pgonce(#[from] Error),
}

#[rustfmt::skip]
impl pgonce::ClosureError for Shape { fn as_error(&self) -> &(dyn std::error::Error + 'static) { self } }

async fn raise(conn: &mut PgConnection, code: &str) -> Result<(), sqlx::Error> {
    let block = format!("DO $$ BEGIN RAISE EXCEPTION 'provoked' USING ERRCODE = '{code}'; END $$");
    conn.execute(sqlx::AssertSqlSafe(block)).await.map(drop)
}

/// Looking for the poison would find every message guilty.
#[tokio::test]
async fn what_is_no_messages_fault_ends_the_work_at_once() {
    let db = Database::new().await;
    for what in ["io", "pool", "42P01", "42501", "53100", "57P01", "08006", "25006", "the session ends"] {
        for (poison, shape) in BOTH.into_iter().flat_map(|poison| [0, 1, 2].map(|shape| (poison, shape))) {
            // A transparent one shows nothing of what did not come from the database.
            if shape == 0 && what == "pool" {
                continue;
            }
            let inbox = inbox(&db).with_poison(poison);
            let runs = AtomicUsize::new(0);
            let result = inbox
                .process_batch(
                    &messages(ids("evt", 8)),
                    async |conn: &mut PgConnection, _: &[&Message<i64>]| {
                        runs.fetch_add(1, SeqCst);
                        let failed = match what {
                            "io" | "the session ends" => {
                                db.kill_open_transactions().await;
                                conn.execute("SELECT 1").await.map(drop)
                            }
                            "pool" => Err(sqlx::Error::PoolTimedOut),
                            code => raise(conn, code).await,
                        };
                        failed.map_err(|error| match shape {
                            0 => Shape::Transparent(error),
                            1 => Shape::Source(error),
                            _ => Shape::Pgonce(error.into()),
                        })
                    },
                )
                .await;
            assert!(result.is_err(), "{what}, {poison:?}, {shape}: {result:?}");
            assert_eq!(runs.load(SeqCst), 1, "{what}, {poison:?}, {shape}");
        }
    }
    assert_untouched(&db).await;
}

#[tokio::test]
async fn without_a_connection_nothing_runs_and_nobody_is_to_blame() {
    let db = Database::new().await;
    let pool = db.pool_of(1);
    pool.close().await;
    for poison in BOTH {
        let inbox = pgonce::Inbox::new(pool.clone(), super::scene::consumer()).with_poison(poison);
        let never =
            async |_: &mut PgConnection, _: &[&Message<i64>]| -> Result<(), Error> { panic!("must not run") };
        let error = inbox.process_batch(&messages(["a", "b"]), never).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Database);
    }
}

/// A payload that cannot be unpacked is no database that is away, nor is a row that a policy refuses.
#[tokio::test]
async fn what_looks_like_an_outage_and_is_one_messages_fault_is_told_apart() {
    let db = Database::new().await;
    let role = format!("tenant_{}", uuid::Uuid::new_v4().simple());
    let policy = format!(
        "CREATE TABLE guarded (amount bigint); ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
         CREATE POLICY no_two ON guarded WITH CHECK (amount <> 2);
         CREATE ROLE {role}; GRANT INSERT ON guarded TO {role}"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(policy)).execute(&db.pool).await.unwrap();
    for what in ["corrupt", "policy"] {
        let inbox = inbox(&db).with_poison(Poison::Halve);
        let report = inbox
            .process_batch(&messages(ids(what, 5)), async |conn, fresh| {
                apply(conn, fresh).await?;
                let is_bad = fresh.iter().any(|message| *message.body() == 2);
                match what {
                    "corrupt" if is_bad => return Err(io::Error::from(io::ErrorKind::InvalidData).into()),
                    "policy" => {
                        let amounts: Vec<i64> = fresh.iter().map(|message| *message.body()).collect();
                        conn.execute(sqlx::AssertSqlSafe(format!("SET LOCAL ROLE {role}"))).await?;
                        sqlx::query("INSERT INTO guarded SELECT unnest($1::bigint[])")
                            .bind(amounts)
                            .execute(&mut *conn)
                            .await?;
                        conn.execute("RESET ROLE").await?;
                    }
                    _ => {}
                }
                anyhow::Ok(())
            })
            .await
            .unwrap();
        assert_eq!(word(&report), "PPFPP", "{what}");
    }
    assert_whole(&db).await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("DROP OWNED BY {role}; DROP ROLE {role}")))
        .execute(&db.pool)
        .await
        .unwrap();
}

#[tokio::test]
async fn an_outage_half_way_leaves_what_was_committed_and_releases_the_rest() {
    let db = Database::new().await;
    let inbox = inbox(&db).with_poison(Poison::OneByOne);
    let batch = messages(["a", "bad", "b", "gone", "c", "a", "c"]);
    let report = inbox
        .process_batch(&batch, async |conn, fresh| {
            apply(conn, fresh).await?;
            if fresh.len() > 1 || fresh[0].id() == &key("bad") {
                return Err(anyhow::anyhow!("poison"));
            }
            if fresh[0].id() == &key("gone") {
                return Err(sqlx::Error::Io(io::ErrorKind::BrokenPipe.into()).into());
            }
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(word(&report), "PFPRRDR");
    assert!(report.stopped.as_ref().is_some_and(|error| error.is::<sqlx::Error>()), "{:?}", report.stopped);
    assert_eq!(ledger(&db).await, [0, 2]);
    assert_whole(&db).await;
    assert_eq!(word(&process(&inbox, &batch).await.unwrap()), "DPDPPDD");
}

#[tokio::test]
async fn a_closure_that_leaves_its_transaction_is_not_run_again() {
    for poison in BOTH {
        let db = Database::new().await;
        let inbox = inbox(&db).with_poison(poison);
        let runs = AtomicUsize::new(0);
        let error = inbox
            .process_batch(&messages(ids("evt", 8)), async |conn, _| {
                runs.fetch_add(1, SeqCst);
                conn.execute("ROLLBACK").await?;
                Ok::<_, Error>(())
            })
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AtomicityViolation);
        assert_eq!(runs.load(SeqCst), 1);
        assert_untouched(&db).await;
    }
}

/// Random batches, random poison: what is reported as committed is what is in the database, each once.
#[tokio::test]
async fn what_is_reported_as_committed_is_committed() {
    let mut random = fastrand::Rng::with_seed(7);
    let db = Database::new().await;
    for round in 0..40 {
        let inbox = inbox(&db).with_poison(BOTH[round % 2]);
        let names: Vec<_> = (0..random.usize(1..30)).map(|_| format!("evt-{}", random.u32(0..400))).collect();
        let bad = random.i64(1..12);
        let batch = messages(&names);
        let report =
            apply_unless(&inbox, &batch, |amount| amount % 12 == bad, &AtomicUsize::new(0)).await.unwrap();
        for (name, handled) in names.iter().zip(&report.messages) {
            let found = inbox.idempotency().find(inbox.consumer(), &key(name)).await.unwrap();
            assert_eq!(found.is_some(), handled.is_committed(), "{name}: {handled:?}");
        }
        assert_whole(&db).await;
    }
}
