//! How the handler takes the transaction, and what it does with it.

use axum::Router;
use axum::extract::{FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use axum::routing::{any, post};
use pgonce::{Error, IdempotentTx};
use tokio::sync::broadcast;

use crate::app::{App, charge, layer, seen};
use crate::scene::{Count, assert_is_problem, assert_next_executes, behind, charges, send};
use crate::support;

#[tokio::test]
async fn a_handler_that_never_takes_the_transaction_is_replayed_all_the_same() {
    for status in [StatusCode::CREATED, StatusCode::PAYMENT_REQUIRED] {
        let runs = Count::default();
        let handler = {
            let runs = runs.clone();
            async move || (status, runs.next().to_string())
        };
        let app = App::new(Router::new().route("/charges", post(handler))).await;
        for replayed in [false, true, true] {
            let seen = send(&app, "order-1").await;
            assert_eq!((seen.status, seen.replayed, seen.body), (status, replayed, b"1".to_vec()));
        }
        assert_eq!((runs.get(), app.db.count("pgonce.keys").await), (1, 1));
    }
}

async fn take(parts: &mut Parts) -> Result<IdempotentTx, Response> {
    IdempotentTx::from_request_parts(parts, &()).await
}

#[tokio::test]
async fn the_transaction_can_be_let_go_and_taken_again_and_a_failure_undoes_all_of_it() {
    for status in [StatusCode::CREATED, StatusCode::PAYMENT_REQUIRED] {
        let handler = async move |request: Request| {
            let (mut parts, _) = request.into_parts();
            let id = support::charge(&mut *take(&mut parts).await?, 40).await.unwrap();
            // The same one: it sees what was written.
            let mut again = take(&mut parts).await?;
            let seen: i64 = sqlx::query_scalar("SELECT id FROM ledger").fetch_one(&mut *again).await.unwrap();
            assert_eq!(seen, id);
            support::charge(&mut again, 2).await.unwrap();
            Ok::<_, Response>(status)
        };
        let app = App::new(Router::new().route("/charges", post(handler))).await;
        for replayed in [false, true] {
            let seen = send(&app, "order-1").await;
            assert_eq!((seen.status, seen.replayed), (status, replayed));
        }
        let (ledger, alice) = if status.is_success() { (2, 958) } else { (0, 1000) };
        assert_eq!((app.db.count("ledger").await, app.db.balance("alice").await), (ledger, alice));
        assert_eq!(app.db.count("pgonce.keys").await, 1);
    }
}

#[tokio::test]
async fn taking_it_twice_at_a_time_is_refused_and_nothing_is_committed() {
    let twice = async |_one: IdempotentTx, _other: IdempotentTx| StatusCode::CREATED;
    // Also when something was written before.
    let later = async |mut tx: IdempotentTx, request: Request| {
        support::charge(&mut tx, 42).await.unwrap();
        take(&mut request.into_parts().0).await.map(|_| StatusCode::CREATED)
    };
    for handler in [post(twice), post(later)] {
        let app = App::new(Router::new().route("/charges", handler)).await;
        for _ in 0..2 {
            assert_is_problem(&send(&app, "order-1").await, 500, "internal");
            app.db.assert_untouched().await;
        }
    }
}

/// Starts a task that keeps what it gets until the test lets it go on.
fn keep<T: Send + 'static>(kept: T, let_go: &broadcast::Sender<()>) {
    let mut let_go = let_go.subscribe();
    tokio::spawn(async move {
        let _ = let_go.recv().await;
        drop(kept);
    });
}

#[tokio::test]
async fn a_transaction_that_a_task_still_holds_is_not_committed() {
    let (let_go, _) = broadcast::channel(1);
    let holder = let_go.clone();
    let routes = charges(&Count::default(), async move |run, tx| {
        if run == 1 {
            keep(tx, &holder);
        }
        StatusCode::CREATED
    });
    let app = App::new(routes).await;
    assert_is_problem(&send(&app, "order-1").await, 500, "internal");
    app.db.assert_untouched().await;
    // As long as it holds it.
    assert_is_problem(&send(&app, "order-1").await, 409, "in-flight");
    let_go.send(()).unwrap();
    app.db.wait_until_idle().await;
    assert_next_executes(&app, "order-1").await;
}

