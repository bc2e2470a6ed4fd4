//! What a call costs, in statements, WAL and locks, not in time.

mod support;

use std::cell::RefCell;
use std::sync::Once;
use std::time::Duration;

use pgonce::{Error, Idempotency, Message, Mode, Operation, Outcome};
use sqlx::{Connection, PgConnection, PgPool};
use support::{Database, key, operation, scope};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::{Layer, Registry};

thread_local! {
    /// What sqlx and pgonce logged in this test, as target and text: each test has a thread and a runtime of its own.
    static LOG: RefCell<Vec<(String, String)>> = const { RefCell::new(Vec::new()) };
}

/// Writes into the log. One for the whole process: subscribers that come and go miss events of each other's tests.
struct Collect;

fn collect_logs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Registry::default().with(Collect)).unwrap());
}

fn log(target: &str, text: String) {
    LOG.with_borrow_mut(|log| log.push((target.to_owned(), text)));
}

impl<S: tracing::Subscriber> Layer<S> for Collect {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        log(event.metadata().target(), fields.0);
    }

    fn on_new_span(&self, attributes: &tracing::span::Attributes<'_>, _: &tracing::Id, _: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        log(attributes.metadata().target(), format!("span {} {}", attributes.metadata().name(), fields.0));
    }

    fn on_record(&self, _: &tracing::Id, values: &tracing::span::Record<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        values.record(&mut fields);
        log("pgonce", fields.0);
    }
}

#[derive(Default)]
struct Fields(String);

impl tracing::field::Visit for Fields {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        self.0.push_str(&format!("{}={value:?} ", field.name()));
    }
}

/// The statements that sqlx logged since the last time. (Its BEGIN is not among them, its COMMIT and ROLLBACK are.)
fn take_statements() -> Vec<String> {
    let log = LOG.take();
    log.into_iter().filter(|(target, _)| target == "sqlx::query").map(|(_, text)| text).collect()
}

async fn wal_position(pool: &PgPool) -> String {
    sqlx::query_scalar("SELECT pg_current_wal_insert_lsn()::text").fetch_one(pool).await.unwrap()
}

/// On one connection that is warmed up, so that nothing but the call itself is counted.
async fn warm(db: &Database) -> Idempotency {
    let idempotency = Idempotency::new(db.pool_of(1));
    for n in 0..3 {
        let operation = Operation::new(scope(), key(&format!("warm-{}", n / 2)));
        idempotency.execute(&operation, async |_| Ok::<_, Error>(1)).await.unwrap();
    }
    take_statements();
    idempotency
}

#[tokio::test]
async fn fresh_is_two_statements_beyond_begin_and_commit() {
    collect_logs();
    let db = Database::new().await;
    let idempotency = warm(&db).await;

    idempotency.execute(&operation(), async |_| Ok::<_, Error>(7)).await.unwrap();
    let statements = take_statements();
    assert_eq!(statements.len(), 3, "{statements:#?}");
    assert!(statements[0].contains("INSERT INTO pgonce.keys"), "{statements:#?}");
    assert!(statements[1].contains("UPDATE pgonce.keys"), "{statements:#?}");
    assert!(statements[2].contains("COMMIT"), "{statements:#?}");

    // The savepoint of a recorded failure is paid by those who ask for it.
    let recording = Operation::new(scope(), key("recording"));
    idempotency.execute_recording(&recording, async |_| Ok::<Result<u8, u8>, Error>(Ok(7))).await.unwrap();
    let statements = take_statements();
    assert_eq!(statements.len(), 4, "{statements:#?}");
    assert!(statements[1].contains("SAVEPOINT"), "{statements:#?}");
}

#[tokio::test]
async fn a_replay_is_two_statements_without_wal_without_row_lock() {
    collect_logs();
    let db = Database::new().await;
    let idempotency = warm(&db).await;
    idempotency.execute(&operation(), async |_| Ok::<_, Error>(7)).await.unwrap();
    // Hint bits and pruning of what the first call left; afterwards the table is at rest.
    for statement in ["VACUUM pgonce.keys", "CHECKPOINT"] {
        sqlx::raw_sql(statement).execute(&db.pool).await.unwrap();
    }
    let row =
        "SELECT xmin::text || ' ' || xmax::text || ' ' || ctid::text FROM pgonce.keys WHERE key = 'order-1'";
    let row_before: String = sqlx::query_scalar(row).fetch_one(&db.pool).await.unwrap();
    take_statements();

    // The position is the whole server's, and other tests write to it: one replay without WAL is proof enough, since
    // one that writes always writes.
    let mut quiet = false;
    for _ in 0..2000 {
        let before = wal_position(&db.pool).await;
        take_statements();
        let outcome = idempotency.execute(&operation(), async |_| Ok::<_, Error>(0)).await.unwrap();
        let statements = take_statements();
        assert_eq!(outcome, Outcome::Replayed(7));
        // The ROLLBACK goes out later, with what the pool asks.
        assert_eq!(statements.len(), 2, "{statements:#?}");
        assert!(statements[1].contains("LEFT JOIN pgonce.keys"), "{statements:#?}");
        if wal_position(&db.pool).await == before {
            quiet = true;
            break;
        }
    }
    assert!(quiet, "a replay writes WAL");
    let row_after: String = sqlx::query_scalar(row).fetch_one(&db.pool).await.unwrap();
    assert_eq!(row_before, row_after, "a replay locked the row");
}

