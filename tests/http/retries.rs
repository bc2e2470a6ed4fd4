//! A client that retries, over a network that loses: each charge is made exactly once.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::routing::post;
use axum::{Json, Router};
use futures_util::future::{join_all, try_join_all};
use pgonce::{Idempotency, IdempotencyLayer, IdempotentTx, Scope};
use reqwest::StatusCode;
use reqwest_middleware::ClientWithMiddleware;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::flaky::{Fate, Flaky};
use crate::retrying_client::retrying_client;
use crate::support::{Database, charge};

const CHARGES: usize = 500;
const CLIENTS: usize = 16;
const CONNECTIONS: u32 = 4;

/// Shorter than between real machines.
const PAUSES: Range<Duration> = Duration::from_millis(5)..Duration::from_millis(50);
const GIVE_UP: Duration = Duration::from_secs(60);

/// Every tenth charge is sent by two at once: somebody has clicked twice.
const CLICKED_TWICE: usize = 10;

#[derive(Deserialize, Serialize)]
struct ChargeRequest {
    amount: i64,
}

#[derive(Debug, Deserialize, PartialEq, Serialize)]
struct Receipt {
    key: String,
    ledger: i64,
}

fn key(n: usize) -> String {
    format!("charge-{n}")
}

/// Altogether less than alice has.
fn amount(n: usize) -> i64 {
    1 + n as i64 % 3
}

/// Nothing in the database keeps it from charging twice, except the layer.
async fn post_charge(
    mut tx: IdempotentTx,
    Json(request): Json<ChargeRequest>,
) -> Result<(StatusCode, Json<Receipt>), pgonce::Error> {
    let ledger = charge(&mut tx, request.amount).await?;
    let key = tx.operation().key().to_string();
    sqlx::query("INSERT INTO charges VALUES ($1, $2)").bind(&key).bind(ledger).execute(&mut *tx).await?;
    Ok((StatusCode::CREATED, Json(Receipt { key, ledger })))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_500_charges_is_made_once_by_clients_that_retry_over_a_network_that_loses_answers() {
    let seed = match std::env::var("PGONCE_SEED") {
        Ok(seed) => seed.parse().expect("PGONCE_SEED is a number"),
        Err(_) => fastrand::u32(..).into(),
    };
    println!("again: PGONCE_SEED={seed} cargo test --all-features --test http retries");

    let db = Database::new().await;
    sqlx::query("CREATE TABLE charges (key text NOT NULL, ledger bigint NOT NULL)")
        .execute(&db.pool)
        .await
        .unwrap();
    let idempotency = Idempotency::new(db.pool_of(CONNECTIONS));
    let layer = IdempotencyLayer::new(idempotency, |_| Scope::new("acct_42").ok());
    let app = Router::new().route("/charges", post(post_charge)).route_layer(layer);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let server = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let (proxy, address) = Flaky::start(server, seed).await;

    let started = Instant::now();
    let receipts = charge_all(format!("http://{address}/charges")).await;
    let took = started.elapsed();

    // Exactly once, in the ledger and in the balances.
    let sent: i64 = (0..CHARGES).map(amount).sum();
    assert_eq!((db.balance("alice").await, db.balance("bob").await), (1000 - sent, sent));
    assert_eq!(db.count("ledger").await, CHARGES as i64);
    let made: Vec<(String, i64, i64)> =
        sqlx::query_as("SELECT key, ledger, amount FROM charges JOIN ledger ON id = ledger")
            .fetch_all(&db.pool)
            .await
            .unwrap();
    assert_eq!(made.len(), CHARGES);
    let made: BTreeMap<_, _> =
        made.into_iter().map(|(key, ledger, amount)| (key, (ledger, amount))).collect();
    let expected =
        receipts.iter().enumerate().map(|(n, receipt)| (key(n), (receipt.ledger, amount(n)))).collect();
    assert_eq!(made, expected, "what each client was told is what was made");

    // And what is stored is what they were told.
    let stored: Vec<(String, String)> = sqlx::query_as(
        "SELECT key, convert_from(result, 'UTF8')::json ->> 'body' FROM pgonce.keys WHERE state = 'completed'",
    )
    .fetch_all(&db.pool)
    .await
    .unwrap();
    assert_eq!((stored.len(), db.count("pgonce.keys").await), (CHARGES, CHARGES as i64));
    for (key, body) in stored {
        let receipt: Receipt = serde_json::from_str(&body).unwrap();
        assert!(receipt.key == key && receipts.contains(&receipt), "{key}: {body}");
    }

    // It was as bad as it should be, and it was the replays that saved it.
    let counts = proxy.counts();
    println!("{CHARGES} charges in {took:.1?}\n{:#?}\n{:#?}", counts.fates, counts.responses);
    for fate in Fate::ALL {
        assert!(counts.of(fate) >= 10, "{fate:?}: {counts:?}");
    }
    let responses: u32 = counts.responses.values().sum();
    let lost = counts.of(Fate::LoseResponse) + counts.of(Fate::CutResponse);
    assert!(lost * 3 >= responses, "{lost} of {responses} responses were lost");
    let seen = |response| counts.responses.get(&response).copied().unwrap_or_default() as usize;
    assert!(seen((201, true)) > CHARGES / 3, "{counts:?}");
    assert!(seen((201, false)) <= CHARGES, "more first responses than charges: {counts:?}");
    assert!(seen((409, false)) > 0, "no duplicate was in flight: {counts:?}");
}

/// Some clients share the charges out, each sending one after the other. Returns the receipts, in order.
async fn charge_all(url: String) -> Vec<Receipt> {
    let url = Arc::new(url);
    let next = Arc::new(AtomicUsize::new(0));
    let clients = (0..CLIENTS).map(|_| {
        let (url, next) = (Arc::clone(&url), Arc::clone(&next));
        let client = retrying_client(PAUSES, GIVE_UP).unwrap();
        tokio::spawn(async move {
            let mut receipts = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= CHARGES {
                    return receipts;
                }
                let clicks = if n.is_multiple_of(CLICKED_TWICE) { 2 } else { 1 };
                let mut answers = join_all((0..clicks).map(|_| send(&client, &url, n))).await;
                let receipt = answers.pop().expect("one at least");
                assert!(answers.iter().all(|other| *other == receipt), "{answers:?} and {receipt:?}");
                receipts.push((n, receipt));
            }
        })
    });
    let receipts: BTreeMap<_, _> = try_join_all(clients).await.unwrap().into_iter().flatten().collect();
    receipts.into_values().collect()
}

/// Sends the charge until it has a receipt.
async fn send(client: &ClientWithMiddleware, url: &str, n: usize) -> Receipt {
    let request = client.post(url).header("idempotency-key", format!("\"{}\"", key(n)));
    let response = request.json(&ChargeRequest { amount: amount(n) }).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::CREATED, "{n}");
    response.json().await.unwrap()
}
