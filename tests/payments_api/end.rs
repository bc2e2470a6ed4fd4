//! How the service ends, and how it does not even begin.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use crate::service::{Service, command, exists};

/// Until nobody listens there any more.
async fn wait_until_closed(url: &str) {
    let (address, started) = (url.strip_prefix("http://").unwrap(), Instant::now());
    while TcpStream::connect(address).await.is_ok() {
        assert!(started.elapsed() < Duration::from_secs(60), "it listens on");
        tokio::task::yield_now().await;
    }
}

/// Exit code 0, and the database is gone.
async fn assert_orderly_end(service: Service) {
    let database = service.database.clone();
    let (status, printed) = service.ended().await;
    assert!(status.success(), "{status}");
    assert_eq!(printed.trim(), format!("The database {database} is dropped."));
    assert!(!exists(&database).await);
}

async fn finishes_what_has_begun_after(signal: &str) {
    let service = Service::start().await;
    let held = service.hold().await;
    let charge = tokio::spawn(service.charge("order-1", 4200).send());
    service.wait_until_stuck(1).await;

    service.signal(signal).await;
    wait_until_closed(&service.url).await;
    assert!(!charge.is_finished());
    held.rollback().await.unwrap();

    let response = charge.await.unwrap().unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(response.text().await.unwrap(), r#"{"id":1,"account":"alice","amount":4200,"refunded":0}"#);
    assert_orderly_end(service).await;
}

#[tokio::test]
async fn after_sigterm_a_request_in_flight_is_answered_and_nothing_is_left() {
    finishes_what_has_begun_after("TERM").await;
}

#[tokio::test]
async fn after_ctrl_c_a_request_in_flight_is_answered_and_nothing_is_left() {
    finishes_what_has_begun_after("INT").await;
}

#[tokio::test]
async fn a_client_that_never_finishes_its_request_does_not_keep_the_service_alive() {
    let mut command = command();
    command.env("TIME_OUT_MILLIS", "10");
    let service = Service::start_with(command).await;
    let mut client = TcpStream::connect(service.url.strip_prefix("http://").unwrap()).await.unwrap();
    client.write_all(b"POST /charges HTTP/1.1\r\nHost:").await.unwrap();
    service.signal("TERM").await;
    assert_orderly_end(service).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_so() {
    let taken = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = command().env("PORT", &port).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        complaint.starts_with(&format!("Error: port {port} is taken: set another one, for example PORT=")),
        "{complaint}"
    );
}
