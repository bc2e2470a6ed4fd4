//! The connection is lost at COMMIT: the caller is told so, and the same call finds out.

mod support;

use std::time::Duration;

use pgonce::{Error, ErrorKind, Idempotency, InFlight, Outcome};
use sqlx::postgres::PgPoolOptions;
use support::{Database, charge, operation};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};

/// A pool of one connection, which is cut as soon as the client sends COMMIT: before the server gets it, or after it
/// has committed and before the client hears of it.
async fn pool_that_loses_commits(db: &Database, delivered: bool) -> sqlx::PgPool {
    let server = (db.options().get_host().to_owned(), db.options().get_port());
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(server.clone()).await.unwrap();
            tokio::spawn(forward_until_commit(client, server, delivered));
        }
    });
    PgPoolOptions::new().max_connections(1).connect_lazy_with(db.options().host("127.0.0.1").port(port))
}

async fn forward_until_commit(client: TcpStream, server: TcpStream, delivered: bool) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers =
        tokio::spawn(async move { copy(&mut from_server, &mut to_client).await.map(|_| from_server) });
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = from_client.read(&mut buffer).await.unwrap_or(0);
        let message = &buffer[..length];
        if length == 0 {
            return;
        }
        // A simple query of this text alone.
        if message.starts_with(b"Q") && message.ends_with(b"\0\0\x0bCOMMIT\0") {
            // No answer reaches the client any more.
            answers.abort();
            let _ = answers.await;
            if delivered {
                to_server.write_all(message).await.unwrap();
                to_server.shutdown().await.unwrap();
            }
            return;
        }
        if to_server.write_all(message).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn the_caller_is_told_and_the_same_call_finds_out() {
    for delivered in [false, true] {
        let db = Database::new().await;
        let loses = Idempotency::new(pool_that_loses_commits(&db, delivered).await);
        let error = loses.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CommitUnknown, "{delivered}: {error}");
        assert!(error.is_retryable());
        assert!(
            error.to_string().contains("order-1") && error.to_string().contains("same call again"),
            "{error}"
        );

        let good = db.idempotency().with_in_flight(InFlight::Wait(Duration::from_secs(30)));
        let again = good.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
        if !delivered {
            assert!(!again.is_replayed(), "it had never been committed");
        }
        assert_eq!(
            good.execute(&operation(), async |_| -> Result<i64, Error> { panic!("must not run") })
                .await
                .unwrap(),
            Outcome::Replayed(again.into_inner())
        );
        db.assert_charged_once().await;
    }
}

#[tokio::test]
async fn a_delivered_commit_is_replayed() {
    let db = Database::new().await;
    let loses = Idempotency::new(pool_that_loses_commits(&db, true).await);
    let error = loses.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommitUnknown);
    // The server works on a COMMIT that it has got, whoever listens.
    db.wait_until("SELECT count(*) = 1 FROM pgonce.keys").await;
    let again = db.idempotency().execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    assert!(again.is_replayed());
    db.assert_charged_once().await;
}

#[tokio::test]
async fn a_session_that_the_server_ends_at_the_commit_is_unknown_too() {
    let db = Database::new().await;
    sqlx::raw_sql(
        "CREATE FUNCTION end_session() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW EXECUTE FUNCTION end_session()",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let idempotency = db.idempotency();
    let error = idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommitUnknown, "{error}");
    sqlx::raw_sql("DROP TRIGGER at_commit ON ledger").execute(&db.pool).await.unwrap();
    let again = idempotency.execute(&operation(), async |conn| charge(conn, 42).await).await.unwrap();
    assert!(!again.is_replayed(), "it had not been committed");
    db.assert_charged_once().await;
}