#[tokio::test]
async fn what_the_other_modes_cost() {
    collect_logs();
    let db = Database::new().await;
    let warm = warm(&db).await;
    let (first, other) = (Operation::new(scope(), key("first")), Operation::new(scope(), key("other")));
    for (mode, fresh, replay) in [(Mode::LookFirst, 4, 1), (Mode::Optimistic, 2, 3)] {
        sqlx::raw_sql("TRUNCATE pgonce.keys").execute(&db.pool).await.unwrap();
        let idempotency = warm.clone().with_mode(mode);
        idempotency.execute(&other, async |_| Ok::<_, Error>(7)).await.unwrap();
        take_statements();
        idempotency.execute(&first, async |_| Ok::<_, Error>(7)).await.unwrap();
        let statements = take_statements();
        assert_eq!(statements.len(), fresh, "{mode:?}: {statements:#?}");
        assert!(statements[fresh - 1].contains("COMMIT"), "{mode:?}: {statements:#?}");
        // In optimistic mode, of a closure that fails: where it is, ROLLBACK, a look.
        let again = idempotency.execute(&first, async |_| Err::<i32, _>(sqlx::Error::RowNotFound.into()));
        assert!(again.await.unwrap_or_else(|error: Error| panic!("{mode:?}: {error}")).is_replayed());
        let statements = take_statements();
        assert_eq!(statements.len(), replay, "{mode:?}: {statements:#?}");
    }
}

/// A message has no result to store. What proves that its transaction is alive travels with the COMMIT.
#[tokio::test]
async fn a_message_is_one_statement_beyond_begin_and_commit_and_so_is_a_batch() {
    collect_logs();
    let db = Database::new().await;
    let inbox = warm(&db).await.inbox(scope());
    let batch = |name: &str| (0..100).map(|n| Message::new(key(&format!("{name}-{n}")))).collect::<Vec<_>>();
    let nothing = async |_: &mut PgConnection, _: &[&Message]| Ok::<_, Error>(());
    for _ in 0..2 {
        inbox.process(uuid::Uuid::new_v4(), async |_| Ok::<_, Error>(())).await.unwrap();
        let _ = inbox.process_batch(&batch("warm"), nothing).await.unwrap();
    }
    take_statements();

    inbox.process("evt-1", async |_| Ok::<_, Error>(())).await.unwrap();
    let single = take_statements();
    assert!(inbox.process_batch(&batch("fresh"), nothing).await.unwrap().is_complete());
    let many = take_statements();
    for statements in [single, many] {
        assert_eq!(statements.len(), 2, "{statements:#?}");
        assert!(statements[0].contains("INSERT INTO pgonce.keys"), "{statements:#?}");
        assert!(statements[1].contains("COMMIT AND CHAIN"), "{statements:#?}");
    }

    // One version of each row: nothing for the vacuum to do.
    let written = "SELECT count(*) FILTER (WHERE xmax = '0'), count(DISTINCT xmin::text) FROM pgonce.keys
                   WHERE key = 'evt-1' OR key LIKE 'fresh-%'";
    let (rows, transactions): (i64, i64) = sqlx::query_as(written).fetch_one(&db.pool).await.unwrap();
    assert_eq!((rows, transactions), (101, 2));

    // The connection is in no transaction when it comes back, though the COMMIT had opened another one.
    let mut conn = inbox.idempotency().pool().acquire().await.unwrap();
    conn.ping().await.unwrap();
    let (backend,): (i32,) = sqlx::query_as("SELECT pg_backend_pid()").fetch_one(&mut *conn).await.unwrap();
    let state: String = sqlx::query_scalar("SELECT state FROM pg_stat_activity WHERE pid = $1")
        .bind(backend)
        .fetch_one(&db.pool)
        .await
        .unwrap();
    assert_eq!(state, "idle");
}

