//! Requests behind the layer.

use std::io;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::routing::post;
use axum::{Json, Router};
use futures_util::stream;
use pgonce::{Idempotency, IdempotencyLayer, IdempotentTx};
use tower::ServiceExt;

use crate::meter::Meter;
use crate::outcomes::claimed;
use crate::support::deed::{Deed, commit_deed};
use crate::support::{charge, operation, scope};

crate::scenarios![a_request_comes_to_one_outcome:requests];

/// Charges, then answers what the path says.
fn app_over(idempotency: Idempotency) -> Router {
    let layer = IdempotencyLayer::new(idempotency.with_max_attempts(2), |_| Some(scope()));
    Router::new()
        .route(
            "/charged",
            post(async |mut tx: IdempotentTx| Ok::<_, pgonce::Error>(Json(charge(&mut tx, 1).await?))),
        )
        .route("/declined", post(async |_: IdempotentTx| StatusCode::PAYMENT_REQUIRED))
        .route("/broken", post(async |_: IdempotentTx| StatusCode::INTERNAL_SERVER_ERROR))
        .route(
            "/streaming",
            post(async |_: IdempotentTx| Body::from_stream(stream::pending::<io::Result<Vec<u8>>>())),
        )
        .route(
            "/conflict",
            post(async |mut tx: IdempotentTx| crate::outcomes::conflict(&mut tx).await.map(Json)),
        )
        .route("/escape", post(escape))
        .route_layer(layer)
}

async fn escape(mut tx: IdempotentTx) -> Result<(), pgonce::Error> {
    commit_deed(&mut tx, Deed::Rollback).await
}

async fn send(app: &Router, path: &str, key: &str) -> StatusCode {
    let request = Request::post(path).header("idempotency-key", format!("\"{key}\""));
    app.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap().status()
}

async fn requests(meter: &Meter) {
    let db = meter.database().await;
    let app = app_over(db.idempotency());
    for (path, key, status, outcome) in [
        ("/charged", "a", 200, "executed"),
        ("/charged", "a", 200, "replayed"),
        ("/declined", "a", 422, "fingerprint_mismatch"),
        ("/declined", "b", 402, "failed_recorded"),
        ("/declined", "b", 402, "replayed_failure"),
        ("/broken", "c", 500, "released"),
        ("/streaming", "d", 500, "result_refused"),
        ("/conflict", "e", 503, "conflict"),
        ("/escape", "f", 500, "atomicity_violation"),
    ] {
        let got = meter.comes_to(&[("http", outcome, 1)], send(&app, path, key)).await;
        assert_eq!(got.as_u16(), status, "{path} {key}");
    }
    let first = claimed(&db.idempotency()).await;
    let got =
        meter.comes_to(&[("http", "in_flight", 1)], send(&app, "/charged", operation().key().as_str())).await;
    assert_eq!(got, StatusCode::CONFLICT);
    first.release().await;
    // What has no key is no operation yet.
    meter.comes_to(&[], send(&app, "/charged", "")).await;
    let away = Idempotency::new(db.pool_of(1));
    away.pool().close().await;
    let app = app_over(away);
    let got = meter.comes_to(&[("http", "database_error", 1)], send(&app, "/charged", "g")).await;
    assert!(got.is_server_error());
}
