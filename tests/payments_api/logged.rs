//! What is logged, and what never is.

use std::fs::{self, File};

use serde_json::json;

use crate::service::{BOOKSHOP, Service, command};

#[tokio::test]
async fn the_log_has_every_request_without_its_body_its_key_and_its_token() {
    let file = std::env::temp_dir().join(format!("payments_api-{}.log", uuid::Uuid::new_v4()));
    let mut command = command();
    command.env("RUST_LOG", "info,pgonce=debug").stderr(File::create(&file).unwrap());
    let service = Service::start_with(command).await;
    for amount in [4242, 4242, 4343] {
        service.charge("a-secret-key", amount).send().await.unwrap();
    }
    let invalid =
        service.post("/charges?a=secret-query", "a-secret-key-2", json!({"account": "secretaccount"}));
    assert_eq!(invalid.send().await.unwrap().status(), 400);
    service.signal("TERM").await;
    service.ended().await;

    let log = fs::read_to_string(&file).unwrap();
    fs::remove_file(&file).unwrap();
    for (status, end) in [("201", "ms"), ("201", "ms, replayed"), ("422", "ms"), ("400", "ms")] {
        let has = |line: &str| {
            line.contains(&format!("request{{method=POST path=/charges}}: {status} in "))
                && line.ends_with(end)
        };
        assert!(log.lines().any(has), "no {status} {end} in\n{log}");
    }
    for secret in ["secret", BOOKSHOP, "alice"] {
        assert!(!log.contains(secret), "{secret} in\n{log}");
    }
}
