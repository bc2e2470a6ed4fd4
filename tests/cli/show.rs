//! What happened to a key, and what a retry gets. What is said is compared with what a retry really gets.

use std::time::Duration;

use pgonce::{Claim, Error, ErrorKind, IdempotencyKey, Message, Mode, Scope};
use serde_json::Value;
use sqlx::PgConnection;
use throwaway_postgres::Settings;
use tokio::sync::oneshot;

use crate::scene::{CONSUMER, SCOPE, execute, expired, fail, json, operation, process, run, run_at, sql};
use crate::support::Database;
use crate::support::private::Bank;

async fn pid(conn: &mut PgConnection) -> i32 {
    sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(conn).await.unwrap()
}

#[tokio::test]
async fn a_completed_key_is_replayed_and_its_result_is_hidden() {
    let db = Database::new().await;
    execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;

    let said = run(&db, &["show", SCOPE, "order-1"]).await.ending(0);
    said.says("completed").says("gets the stored result, and runs nothing").says("just now").says("in 23 h");
    said.says("20 B (json); --show-result shows it").does_not_say("secret");
    let document = json(&db, &["show", SCOPE, "order-1"]).await;
    assert!(!document.to_string().contains("secret"), "{document}");
    assert_eq!(document["status"], "completed");
    assert_eq!(document["retry"], "replayed");
    assert_eq!(document["record"]["result_bytes"], 20);
    assert_eq!(document["in_flight"], Value::Null);

    let said = run(&db, &["show", SCOPE, "order-1", "--show-result"]).await.ending(0);
    said.says("\"the secret receipt\"");
    let document = json(&db, &["show", SCOPE, "order-1", "--show-result"]).await;
    assert_eq!(document["record"]["result"], "the secret receipt");

    let again =
        db.idempotency().execute(&operation(SCOPE, "order-1"), async |_| Ok::<_, Error>(String::new())).await;
    assert!(again.unwrap().is_replayed());
}

#[tokio::test]
async fn the_bytes_of_a_result_are_shown_as_they_are() {
    let db = Database::new().await;
    let number = serde_json::value::RawValue::from_string("12345678901234567890.10".into()).unwrap();
    let Claim::Claimed(claimed) = db.idempotency().claim(&operation(SCOPE, "order-1")).await.unwrap() else {
        panic!("not claimed")
    };
    claimed.complete(&number).await.unwrap();
    for args in [
        &["show", SCOPE, "order-1", "--show-result"][..],
        &["show", SCOPE, "order-1", "--show-result", "--json"],
    ] {
        run(&db, args).await.ending(0).says("12345678901234567890.10");
    }
}

#[tokio::test]
async fn a_recorded_failure_is_replayed() {
    let db = Database::new().await;
    fail(&db.idempotency(), &operation(SCOPE, "order-1")).await;
    let said = run(&db, &["show", SCOPE, "order-1"]).await.ending(0);
    said.says("failed").says("gets the same failure").says("were undone").does_not_say("secret");
    let document = json(&db, &["show", SCOPE, "order-1"]).await;
    assert_eq!((&document["status"], &document["retry"]), (&"failed".into(), &"replayed".into()));
}

#[tokio::test]
async fn a_message_is_a_duplicate() {
    let db = Database::new().await;
    process(&db.idempotency(), "evt-1", Duration::from_secs(60)).await;
    let said = run(&db, &["show", CONSUMER, "evt-1"]).await.ending(0);
    said.says("A message, processed just now").says("Another delivery is a Duplicate").does_not_say("result");
    let document = json(&db, &["show", CONSUMER, "evt-1"]).await;
    assert_eq!((&document["status"], &document["retry"]), (&"processed".into(), &"duplicate".into()));
}

#[tokio::test]
async fn an_expired_key_is_executed_again() {
    let db = Database::new().await;
    execute(&db.idempotency(), &expired(SCOPE, "order-1")).await;
    let said = run(&db, &["show", SCOPE, "order-1"]).await.ending(0);
    said.says("expired").says("its retention ended just now").says("runs the operation again");
    let document = json(&db, &["show", SCOPE, "order-1"]).await;
    assert_eq!((&document["status"], &document["retry"]), (&"expired".into(), &"executed".into()));
}

#[tokio::test]
async fn an_unknown_key_is_told_by_the_exit_code() {
    let db = Database::new().await;
    let said = run(&db, &["show", SCOPE, "order-1"]).await.ending(1);
    said.says("unknown").says("Nothing is stored for this key").says("A retry runs the operation.");
    said.says("A call in optimistic mode that is running now, or a batch with this message, cannot be seen");
    let said = run(&db, &["show", SCOPE, "order-1", "--json"]).await.ending(1);
    assert_eq!(said.json()["status"], "unknown");
    assert_eq!(said.json()["record"], Value::Null);
}

