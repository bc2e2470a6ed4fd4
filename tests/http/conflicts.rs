//! Deadlocks and serialization failures: the handler runs again, and the client sees nothing of it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Json, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::post;
use axum::{Router, http};
use pgonce::{Error, IdempotentTx, Isolation};
use sqlx::{AssertSqlSafe, Executor};
use tokio::sync::Barrier;
use tokio::time::timeout;

use crate::app::{App, Seen, seen};
use crate::scene::{
    Count, app_over, assert_is_problem, assert_next_executes, assert_replayed, charges, send,
};
use crate::support::Database;

/// Each of these raises it at COMMIT, so often.
async fn conflict_at_commit(db: &Database, times: u32) {
    let sql = format!(
        "CREATE SEQUENCE commits;
         CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             IF nextval('commits') <= {times} THEN RAISE EXCEPTION 'provoked' USING ERRCODE = '40001'; END IF;
             RETURN NULL;
         END $$;
         CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION conflict()"
    );
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&db.pool).await.unwrap();
}

#[tokio::test]
async fn a_run_after_a_conflict_has_the_whole_request_and_a_fresh_transaction() {
    let handler = async |State(runs): State<Count>, mut tx: IdempotentTx, request: http::Request<_>| {
        let run = runs.next();
        let written: i64 = sqlx::query_scalar("SELECT count(*) FROM ledger").fetch_one(&mut *tx).await?;
        assert_eq!(written, 0, "what an earlier run wrote");
        assert_eq!(request.headers()["x-trace"], "7");
        let body = axum::body::to_bytes(request.into_body(), 1000).await.unwrap();
        let amount: i64 = serde_json::from_slice(&body).expect("the whole body");
        crate::support::charge(&mut tx, amount).await?;
        Ok::<_, Error>((StatusCode::CREATED, run.to_string()))
    };
    let runs = Count::default();
    let routes = Router::new().route("/charges", post(handler)).with_state(runs.clone());
    let app = App::new(routes).await;
    conflict_at_commit(&app.db, 3).await;
    let first = seen(app.charge("order-1").header("x-trace", "7").send().await.unwrap()).await;
    assert_eq!((first.status.as_u16(), &*first.body, runs.get()), (201, &b"4"[..], 4));
    assert_replayed(&app, "order-1", first).await;
}

#[tokio::test]
async fn a_conflict_inside_of_the_handler_is_run_again_when_it_returns_the_error() {
    let runs = Count::default();
    let app = App::new(charges(&runs, async move |run, mut tx: IdempotentTx| {
        if let Some(code) = ["40001", "40P01"].get(run - 1) {
            let raise = format!("DO $$ BEGIN RAISE EXCEPTION 'provoked' USING ERRCODE = '{code}'; END $$");
            sqlx::raw_sql(AssertSqlSafe(raise)).execute(&mut *tx).await?;
        }
        Ok::<_, Error>((StatusCode::CREATED, run.to_string()))
    }))
    .await;
    let first = send(&app, "order-1").await;
    assert_eq!((first.status.as_u16(), &*first.body, runs.get()), (201, &b"3"[..], 3));
    assert_replayed(&app, "order-1", first).await;
}

#[tokio::test]
async fn when_there_were_enough_conflicts_the_client_may_send_it_again() {
    let db = Database::new().await;
    conflict_at_commit(&db, 3).await;
    let (idempotency, runs) = (db.idempotency().with_max_attempts(3), Count::default());
    let app = app_over(db, idempotency, charges(&runs, async |_, _| StatusCode::CREATED)).await;
    let response = app.charge("order-1").send().await.unwrap();
    assert_eq!(response.headers()["retry-after"], "1");
    assert_is_problem(&seen(response).await, 503, "unavailable");
    assert_eq!(runs.get(), 3);
    app.db.assert_untouched().await;
    assert_next_executes(&app, "order-1").await;
}

#[tokio::test]
async fn a_conflict_that_the_handler_answers_itself_is_not_run_again() {
    let runs = Count::default();
    let app = App::new(charges(&runs, async |run, mut tx: IdempotentTx| -> Response {
        use axum::response::IntoResponse;
        let raise = "DO $$ BEGIN RAISE EXCEPTION 'provoked' USING ERRCODE = '40001'; END $$";
        if run == 1 {
            sqlx::raw_sql(raise).execute(&mut *tx).await.unwrap_err();
            return (StatusCode::SERVICE_UNAVAILABLE, "busy").into_response();
        }
        StatusCode::CREATED.into_response()
    }))
    .await;
    let busy = send(&app, "order-1").await;
    assert_eq!(busy, Seen { status: StatusCode::SERVICE_UNAVAILABLE, replayed: false, body: "busy".into() });
    assert_eq!(runs.get(), 1);
    app.db.assert_untouched().await;
    assert_next_executes(&app, "order-1").await;
}

