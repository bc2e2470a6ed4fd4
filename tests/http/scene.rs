//! What the tests of the transaction have in common: a handler that charges, and clients that go on or hang up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use axum::Router;
use axum::middleware::from_fn;
use axum::response::IntoResponse;
use axum::routing::post;
use pgonce::testing::{Message, Side};
use pgonce::{Error, Idempotency, IdempotencyLayer, IdempotentTx};
use reqwest::StatusCode;
use sqlx::{Postgres, Transaction};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::app::{App, Seen, authenticate, layer, seen};
use crate::support::{self, Database};

/// Far more than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a handler ran, or how many are inside of it.
#[derive(Clone, Default)]
pub struct Count(Arc<AtomicUsize>);

impl Count {
    pub fn get(&self) -> usize {
        self.0.load(SeqCst)
    }

    /// The next number, from 1 on.
    pub fn next(&self) -> usize {
        self.0.fetch_add(1, SeqCst) + 1
    }

    /// One more, until the guard is dropped.
    pub fn inside(&self) -> Inside {
        self.next();
        Inside(self.clone())
    }

    pub async fn reaches(&self, number: usize) {
        until(|| self.get() == number).await;
    }
}

pub struct Inside(Count);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, SeqCst);
    }
}

/// Waits until this is so.
pub async fn until(so: impl Fn() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < PATIENCE, "it never came to that");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// `POST /charges`: charges 42, then does this. It gets the number of the run.
pub fn charges<F, Fut, R>(runs: &Count, then: F) -> Router
where
    F: FnOnce(usize, IdempotentTx) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = R> + Send,
    R: IntoResponse + 'static,
{
    let runs = runs.clone();
    let handler = async move |mut tx: IdempotentTx| {
        let run = runs.next();
        support::charge(&mut tx, 42).await?;
        Ok::<_, Error>(then(run, tx).await.into_response())
    };
    Router::new().route("/charges", post(handler))
}

/// These routes over this pool, behind the layer.
pub fn behind(layer: IdempotencyLayer, routes: Router) -> Router {
    routes.route_layer(layer).layer(from_fn(authenticate))
}

/// An app whose layer has this [`Idempotency`].
pub async fn app_over(db: Database, idempotency: Idempotency, routes: Router) -> App {
    App::serving(db, behind(layer(idempotency), routes)).await
}

pub async fn send(app: &App, key: &str) -> Seen {
    seen(app.charge(key).send().await.unwrap()).await
}

/// Sends it again while the key is in flight, and while it takes too long for a time-out.
pub async fn send_patiently(app: &App, key: &str) -> Seen {
    let started = Instant::now();
    loop {
        let seen = send(app, key).await;
        if !matches!(seen.status, StatusCode::CONFLICT | StatusCode::REQUEST_TIMEOUT) {
            return seen;
        }
        assert!(started.elapsed() < PATIENCE, "never answered: {seen:?}");
    }
}

/// The key is free: the next request executes, at once. It is the only execution, and the one after that a replay.
pub async fn assert_next_executes(app: &App, key: &str) {
    let next = send(app, key).await;
    assert_eq!((next.status, next.replayed), (StatusCode::CREATED, false), "{next:?}");
    assert_replayed(app, key, next).await;
}

/// It was executed once, with this response, which a retry gets.
pub async fn assert_replayed(app: &App, key: &str, first: Seen) {
    assert_eq!(send(app, key).await, Seen { replayed: true, ..first });
    app.db.assert_charged_once().await;
}

/// A problem of this kind: the last part of its type.
pub fn assert_is_problem(seen: &Seen, status: u16, kind: &str) {
    assert_eq!(seen.status.as_u16(), status, "{seen:?}");
    let problem: serde_json::Value = serde_json::from_slice(&seen.body).expect("a problem");
    assert!(problem["type"].as_str().unwrap().ends_with(&format!("#{kind}")), "{problem}");
}

/// Holds alice's account: who charges it waits.
pub async fn hold_alice(db: &Database) -> Transaction<'static, Postgres> {
    let mut holder = db.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM accounts WHERE id = 'alice' FOR UPDATE").execute(&mut *holder).await.unwrap();
    holder
}

/// Waits until so many sessions wait for a lock.
pub const ONE_WAITS: &str = "\
    SELECT count(*) = 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
pub const NONE_WAITS: &str = "\
    SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";

pub fn is_commit(message: &Message) -> bool {
    message.side == Side::Client && message.label == "Query: COMMIT"
}

/// A client on a bare socket, which hangs up when it is dropped.
pub struct Raw(TcpStream);

impl Raw {
    /// Sends the same as [`App::charge`].
    pub async fn charge(app: &App, key: &str) -> Self {
        Self::post(app, key, "content-length: 2\r\n", "42").await
    }

    /// Sends a charge with these headers and what is there of its body.
    pub async fn post(app: &App, key: &str, headers: &str, body: impl AsRef<[u8]>) -> Self {
        let address = app.url("");
        let mut raw = Self(TcpStream::connect(address.trim_start_matches("http://")).await.unwrap());
        let head = format!(
            "POST /charges HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: acct_42\r\n\
             idempotency-key: \"{key}\"\r\ncontent-type: application/json\r\n{headers}\r\n"
        );
        raw.write(head).await;
        raw.write(body).await;
        raw
    }

    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Nothing more is sent, but an answer would be read.
    pub async fn end_writing(&mut self) {
        self.0.shutdown().await.unwrap();
    }

    /// The first byte of the response. None when none comes in this time.
    pub async fn first_byte(&mut self, within: Duration) -> Option<u8> {
        timeout(within, self.0.read_u8()).await.ok().map(|byte| byte.expect("a response"))
    }

    /// All that comes until the server hangs up.
    pub async fn rest(mut self) -> String {
        let mut text = Vec::new();
        // A server that does not read the rest of a request may reset the connection after its response.
        drop(timeout(PATIENCE, self.0.read_to_end(&mut text)).await.expect("the server hangs up"));
        String::from_utf8_lossy(&text).into_owned()
    }
}