#[tokio::test]
async fn a_key_in_flight_is_shown_with_who_holds_it() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    // A first execution, and one that takes over an expired key.
    execute(&idempotency, &expired(SCOPE, "old")).await;
    for key in ["new", "old"] {
        let Claim::Claimed(mut claimed) = idempotency.claim(&operation(SCOPE, key)).await.unwrap() else {
            panic!("not claimed")
        };
        let pid = pid(&mut claimed).await;
        let said = run(&db, &["show", SCOPE, key]).await.ending(0);
        said.says("in flight").says(&format!("pid {pid}")).says("idle in transaction").says("InFlight");
        said.says(&format!("SELECT pg_terminate_backend({pid})"));
        let document = json(&db, &["show", SCOPE, key]).await;
        assert_eq!((&document["status"], &document["retry"]), (&"in_flight".into(), &"in_flight".into()));
        assert_eq!(document["in_flight"]["pid"], pid);
        assert_eq!(document["in_flight"]["state"], "idle in transaction");
        let retry = idempotency.execute(&operation(SCOPE, key), async |_| Ok::<_, Error>(1)).await;
        assert_eq!(retry.unwrap_err().kind(), ErrorKind::InFlight);
        // Another key in the same scope is not.
        run(&db, &["show", SCOPE, "another"]).await.ending(1);
        claimed.release().await;
        run(&db, &["show", SCOPE, key]).await.does_not_say("in flight");
    }
}

#[tokio::test]
async fn who_waits_for_whom_is_shown() {
    let db = Database::new().await;
    let mut blocker = db.pool.begin().await.unwrap();
    sqlx::query("UPDATE accounts SET balance = 7 WHERE id = 'alice'").execute(&mut *blocker).await.unwrap();
    let blocking = pid(&mut blocker).await;
    let idempotency = db.idempotency();
    let blocked = tokio::spawn(async move {
        let closure = async |conn: &mut PgConnection| {
            sqlx::query("UPDATE accounts SET balance = 8 WHERE id = 'alice'").execute(conn).await?;
            Ok::<_, Error>(1)
        };
        idempotency.execute(&operation(SCOPE, "order-1"), closure).await
    });
    db.wait_until("SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')")
        .await;
    let said = run(&db, &["show", SCOPE, "order-1"]).await.ending(0);
    said.says(&format!("blocked by   pid {blocking}")).says("waits for Lock");
    blocker.rollback().await.unwrap();
    blocked.await.unwrap().unwrap();
}

