//! The service that is measured: one charge, made in three ways.

use std::net::SocketAddr;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use pgonce::{Idempotency, IdempotencyLayer, IdempotentTx, Scope};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use tokio::net::TcpListener;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// A transaction written by hand, without a key.
    Plain,
    /// The same behind the layer, each request with a new key.
    Keyed,
    /// The same, each request with a key that was used before.
    Replayed,
    /// No transaction at all: the most that HTTP gives.
    Empty,
}

impl Variant {
    pub const ALL: [Self; 4] = [Self::Plain, Self::Keyed, Self::Replayed, Self::Empty];

    pub fn path(self) -> &'static str {
        match self {
            Self::Plain => "/plain",
            Self::Keyed | Self::Replayed => "/keyed",
            Self::Empty => "/empty",
        }
    }

    /// The keys that `requests.lua` is to send.
    pub fn keys(self) -> &'static str {
        match self {
            Self::Plain | Self::Empty => "none",
            Self::Keyed => "fresh",
            Self::Replayed => "known",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::Plain => "(a) hand-written transaction, no key",
            Self::Keyed => "(b) the layer, a new key for each request",
            Self::Replayed => "(c) the layer, replays",
            Self::Empty => "(d) an empty handler: HTTP alone",
        }
    }
}

#[derive(Deserialize)]
struct ChargeRequest {
    account: i64,
    amount: i64,
}

#[derive(Serialize)]
struct Receipt {
    charge: i64,
}

type Answer = Result<(StatusCode, Json<Receipt>), pgonce::Error>;

async fn charge(conn: &mut PgConnection, request: ChargeRequest) -> Result<Receipt, sqlx::Error> {
    sqlx::query("UPDATE accounts SET balance = balance - $2 WHERE id = $1")
        .bind(request.account)
        .bind(request.amount)
        .execute(&mut *conn)
        .await?;
    let charge = sqlx::query_scalar("INSERT INTO ledger (account, amount) VALUES ($1, $2) RETURNING id")
        .bind(request.account)
        .bind(request.amount)
        .fetch_one(conn)
        .await?;
    Ok(Receipt { charge })
}

async fn plain(State(pool): State<PgPool>, Json(request): Json<ChargeRequest>) -> Answer {
    let mut transaction = pool.begin().await?;
    let receipt = charge(&mut transaction, request).await?;
    transaction.commit().await?;
    Ok((StatusCode::CREATED, Json(receipt)))
}

async fn keyed(mut tx: IdempotentTx, Json(request): Json<ChargeRequest>) -> Answer {
    let receipt = charge(&mut tx, request).await?;
    Ok((StatusCode::CREATED, Json(receipt)))
}

async fn empty(Json(request): Json<ChargeRequest>) -> Answer {
    Ok((StatusCode::CREATED, Json(Receipt { charge: request.account })))
}

/// Creates the tables and serves.
pub async fn serve(pool: PgPool) -> anyhow::Result<SocketAddr> {
    pgonce::migrate(&pool).await?;
    sqlx::raw_sql(
        "CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 50);
         CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account bigint NOT NULL, amount bigint NOT NULL);
         INSERT INTO accounts SELECT id, 0 FROM generate_series(1, 10000) AS id;
         ANALYZE;",
    )
    .execute(&pool)
    .await?;
    let layer = IdempotencyLayer::new(Idempotency::new(pool.clone()), |_| Scope::new("acct_42/charges").ok());
    let app = Router::new()
        .route("/keyed", post(keyed))
        .route_layer(layer)
        .route("/plain", post(plain))
        .route("/empty", post(empty))
        .with_state(pool);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(address)
}
