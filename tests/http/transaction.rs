//! The handler's writes, the key and the response commit together, before the first byte leaves.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::post;
use pgonce::http::Ending;
use pgonce::{Error, Idempotency, IdempotentTx, Operation};
use tokio::sync::Semaphore;

use crate::app::{App, charge};
use crate::scene::{Count, Raw, app_over, assert_is_problem, assert_next_executes, charges, send};
use crate::support::{self, Database};

const COMMITTED: &str = "pgonce.keys WHERE state = 'completed'";

#[tokio::test]
async fn no_byte_of_the_response_leaves_before_the_commit() {
    let db = Database::new().await;
    let (reached, open) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let gate = {
        let (reached, open) = (reached.clone(), open.clone());
        move || {
            reached.add_permits(1);
            let open = open.clone();
            async move { open.acquire_owned().await.unwrap().forget() }
        }
    };
    // With its end, since BEGIN says "READ COMMITTED".
    let pool = db.gated_pool("COMMIT\0", gate).await;
    let routes = Router::new().route("/charges", post(charge));
    let app = app_over(db, Idempotency::new(pool), routes).await;

    let mut client = Raw::charge(&app, "order-1").await;
    reached.acquire().await.unwrap().forget();
    // However long the COMMIT takes.
    assert_eq!(client.first_byte(Duration::from_millis(500)).await, None);
    assert_eq!(app.db.count(COMMITTED).await, 0);
    open.add_permits(1);
    assert_eq!(client.first_byte(Duration::from_secs(60)).await, Some(b'H'));
    // Before the second one is read.
    app.db.assert_charged_once().await;
    assert!(client.rest().await.starts_with("TTP/1.1 201 Created"));
}

#[tokio::test]
async fn what_becomes_of_the_writes_and_the_key_depends_on_the_status() {
    use Ending::{Complete, Fail, Release};
    let statuses = [
        (200, Complete),
        (201, Complete),
        (204, Complete),
        (303, Complete),
        (400, Fail),
        (401, Fail),
        (402, Fail),
        (404, Fail),
        (409, Fail),
        (422, Fail),
        (405, Release),
        (408, Release),
        (425, Release),
        (429, Release),
        (500, Release),
        (503, Release),
        (599, Release),
    ];
    let runs = Count::default();
    // The status is the key.
    let routes = charges(&runs, async |_, tx: IdempotentTx| {
        StatusCode::from_bytes(tx.operation().key().as_str().as_bytes()).unwrap()
    });
    let app = App::new(routes).await;
    let (mut ledger, mut keys) = (0, 0);
    for (status, ending) in statuses {
        let earlier = runs.get();
        for retry in [false, true] {
            let seen = send(&app, &status.to_string()).await;
            let replayed = retry && ending != Release;
            assert_eq!((seen.status.as_u16(), seen.replayed), (status, replayed));
        }
        assert_eq!(runs.get() - earlier, if ending == Release { 2 } else { 1 }, "{status}");
        ledger += i64::from(ending == Complete);
        keys += i64::from(ending != Release);
        assert_eq!(app.db.count("ledger").await, ledger, "{status}");
        assert_eq!(app.db.count("pgonce.keys").await, keys, "{status}");
    }
}

#[tokio::test]
async fn the_handler_may_say_another_ending() {
    let app = App::new(charges(&Count::default(), async |run, tx: IdempotentTx| {
        // Both are in the key.
        let (status, ending) = tx.operation().key().as_str().split_once('/').unwrap();
        let ending = [Ending::Complete, Ending::Fail, Ending::Release]
            .into_iter()
            .find(|known| format!("{known:?}") == ending);
        (StatusCode::from_bytes(status.as_bytes()).unwrap(), ending.unwrap(), run.to_string())
    }))
    .await;
    let cases = [
        ("402/Complete", 1, 1),
        ("202/Fail", 0, 1),
        ("202/Release", 0, 0),
        ("402/Release", 0, 0),
        ("500/Complete", 1, 1),
        ("429/Fail", 0, 1),
    ];
    let (mut ledger, mut keys) = (0, 0);
    for (key, in_ledger, in_keys) in cases {
        ledger += in_ledger;
        keys += in_keys;
        let first = send(&app, key).await;
        assert!(first.status.as_str() == &key[..3] && !first.replayed, "{key}: {first:?}");
        let retry = send(&app, key).await;
        assert_eq!((retry.status, retry.replayed), (first.status, in_keys == 1), "{key}");
        assert_eq!(retry.body == first.body, in_keys == 1, "{key}: the number of the run");
        assert_eq!(app.db.count("ledger").await, ledger, "{key}");
        assert_eq!(app.db.count("pgonce.keys").await, keys, "{key}");
    }
}

