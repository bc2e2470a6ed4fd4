//! A whole exchange, disturbed everywhere: by the test kit, and by dropping its future at each of its await points.

use std::time::Duration;

use anyhow::ensure;
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::post;
use pgonce::{Error, Idempotency, IdempotencyKey, IdempotentTx, InFlight};
use sqlx::postgres::PgPoolOptions;
use tower::ServiceExt;

use crate::app::{charge, layer};
use crate::scene::{Count, behind, charges};
use crate::support::{Database, assert_at_rest, poll_at_most};

/// One exchange without a socket, so that it can be dropped: the answer's status and body, and whether it is a replay.
async fn exchange(idempotency: Idempotency, routes: Router, key: &str) -> (StatusCode, Vec<u8>, bool) {
    let request = Request::post("/charges")
        .header(header::AUTHORIZATION, "acct_42")
        .header(header::CONTENT_TYPE, "application/json")
        .header("idempotency-key", key)
        .body(Body::from("1"))
        .unwrap();
    let response: Response<Body> = behind(layer(idempotency), routes).oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    (head.status, body.into(), head.headers.contains_key("idempotent-replayed"))
}

fn route() -> Router {
    Router::new().route("/charges", post(charge))
}

#[tokio::test]
async fn the_test_kit_finds_nothing_in_a_handler_behind_the_layer() {
    let db = Database::new().await;
    let pool = PgPoolOptions::new().max_connections(10).connect_lazy_with(db.options());
    let report = pgonce::testing::once_per_key(&pool, async |idempotency, key: IdempotencyKey| {
        let (status, body, _) = exchange(idempotency, route(), key.as_str()).await;
        // With another one a client is not content.
        ensure!(status == StatusCode::CREATED, "{status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    })
    .effect("SELECT count(*) FROM ledger")
    .effect("SELECT balance FROM accounts WHERE id = 'bob'")
    .before_each("UPDATE accounts SET balance = 1000 WHERE id = 'alice'")
    .at_most(8)
    .await;
    assert!(report.cases() > 40, "{report:?}");
}

/// What is dropped, and what it comes to when it is not.
struct Sweep<R> {
    name: &'static str,
    routes: R,
    /// How often it is sent before it can be dropped.
    before: usize,
    status: StatusCode,
    charged: bool,
}

impl<R: Fn() -> Router> Sweep<R> {
    /// Of an exchange that charges.
    fn new(name: &'static str, routes: R) -> Self {
        Self { name, routes, before: 0, status: StatusCode::CREATED, charged: true }
    }

    fn fails_with(self, status: StatusCode) -> Self {
        Self { status, charged: false, ..self }
    }

    /// Drops the exchange after 0 polls, after 1, … until it completes. Then everything is at rest, and a retry does what is
    /// left to do.
    async fn run(self) {
        let Self { name, routes, before, status, charged } = self;
        let db = Database::new().await;
        let idempotency = Idempotency::new(db.forwarded_pool().await)
            .with_in_flight(InFlight::Wait(Duration::from_secs(60)));
        let mut ledger = 0;
        for polls in 0.. {
            let case = format!("{name}, {polls} polls");
            // Enough for this one.
            sqlx::raw_sql("UPDATE accounts SET balance = 1000 WHERE id = 'alice'")
                .execute(&db.pool)
                .await
                .unwrap();
            let key = format!("{name}/{polls}");
            let exchange = || exchange(idempotency.clone(), routes(), &key);
            for _ in 0..before {
                assert_eq!(exchange().await.0, status, "{case}");
            }
            let answer = poll_at_most(exchange(), polls).await;
            assert_at_rest(&db, idempotency.pool(), &case).await;
            // Together or not at all.
            let committed = db.count("ledger").await - ledger;
            let stored = sqlx::query_scalar::<_, i64>("SELECT count(*) FROM pgonce.keys WHERE key = $1");
            let stored = stored.bind(&key).fetch_one(&db.pool).await.unwrap();
            assert_eq!(committed, if charged { stored } else { 0 }, "{case}: torn");

            let (retry, body, replayed) = exchange().await;
            let body = String::from_utf8_lossy(&body);
            assert_eq!((retry, replayed), (status, stored == 1), "{case}: {body}");
            ledger += i64::from(charged);
            assert_eq!(db.count("ledger").await, ledger, "{case}");
            if let Some((answer, ..)) = answer {
                assert_eq!(answer, status, "{case}");
                assert!(polls > 5, "{polls} polls cannot have been all await points");
                return;
            }
        }
    }
}

#[tokio::test]
async fn a_charge_can_be_dropped_anywhere() {
    Sweep::new("charge", route).run().await;
}

#[tokio::test]
async fn a_replay_can_be_dropped_anywhere() {
    Sweep { before: 1, ..Sweep::new("replay", route) }.run().await;
}

#[tokio::test]
async fn a_recorded_failure_can_be_dropped_anywhere() {
    let declines = || charges(&Count::default(), async |_, _| StatusCode::PAYMENT_REQUIRED);
    Sweep::new("declined", declines).fails_with(StatusCode::PAYMENT_REQUIRED).run().await;
}

#[tokio::test]
async fn an_error_can_be_dropped_anywhere() {
    let fails = || charges(&Count::default(), async |_, _| StatusCode::BAD_GATEWAY);
    Sweep::new("error", fails).fails_with(StatusCode::BAD_GATEWAY).run().await;
}

#[tokio::test]
async fn a_refused_response_can_be_dropped_anywhere() {
    let streams = || {
        charges(&Count::default(), async |_, _| {
            let pieces = futures_util::stream::iter([Ok::<_, std::convert::Infallible>("1")]);
            Body::from_stream(pieces).into_response()
        })
    };
    Sweep::new("stream", streams).fails_with(StatusCode::INTERNAL_SERVER_ERROR).run().await;
}

#[tokio::test]
async fn a_run_after_a_conflict_can_be_dropped_anywhere() {
    let conflicts = || {
        charges(&Count::default(), async |run, mut tx: IdempotentTx| {
            if run == 1 {
                sqlx::raw_sql("DO $$ BEGIN RAISE EXCEPTION 'provoked' USING ERRCODE = '40001'; END $$")
                    .execute(&mut *tx)
                    .await?;
            }
            Ok::<_, Error>(StatusCode::CREATED)
        })
    };
    Sweep::new("conflict", conflicts).run().await;
}
