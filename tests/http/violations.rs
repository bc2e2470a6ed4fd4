//! A handler that mistreats its transaction: nothing of it is committed, and nobody is told that it was.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use futures_util::stream;
use pgonce::{Idempotency, IdempotentTx};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, Executor, PgConnection};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::app::App;
use crate::scene::{
    Count, app_over, assert_is_problem, assert_next_executes, assert_replayed, charges, send,
};
use crate::support::Database;

/// Its connections can write nothing outside of pgonce's transactions, and the server looks whether they live.
async fn hardened(db: &Database) -> Idempotency {
    let pool = PgPoolOptions::new().max_connections(4);
    Idempotency::connect_with(pool, db.options()).await.unwrap()
}

#[tokio::test]
async fn a_success_after_a_swallowed_database_error_is_refused() {
    let app = App::new(charges(&Count::default(), async |run, mut tx: IdempotentTx| {
        if run == 1 {
            tx.execute("SELECT 1 / 0").await.unwrap_err();
        }
        StatusCode::CREATED
    }))
    .await;
    assert_is_problem(&send(&app, "order-1").await, 500, "internal");
    app.db.assert_untouched().await;
    assert_next_executes(&app, "order-1").await;
}

#[tokio::test]
async fn what_may_fail_in_a_nested_transaction_may_be_swallowed() {
    let app = App::new(charges(&Count::default(), async |_, mut tx: IdempotentTx| {
        let mut nested = tx.begin().await.unwrap();
        nested.execute("SELECT 1 / 0").await.unwrap_err();
        drop(nested);
        StatusCode::CREATED
    }))
    .await;
    assert_next_executes(&app, "order-1").await;
}

/// Ends the transaction, and writes on.
async fn leave(conn: &mut PgConnection, how: &'static str) {
    // The COMMIT is refused, since the key is pending.
    let _ = conn.execute(how).await;
    let _ = conn.execute("INSERT INTO ledger (amount) VALUES (666)").await;
}

#[tokio::test]
async fn a_handler_that_ends_its_transaction_is_told_so_whatever_it_answers() {
    for is_hardened in [false, true] {
        let db = Database::new().await;
        let idempotency = if is_hardened { hardened(&db).await } else { db.idempotency() };
        // What to do is the key.
        let app = app_over(
            db,
            idempotency,
            charges(&Count::default(), async |_, mut tx: IdempotentTx| {
                let key = tx.operation().key().to_string();
                let (how, status) = key.split_once('/').unwrap();
                leave(&mut tx, if how == "commit" { "COMMIT" } else { "ROLLBACK" }).await;
                match status {
                    "stream" => Body::from_stream(stream::iter([Ok::<_, Infallible>("1")])).into_response(),
                    status => StatusCode::from_bytes(status.as_bytes()).unwrap().into_response(),
                }
            }),
        )
        .await;
        let ways = ["commit", "rollback"]
            .iter()
            .flat_map(|how| ["201", "402", "503", "stream"].map(|status| format!("{how}/{status}")));
        for key in ways {
            let answer = send(&app, &key).await;
            assert_is_problem(&answer, 500, "internal");
            let answer = String::from_utf8(answer.body).unwrap();
            assert!(!answer.contains("nothing was committed"), "{key}: it cannot know that: {answer}");
            assert_eq!(app.db.count("pgonce.keys").await, 0, "{key}");
            assert_eq!(app.db.balance("alice").await, 1000, "{key}");
            assert_eq!(app.db.count("ledger WHERE amount <> 666").await, 0, "{key}");
            assert!(!is_hardened || app.db.count("ledger").await == 0, "{key}: written outside");
        }
    }
}