#[tokio::test]
async fn a_function_of_the_application_says_the_ending_but_the_handler_goes_before() {
    let routes = charges(&Count::default(), async |run, _| match run {
        1 => (StatusCode::BAD_REQUEST, "the layer lets it go").into_response(),
        _ => (StatusCode::BAD_REQUEST, Ending::Complete, "the handler keeps it").into_response(),
    });
    let app = App::with(routes, |layer| layer.with_ending(|_| Ending::Release)).await;
    assert_eq!(send(&app, "order-1").await.body, b"the layer lets it go");
    app.db.assert_untouched().await;
    for replayed in [false, true] {
        let seen = send(&app, "order-1").await;
        assert_eq!((seen.status.as_u16(), seen.replayed), (400, replayed));
        app.db.assert_charged_once().await;
    }
}

#[tokio::test]
async fn a_recorded_failure_undoes_the_writes_even_after_a_database_error() {
    let routes = charges(&Count::default(), async |_, mut tx: IdempotentTx| {
        let taken = sqlx::query("INSERT INTO accounts VALUES ('alice', 1)").execute(&mut *tx).await;
        assert!(taken.unwrap_err().as_database_error().unwrap().is_unique_violation());
        (StatusCode::CONFLICT, "there is an alice")
    });
    let app = App::new(routes).await;
    for replayed in [false, true] {
        let seen = send(&app, "order-1").await;
        assert_eq!((seen.status.as_u16(), seen.replayed), (409, replayed));
        assert_eq!(seen.body, b"there is an alice");
    }
    assert_eq!((app.db.count("ledger").await, app.db.balance("alice").await), (0, 1000));
    assert_eq!(app.db.count("pgonce.keys WHERE state = 'failed'").await, 1);
}

#[tokio::test]
async fn a_key_in_flight_that_the_handler_itself_meets_is_not_recorded() {
    let db = Database::new().await;
    let idempotency = db.idempotency();
    let inner = Operation::new(support::scope(), support::key("inner"));
    let claim = idempotency.claim(&inner).await.unwrap();
    let handler = {
        let (idempotency, inner) = (idempotency.clone(), inner.clone());
        async move |mut tx: IdempotentTx| {
            let id = support::charge(&mut tx, 42).await?;
            idempotency.execute(&inner, async |_| Ok::<_, Error>(())).await?;
            Ok::<_, Error>((StatusCode::CREATED, id.to_string()))
        }
    };
    let app = app_over(db, idempotency.clone(), Router::new().route("/charges", post(handler))).await;
    assert_is_problem(&send(&app, "order-1").await, 409, "in-flight");
    app.db.assert_untouched().await;
    drop(claim);
    app.db.wait_until_idle().await;
    let next = send(&app, "order-1").await;
    assert_eq!((next.status.as_u16(), next.replayed), (201, false), "{next:?}");
}

#[tokio::test]
async fn an_error_of_the_handler_leaves_nothing_and_the_key_is_free_at_once() {
    let routes = charges(&Count::default(), async |run, _| match run {
        1 => Err(Error::from(sqlx::Error::RowNotFound)),
        _ => Ok(StatusCode::CREATED),
    });
    let app = App::new(routes).await;
    assert_is_problem(&send(&app, "order-1").await, 500, "internal");
    app.db.assert_untouched().await;
    assert_next_executes(&app, "order-1").await;
}
