//! The answer to COMMIT is lost: the same request still gets its response, and a request without a key, too.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use pgonce::Idempotency;
use pgonce::testing::{Edge, Fault, Proxy};
use reqwest::RequestBuilder;
use sqlx::postgres::PgPoolOptions;

use crate::app::{App, layer, seen};
use crate::scene::{
    Count, assert_is_problem, assert_replayed, behind, charges, is_commit, send, send_patiently,
};
use crate::support::Database;

/// An app whose COMMIT something happens to.
struct Unlucky {
    app: App,
    proxy: Arc<Proxy>,
    runs: Count,
}

impl Unlucky {
    async fn new(fault: Fault, edge: Edge, commit_timeout: Duration) -> Self {
        let db = Database::new().await;
        let proxy = Proxy::start(&db.options()).await.unwrap();
        proxy.arm(fault, edge, is_commit);
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(proxy.options());
        let idempotency = Idempotency::new(pool).with_commit_timeout(commit_timeout);
        let runs = Count::default();
        // Another response in each run.
        let routes = charges(&runs, async |run, _| (StatusCode::CREATED, run.to_string()));
        let layer = layer(idempotency).with_optional_key();
        let app = App::serving(db, behind(layer, routes)).await;
        Self { app, proxy: Arc::new(proxy), runs }
    }

    fn without_key(&self) -> RequestBuilder {
        self.app.post("/charges").json(&42)
    }
}

/// More than it takes to find out.
const ENOUGH: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_lost_commit_is_found_out_and_the_client_sees_nothing_of_it() {
    for (edge, runs) in [(Edge::After, 1), (Edge::Before, 2)] {
        let Unlucky { app, proxy, runs: ran } = Unlucky::new(Fault::Cut, edge, ENOUGH).await;
        let first = send(&app, "order-1").await;
        assert_eq!((first.status.as_u16(), first.replayed), (201, false), "{edge:?}");
        assert_eq!(first.body, runs.to_string().into_bytes(), "{edge:?}: the one that was committed");
        assert_eq!((proxy.hits(), ran.get()), (1, runs), "{edge:?}");
        assert_replayed(&app, "order-1", first).await;
        assert_eq!(ran.get(), runs, "{edge:?}");
    }
}

#[tokio::test]
async fn a_commit_that_cannot_be_found_out_is_the_retrys_to_find_out() {
    for (edge, runs) in [(Edge::After, 1), (Edge::Before, 2)] {
        let unlucky = Unlucky::new(Fault::Outage, edge, Duration::from_secs(1)).await;
        let Unlucky { app, proxy, runs: ran } = &unlucky;
        let response = app.charge("order-1").send().await.unwrap();
        assert_eq!(response.headers()["retry-after"], "1");
        let unknown = seen(response).await;
        assert_is_problem(&unknown, 503, "unavailable");
        assert_eq!(ran.get(), 1, "not proven dead");
        proxy.heal();
        app.db.wait_until_idle().await;
        let retry = send_patiently(app, "order-1").await;
        assert_eq!((retry.status.as_u16(), retry.replayed), (201, edge == Edge::After));
        assert_eq!(retry.body, runs.to_string().into_bytes(), "{edge:?}");
        assert_replayed(app, "order-1", retry).await;
        assert_eq!(ran.get(), runs, "{edge:?}");
    }
}

#[tokio::test]
async fn without_a_key_the_writes_commit_first_and_nothing_can_be_replayed() {
    let unlucky = Unlucky::new(Fault::Cut, Edge::Before, ENOUGH).await;
    unlucky.proxy.heal();
    let first = unlucky.without_key().send().await.unwrap();
    assert_eq!(first.status(), 201);
    assert!(!first.headers().contains_key("idempotency-key-expires"), "there is nothing to keep");
    unlucky.app.db.assert_charged_once().await;
    let row = "pgonce.keys WHERE convert_from(result, 'UTF8') = 'null'
               AND expires_at = created_at + interval '1 hour'";
    assert_eq!(unlucky.app.db.count(row).await, 1);
    assert_eq!(seen(unlucky.without_key().send().await.unwrap()).await.body, b"2");
    assert_eq!(unlucky.app.db.count("ledger").await, 2);
}

#[tokio::test]
async fn without_a_key_a_failure_is_undone_and_an_error_rolled_back() {
    let routes = charges(&Count::default(), async |run, _| match run {
        1 => StatusCode::PAYMENT_REQUIRED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    });
    let app = App::with(routes, |layer| layer.with_optional_key()).await;
    for (status, keys) in [(402, 1), (500, 1)] {
        let seen = seen(app.post("/charges").json(&42).send().await.unwrap()).await;
        assert_eq!((seen.status.as_u16(), seen.replayed), (status, false));
        assert_eq!((app.db.count("ledger").await, app.db.count("pgonce.keys").await), (0, keys));
    }
}

#[tokio::test]
async fn without_a_key_a_lost_commit_is_found_out_too() {
    for (edge, runs) in [(Edge::After, 1), (Edge::Before, 2)] {
        let unlucky = Unlucky::new(Fault::Cut, edge, ENOUGH).await;
        let first = seen(unlucky.without_key().send().await.unwrap()).await;
        assert_eq!((first.status.as_u16(), first.body), (201, runs.to_string().into_bytes()));
        assert_eq!((unlucky.proxy.hits(), unlucky.runs.get()), (1, runs), "{edge:?}");
        unlucky.app.db.assert_charged_once().await;
    }
}

#[tokio::test]
async fn without_a_key_nobody_is_asked_to_send_again_what_may_be_committed() {
    let unlucky = Unlucky::new(Fault::Outage, Edge::After, Duration::from_secs(1)).await;
    let response = unlucky.without_key().send().await.unwrap();
    assert!(!response.headers().contains_key("retry-after"));
    assert_is_problem(&seen(response).await, 500, "internal");
    // Rightly so.
    unlucky.app.db.wait_until("SELECT count(*) = 1 FROM ledger").await;
}