#[tokio::test]
async fn a_nested_transaction_that_is_left_open_is_never_committed() {
    let app = App::new(charges(&Count::default(), async |_, mut tx: IdempotentTx| {
        std::mem::forget(tx.begin().await.unwrap());
        tx.execute("UPDATE accounts SET balance = 0").await.unwrap();
        StatusCode::from_bytes(tx.operation().key().as_str().as_bytes()).unwrap()
    }))
    .await;
    assert_is_problem(&send(&app, "201").await, 500, "internal");
    app.db.assert_untouched().await;
    assert_eq!(send(&app, "503").await.status, 503);
    app.db.assert_untouched().await;
    // A failure undoes it with everything else.
    for replayed in [false, true] {
        let seen = send(&app, "402").await;
        assert_eq!((seen.status.as_u16(), seen.replayed), (402, replayed));
    }
    assert_eq!((app.db.count("ledger").await, app.db.balance("alice").await), (0, 1000));
}

#[tokio::test]
async fn a_constraint_that_refuses_the_commit_is_a_definite_error() {
    let runs = Count::default();
    let app = App::new(charges(&runs, async |run, mut tx: IdempotentTx| {
        if run == 1 {
            tx.execute("INSERT INTO invoices VALUES ('nobody')").await.unwrap();
        }
        StatusCode::CREATED
    }))
    .await;
    let deferred = "CREATE TABLE invoices (account text REFERENCES accounts DEFERRABLE INITIALLY DEFERRED)";
    sqlx::raw_sql(deferred).execute(&app.db.pool).await.unwrap();
    let refused = send(&app, "order-1").await;
    assert_is_problem(&refused, 500, "internal");
    assert_eq!(runs.get(), 1);
    app.db.assert_untouched().await;
    assert_next_executes(&app, "order-1").await;
}

const SOON: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_statement_that_the_handler_gave_up_is_waited_for_by_a_success() {
    let db = Database::new().await;
    let mut holder = db.pool.begin().await.unwrap();
    holder.execute("SELECT pg_advisory_xact_lock(7)").await.unwrap();
    let holder = Arc::new(Mutex::new(Some(holder)));
    let routes = charges(&Count::default(), async move |_, mut tx: IdempotentTx| {
        let slow = tx.execute("INSERT INTO ledger (amount) SELECT 7 FROM pg_advisory_xact_lock(7)");
        timeout(SOON, slow).await.unwrap_err();
        // Now it may end.
        holder.lock().await.take().unwrap().rollback().await.unwrap();
        StatusCode::CREATED
    });
    let idempotency = db.idempotency();
    let app = app_over(db, idempotency, routes).await;
    let first = send(&app, "order-1").await;
    assert_eq!(first.status, 201);
    // It belongs to the transaction, and commits with it.
    assert_eq!(app.db.count("ledger WHERE amount = 7").await, 1);
    sqlx::raw_sql("DELETE FROM ledger WHERE amount = 7").execute(&app.db.pool).await.unwrap();
    assert_replayed(&app, "order-1", first).await;
}

#[tokio::test]
async fn a_statement_that_the_handler_gave_up_does_not_hold_up_an_error() {
    let db = Database::new().await;
    // On a plain pool the server would sleep on, and with it the key.
    let idempotency = hardened(&db).await;
    let routes = charges(&Count::default(), async |run, mut tx: IdempotentTx| {
        if run > 1 {
            return StatusCode::CREATED;
        }
        timeout(SOON, tx.execute("SELECT pg_sleep(300)")).await.unwrap_err();
        StatusCode::SERVICE_UNAVAILABLE
    });
    let app = app_over(db, idempotency, routes).await;
    assert_eq!(send(&app, "order-1").await.status, 503);
    app.db.wait_until_idle().await;
    app.db.assert_untouched().await;
    assert_next_executes(&app, "order-1").await;
}

#[tokio::test]
async fn a_stored_response_that_cannot_be_read_is_not_said_to_be_nothing() {
    let runs = Count::default();
    let app = App::new(charges(&runs, async |_, _| StatusCode::CREATED)).await;
    assert_eq!(send(&app, "order-1").await.status, 201);
    sqlx::raw_sql("UPDATE pgonce.keys SET result = '{}'").execute(&app.db.pool).await.unwrap();
    let retry = send(&app, "order-1").await;
    assert_is_problem(&retry, 500, "internal");
    let detail = String::from_utf8(retry.body).unwrap();
    assert!(detail.contains("was carried out before"), "{detail}");
    assert_eq!(runs.get(), 1);
    app.db.assert_charged_once().await;
}