/// It is committed on this server already: to end it would show what a failover loses.
#[tokio::test]
async fn nobody_is_told_to_end_a_commit_that_waits_for_a_standby() {
    let bank = Bank::start(Settings::durable()).await;
    sql(&bank.pool, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    // When a session is told for the second time, the checkpointer, which makes COMMITs wait, was told once.
    const LOADED_AT: &str = "SELECT (extract(epoch FROM pg_conf_load_time()) * 1000000)::bigint";
    for _ in 0..2 {
        let before = bank.number(LOADED_AT).await;
        sql(&bank.pool, "SELECT pg_reload_conf()").await;
        while bank.number(LOADED_AT).await == before {}
    }
    sql(&bank.pool, "CHECKPOINT").await;
    let idempotency = pgonce::Idempotency::new(bank.pool.clone());
    let waits = tokio::spawn(async move { execute(&idempotency, &operation(SCOPE, "order-1")).await });
    while bank.number("SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'").await == 0 {}
    for args in [&["show", SCOPE, "order-1"][..], &["doctor", "--long", "0s"]] {
        let said = run_at(bank.server.url(), args).await;
        said.says("do not end it")
            .says("its COMMIT waits for a standby")
            .does_not_say("pg_terminate_backend");
    }
    sql(&bank.pool, "ALTER SYSTEM RESET synchronous_standby_names").await;
    sql(&bank.pool, "SELECT pg_reload_conf()").await;
    waits.await.unwrap();
}

#[tokio::test]
async fn a_batch_that_takes_over_an_expired_message_is_seen_by_its_row() {
    let db = Database::new().await;
    process(&db.idempotency(), "evt-1", Duration::ZERO).await;
    let inbox = db.idempotency().inbox(Scope::new(CONSUMER).unwrap());
    let (claimed, is_claimed) = oneshot::channel();
    let (let_go, wait) = oneshot::channel::<()>();
    let signals = std::sync::Arc::new(std::sync::Mutex::new(Some((claimed, wait))));
    let batch = tokio::spawn(async move {
        let messages = [Message::new(IdempotencyKey::try_from("evt-1").unwrap())];
        let closure = async move |conn: &mut PgConnection, _: &[&Message]| {
            let (claimed, wait) = signals.lock().unwrap().take().unwrap();
            claimed.send(pid(conn).await).unwrap();
            wait.await.unwrap();
            Ok::<_, Error>(())
        };
        inbox.process_batch(&messages, closure).await.map(drop)
    });
    let pid = is_claimed.await.unwrap();
    let said = run(&db, &["show", CONSUMER, "evt-1"]).await.ending(0);
    said.says("in flight").says(&format!("pid {pid}"));
    run(&db, &["evict", CONSUMER, "evt-1", "--reason", "it is stuck", "--yes"])
        .await
        .ending(6)
        .says(&pid.to_string());
    let_go.send(()).unwrap();
    batch.await.unwrap().unwrap();
    run(&db, &["show", CONSUMER, "evt-1"]).await.ending(0).says("processed").does_not_say("in flight");
}

#[tokio::test]
async fn a_call_in_optimistic_mode_is_not_seen_and_that_is_said() {
    let db = Database::new().await;
    let idempotency = db.idempotency().with_mode(Mode::Optimistic);
    let (runs, is_running) = oneshot::channel();
    let (let_go, wait) = oneshot::channel::<()>();
    let signals = std::sync::Arc::new(std::sync::Mutex::new(Some((runs, wait))));
    let call = tokio::spawn(async move {
        let closure = async move |_: &mut PgConnection| {
            let (runs, wait) = signals.lock().unwrap().take().unwrap();
            runs.send(()).unwrap();
            wait.await.unwrap();
            Ok::<_, Error>(1)
        };
        idempotency.execute(&operation(SCOPE, "order-1"), closure).await
    });
    is_running.await.unwrap();
    let unseen = "A call in optimistic mode that is running now";
    run(&db, &["show", SCOPE, "order-1"]).await.ending(1).says("unknown").says(unseen);
    let evict = ["evict", SCOPE, "order-1", "--reason", "a test", "--yes"];
    run(&db, &evict).await.ending(1).says("nothing is stored").says(unseen);
    let_go.send(()).unwrap();
    call.await.unwrap().unwrap();
    run(&db, &["show", SCOPE, "order-1"]).await.ending(0).says("completed").does_not_say(unseen);
}

#[tokio::test]
async fn a_prepared_transaction_that_holds_a_key_is_named() {
    let db = Database::new().await;
    let gid = format!("it's {}", db.name());
    let quoted = gid.replace('\'', "''");
    let mut conn = db.pool.acquire().await.unwrap();
    sqlx::raw_sql("BEGIN").execute(&mut *conn).await.unwrap();
    // As a claim that ends in a two-phase commit.
    sqlx::raw_sql(
        "INSERT INTO pgonce.keys (scope, key, fingerprint, attempt, state, result, result_format, transaction_id,
                                  created_at, completed_at, expires_at)
         SELECT 'acct_42/charges', 'order-1', decode(repeat('00', 33), 'hex'), gen_random_uuid(), 'completed', 'null',
                'json', pg_current_xact_id(), now(), now(), now() + interval '1 day'
         WHERE pg_try_advisory_xact_lock(hashtextextended('order-1', hashtextextended('acct_42/charges', 0)))",
    )
    .execute(&mut *conn)
    .await
    .unwrap();
    sql_on(&mut conn, &format!("PREPARE TRANSACTION '{quoted}'")).await;

    let shown = run(&db, &["show", SCOPE, "order-1"]).await;
    let shown_as_json = json(&db, &["show", SCOPE, "order-1"]).await;
    let examined = run(&db, &["doctor"]).await;
    sql_on(&mut conn, &format!("COMMIT PREPARED '{quoted}'")).await;

    shown.ending(0).says("in flight").says(&format!("ROLLBACK PREPARED '{quoted}'"));
    assert_eq!(shown_as_json["in_flight"]["prepared"], gid);
    assert_eq!(shown_as_json["in_flight"]["pid"], Value::Null);
    examined.ending(1).says("holds keys").says(&format!("COMMIT PREPARED '{quoted}'"));
    run(&db, &["show", SCOPE, "order-1"]).await.ending(0).says("completed");
}

async fn sql_on(conn: &mut PgConnection, statement: &str) {
    sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned())).execute(conn).await.unwrap();
}

#[tokio::test]
async fn a_committed_pending_key_is_explained() {
    let db = Database::new().await;
    sql(&db.pool, "ALTER TABLE pgonce.keys DROP CONSTRAINT keys_finished_before_commit").await;
    sql(&db.pool, PENDING).await;
    let said = run(&db, &["show", SCOPE, "order-1"]).await.ending(0);
    said.says("committed pending").says("AtomicityViolation").says("pgonce evict");
    let document = json(&db, &["show", SCOPE, "order-1"]).await;
    assert_eq!((&document["status"], &document["retry"]), (&"committed_pending".into(), &"refused".into()));
    let retry = db.idempotency().execute(&operation(SCOPE, "order-1"), async |_| Ok::<_, Error>(1)).await;
    assert_eq!(retry.unwrap_err().kind(), ErrorKind::AtomicityViolation);
    run(&db, &["evict", SCOPE, "order-1", "--reason", "it took no effect", "--yes"]).await.ending(0);
    execute(&db.idempotency(), &operation(SCOPE, "order-1")).await;
}

/// What the guard refuses.
pub const PENDING: &str = "\
INSERT INTO pgonce.keys (scope, key, fingerprint, attempt, state, unfinished, created_at, expires_at)
VALUES ('acct_42/charges', 'order-1', decode(repeat('00', 33), 'hex'), gen_random_uuid(), 'pending', 0, now(), now())";
