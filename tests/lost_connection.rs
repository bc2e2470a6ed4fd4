//! The connection is lost while the closure runs.

mod support;

use pgonce::testing::{Edge, Fault, Proxy, Side};
use pgonce::{Error, ErrorKind};
use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection, PgConnection};
use support::{Database, charge, operation};

#[tokio::test]
async fn a_connection_that_is_lost_at_a_nested_begin_is_no_violation() {
    let db = Database::new().await;
    let proxy = Proxy::start(&db.options()).await.unwrap();
    proxy.arm(Fault::Cut, Edge::Before, |message| {
        message.side == Side::Client && message.label.starts_with("Query: SAVEPOINT")
    });
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(proxy.options());
    let idempotency = support::on(pool);
    let nests = async |conn: &mut PgConnection| {
        charge(conn, 42).await?;
        conn.begin().await?.commit().await?;
        Ok::<_, Error>(())
    };

    let error = idempotency.execute(&operation(), nests).await.unwrap_err();

    assert_eq!(proxy.hits(), 1);
    assert_eq!(error.kind(), ErrorKind::Database, "{error}");
    assert!(error.is_retryable(), "{error}");
    db.wait_until_idle().await;
    db.assert_untouched().await;
    idempotency.execute(&operation(), nests).await.unwrap();
    db.assert_charged_once().await;
}