#[tokio::test]
async fn duplicates_are_two_statements_without_wal_without_row_lock() {
    collect_logs();
    let db = Database::new().await;
    let inbox = warm(&db).await.inbox(scope());
    let batch: Vec<_> = (0..20).map(|n| Message::new(key(&format!("evt-{n}")))).collect();
    let nothing = async |_: &mut PgConnection, _: &[&Message]| Ok::<_, Error>(());
    assert!(inbox.process_batch(&batch, nothing).await.unwrap().is_complete());
    for statement in ["VACUUM pgonce.keys", "CHECKPOINT"] {
        sqlx::raw_sql(statement).execute(&db.pool).await.unwrap();
    }
    let row = "SELECT string_agg(concat(xmin, xmax, ctid), ' ' ORDER BY key) FROM pgonce.keys";
    let rows_before: String = sqlx::query_scalar(row).fetch_one(&db.pool).await.unwrap();
    for single in [true, false] {
        // See `a_replay_is_two_statements_without_wal_without_row_lock`.
        let mut quiet = false;
        for _ in 0..2000 {
            let before = wal_position(&db.pool).await;
            take_statements();
            if single {
                assert!(inbox.process("evt-1", async |_| Ok::<_, Error>(())).await.unwrap().is_duplicate());
            } else {
                assert!(inbox.process_batch(&batch, nothing).await.unwrap().results.is_empty());
            }
            let statements = take_statements();
            assert_eq!(statements.len(), 2, "{statements:#?}");
            if wal_position(&db.pool).await == before {
                quiet = true;
                break;
            }
        }
        assert!(quiet, "a duplicate writes WAL (single: {single})");
    }
    let rows_after: String = sqlx::query_scalar(row).fetch_one(&db.pool).await.unwrap();
    assert_eq!(rows_before, rows_after, "a duplicate locked its row");
}

#[tokio::test]
async fn a_replay_passes_a_row_that_somebody_has_locked() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    idempotency.execute(&operation(), async |_| Ok::<_, Error>(7)).await.unwrap();
    let mut transaction = db.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM pgonce.keys FOR UPDATE").execute(&mut *transaction).await.unwrap();
    let operation = operation();
    let call = idempotency.execute(&operation, async |_| Ok::<_, Error>(0));
    let outcome = tokio::time::timeout(Duration::from_secs(60), call).await.expect("it waits for the lock");
    assert_eq!(outcome.unwrap(), Outcome::Replayed(7));
    transaction.rollback().await.unwrap();
}

#[tokio::test]
async fn prepared_statements_stay_prepared_and_the_finish_is_a_hot_update() {
    let db = Database::new().await;
    let idempotency = warm(&db).await;
    for n in 0..20 {
        let operation = Operation::new(scope(), key(&format!("hot-{n}")));
        idempotency.execute(&operation, async |_| Ok::<_, Error>("x".repeat(300))).await.unwrap();
    }
    let prepared: Vec<String> = sqlx::query_scalar(
        "SELECT left(statement, 6) FROM pg_prepared_statements WHERE statement LIKE '%pgonce.keys%'
         AND statement NOT LIKE '%pg_prepared%' ORDER BY 1",
    )
    .fetch_all(idempotency.pool())
    .await
    .unwrap();
    assert_eq!(prepared, ["INSERT", "SELECT", "UPDATE"], "one each, for all calls");

    // Statistics arrive late unless they are asked for.
    sqlx::query("SELECT pg_stat_force_next_flush()").execute(idempotency.pool()).await.unwrap();
    db.wait_until(
        "SELECT n_tup_upd >= 20 FROM pg_stat_user_tables WHERE schemaname = 'pgonce' AND relname = 'keys'",
    )
    .await;
    let share: f64 = sqlx::query_scalar(
        "SELECT n_tup_hot_upd::float8 / n_tup_upd FROM pg_stat_user_tables
         WHERE schemaname = 'pgonce' AND relname = 'keys'",
    )
    .fetch_one(&db.pool)
    .await
    .unwrap();
    assert!(share >= 0.8, "only {share} of the finishes are HOT updates");
}

#[tokio::test]
async fn logs_name_the_scope_and_a_hash_and_nothing_secret() {
    collect_logs();
    let db = Database::new().await;
    let idempotency = db.idempotency();
    LOG.take();
    let operation = Operation::new(scope(), key("k-secret")).with_params("parameter-secret").unwrap();
    idempotency.execute(&operation, async |_| Ok::<_, Error>("result-secret".to_string())).await.unwrap();
    idempotency.execute(&operation, async |_| Ok::<_, Error>(String::new())).await.unwrap();
    idempotency.execute(&operation, async |_| Ok::<_, Error>(1)).await.unwrap_err();
    let failed = Operation::new(scope(), key("f-secret"));
    let error = async |_: &mut sqlx::PgConnection| Err::<u8, _>(anyhow::anyhow!("error-secret"));
    idempotency.execute(&failed, error).await.unwrap_err();
    idempotency
        .execute_recording(&failed, async |_| Ok::<Result<u8, String>, Error>(Err("failure-secret".into())))
        .await
        .unwrap();

    let log = LOG.take();
    let ours: Vec<&str> = log
        .iter()
        .filter(|(target, _)| target.starts_with("pgonce"))
        .map(|(_, text)| text.as_str())
        .collect();
    let all = ours.join("\n");
    for expected in
        ["span pgonce", "acct_42/charges", "key_hash", "claimed", "committed", "replayed", "released"]
    {
        assert!(all.contains(expected), "{expected} is not in\n{all}");
    }
    // sqlx logs its statements, but no bound values.
    for (target, text) in log.iter() {
        assert!(!text.contains("secret"), "{target}: {text}");
    }
}
