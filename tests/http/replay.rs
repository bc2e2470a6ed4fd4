//! A retry gets the first response.

use axum::Router;
use axum::routing::post;

use crate::app::{App, Seen, charge, seen};

#[tokio::test]
async fn a_retry_gets_the_first_response_and_the_handler_does_not_run() {
    let app = App::new(Router::new().route("/charges", post(charge))).await;
    let first = seen(app.charge("order-1").send().await.unwrap()).await;
    assert_eq!((first.status.as_u16(), first.replayed), (201, false));
    let retry = seen(app.charge("order-1").send().await.unwrap()).await;
    assert_eq!(retry, Seen { replayed: true, ..first });
    app.db.assert_charged_once().await;
}