#[tokio::test]
async fn extensions_that_a_task_keeps_do_not_keep_the_transaction() {
    let (let_go, _) = broadcast::channel(1);
    let (let_extensions_go, _) = broadcast::channel(1);
    let (holder, keeper) = (let_go.clone(), let_extensions_go.clone());
    let runs = Count::default();
    let handler = async move |mut tx: IdempotentTx, request: Request| {
        support::charge(&mut tx, 42).await?;
        keep(request, &keeper);
        if runs.next() == 1 {
            keep(tx, &holder);
        }
        Ok::<_, Error>(StatusCode::CREATED)
    };
    let app = App::new(Router::new().route("/charges", post(handler))).await;
    assert_is_problem(&send(&app, "order-1").await, 500, "internal");
    let_go.send(()).unwrap();
    app.db.wait_until_idle().await;
    assert_next_executes(&app, "order-1").await;
    drop(let_extensions_go);
}

#[tokio::test]
async fn who_takes_it_after_the_response_gets_none() {
    let (let_go, _) = broadcast::channel(1);
    let (tell, mut told) = tokio::sync::mpsc::channel(1);
    let goes = let_go.clone();
    let handler = async move |request: Request| {
        let mut goes = goes.subscribe();
        tokio::spawn(async move {
            goes.recv().await.unwrap();
            let taken = take(&mut request.into_parts().0).await;
            tell.send(taken.map(drop).map_err(|refusal| refusal.status())).await.unwrap();
        });
        StatusCode::CREATED
    };
    let app = App::new(Router::new().route("/charges", post(handler))).await;
    let first = send(&app, "order-1").await;
    let_go.send(()).unwrap();
    assert_eq!(told.recv().await.unwrap(), Err(StatusCode::INTERNAL_SERVER_ERROR));
    assert_eq!(send(&app, "order-1").await, crate::app::Seen { replayed: true, ..first });
}

#[tokio::test]
async fn without_a_layer_or_for_another_method_there_is_no_transaction() {
    let route = || Router::new().route("/charges", any(charge));
    let app = App::of(|db| behind(layer(db.idempotency()), route())).await;
    let get = app.client.get(app.url("/charges")).header("authorization", "acct_42").json(&42);
    let put = app.client.put(app.url("/charges")).header("authorization", "acct_42").json(&42);
    for request in [get, put] {
        let request = request.header("idempotency-key", "order-1");
        assert_is_problem(&seen(request.send().await.unwrap()).await, 500, "internal");
    }
    app.db.assert_untouched().await;

    let app = App::of(|_| route()).await;
    assert_is_problem(&send(&app, "order-1").await, 500, "internal");
    app.db.assert_untouched().await;
}

#[tokio::test]
async fn another_method_that_is_covered_has_one() {
    let routes = Router::new().route("/charges", any(charge));
    let app =
        App::with(routes, |layer| layer.with_methods([axum::http::Method::PUT, axum::http::Method::POST]))
            .await;
    let put = || app.client.put(app.url("/charges")).header("authorization", "acct_42").json(&42);
    for replayed in [false, true] {
        let seen = seen(put().header("idempotency-key", "order-1").send().await.unwrap()).await;
        assert_eq!((seen.status.as_u16(), seen.replayed), (201, replayed));
    }
    app.db.assert_charged_once().await;
}

#[tokio::test]
async fn two_layers_on_one_route_are_refused() {
    let app = App::of(|db| {
        let layer = layer(db.idempotency());
        behind(layer.clone(), charges(&Count::default(), async |_, _| StatusCode::CREATED).route_layer(layer))
    })
    .await;
    for _ in 0..2 {
        assert_is_problem(&send(&app, "order-1").await, 500, "internal");
        app.db.assert_untouched().await;
    }
}