#[tokio::test]
async fn a_conflict_is_not_run_again_while_a_statement_of_the_handler_may_still_run() {
    let db = Database::new().await;
    let (runs, pool) = (Count::default(), db.pool.clone());
    let routes = charges(&runs, async move |_, mut tx: IdempotentTx| {
        // The conflict comes from elsewhere.
        let raise = "DO $$ BEGIN RAISE EXCEPTION 'provoked' USING ERRCODE = '40001'; END $$";
        let conflict = sqlx::raw_sql(raise).execute(&pool).await.unwrap_err();
        let slow = tx.execute("SELECT pg_sleep(300)");
        timeout(Duration::from_millis(50), slow).await.unwrap_err();
        Err::<StatusCode, _>(Error::from(conflict))
    });
    let idempotency = db.idempotency();
    let app = app_over(db, idempotency, routes).await;
    assert_is_problem(&send(&app, "order-1").await, 503, "unavailable");
    assert_eq!(runs.get(), 1, "it is not proven that nothing is left of it");
}

/// What two requests do that meet in their first runs.
#[derive(Clone)]
struct Meeting {
    first_runs: Arc<Barrier>,
    runs: Count,
}

impl Meeting {
    fn new() -> Self {
        Self { first_runs: Arc::new(Barrier::new(2)), runs: Count::default() }
    }

    /// Waits for the other one, in the first two runs.
    async fn meet(&self) {
        if self.runs.next() <= 2 {
            self.first_runs.wait().await;
        }
    }
}

/// Sends two requests at a time, which get 201 and are executed once.
async fn both_succeed(app: &App, bodies: [[&str; 2]; 2]) {
    let request = |body: [&str; 2]| app.charge(body[0]).json(&body).send();
    let firsts = tokio::join!(request(bodies[0]), request(bodies[1]));
    for (first, body) in [firsts.0, firsts.1].into_iter().zip(bodies) {
        let first = seen(first.unwrap()).await;
        assert_eq!((first.status.as_u16(), first.replayed), (201, false), "{first:?}");
        assert_eq!(seen(request(body).await.unwrap()).await, Seen { replayed: true, ..first });
    }
    assert_eq!((app.db.count("ledger").await, app.db.count("pgonce.keys").await), (2, 2));
}

#[tokio::test]
async fn two_requests_in_a_deadlock_both_succeed() {
    type Accounts = Json<[String; 2]>;
    let handler = async |State(meeting): State<Meeting>, mut tx: IdempotentTx, Json(accounts): Accounts| {
        sqlx::query("INSERT INTO ledger (amount) VALUES (1)").execute(&mut *tx).await?;
        let mut meet = Some(meeting);
        for account in accounts {
            let update = sqlx::query("UPDATE accounts SET balance = balance + 1 WHERE id = $1");
            update.bind(account).execute(&mut *tx).await?;
            if let Some(meeting) = meet.take() {
                meeting.meet().await;
            }
        }
        Ok::<_, Error>(StatusCode::CREATED)
    };
    let meeting = Meeting::new();
    let app = App::new(Router::new().route("/charges", post(handler)).with_state(meeting.clone())).await;
    both_succeed(&app, [["alice", "bob"], ["bob", "alice"]]).await;
    assert_eq!(meeting.runs.get(), 3, "one of them was the victim, once");
    assert_eq!((app.db.balance("alice").await, app.db.balance("bob").await), (1002, 2));
}

#[tokio::test]
async fn two_serializable_requests_that_skew_each_other_both_succeed() {
    // Each adds to one account what both have.
    let handler = async |State(meeting): State<Meeting>,
                         mut tx: IdempotentTx,
                         Json([account, _]): Json<[String; 2]>| {
        let sum = "SELECT sum(balance)::bigint FROM accounts";
        let sum: i64 = sqlx::query_scalar(sum).fetch_one(&mut *tx).await?;
        meeting.meet().await;
        let update = sqlx::query("UPDATE accounts SET balance = balance + $2 WHERE id = $1");
        update.bind(account).bind(sum).execute(&mut *tx).await?;
        sqlx::query("INSERT INTO ledger (amount) VALUES ($1)").bind(sum).execute(&mut *tx).await?;
        Ok::<_, Error>(StatusCode::CREATED)
    };
    let meeting = Meeting::new();
    let db = Database::new().await;
    let idempotency = db.idempotency().with_isolation(Isolation::Serializable);
    let routes = Router::new().route("/charges", post(handler)).with_state(meeting.clone());
    let app = app_over(db, idempotency, routes).await;
    both_succeed(&app, [["alice", ""], ["bob", ""]]).await;
    assert!(meeting.runs.get() >= 3, "one of them had to run again");
    // One after the other, in either order.
    let balances = (app.db.balance("alice").await, app.db.balance("bob").await);
    assert!([(2000, 2000), (3000, 1000)].contains(&balances), "{balances:?}");
}
