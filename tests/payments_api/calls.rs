//! What the service does with money.

use reqwest::{Response, StatusCode};
use serde_json::{Value, json};

use crate::service::{FLORIST, Service, command};

/// Status, whether it is a replay, and body.
async fn answer(response: Response) -> (StatusCode, bool, Value) {
    let replayed = response.headers().contains_key("idempotent-replayed");
    (response.status(), replayed, response.json().await.unwrap())
}

#[tokio::test]
async fn a_key_belongs_to_its_tenant_who_sees_nobody_elses_rows() {
    let service = Service::start().await;
    let as_florist = |request: reqwest::RequestBuilder| async {
        let mut request = request.build().unwrap();
        let token = format!("Bearer {FLORIST}").parse().unwrap();
        request.headers_mut().insert("authorization", token);
        answer(service.client.execute(request).await.unwrap()).await
    };

    let (status, replayed, ours) = answer(service.charge("order-1", 4200).send().await.unwrap()).await;
    assert_eq!((status.as_u16(), replayed), (201, false));
    // The same request with the same key is another one: neither a replay nor a conflict.
    let (status, replayed, theirs) = as_florist(service.charge("order-1", 4200)).await;
    assert_eq!((status.as_u16(), replayed), (201, false));
    assert_ne!(ours["id"], theirs["id"]);
    assert_eq!(service.balance("alice").await, 50_000 - 4200);

    let (_, _, list) = as_florist(service.get("/charges")).await;
    assert_eq!(list, json!([theirs]));
    let (_, _, account) = as_florist(service.get("/accounts/alice")).await;
    assert_eq!(account["balance"], 20_000 - 4200);
    let path = format!("/charges/{}", ours["id"]);
    assert_eq!(as_florist(service.get(&path)).await.0, 404);
    let refund = service.post(&format!("{path}/refunds"), "refund-1", json!({"amount": 1}));
    assert_eq!(as_florist(refund).await.0, 404);
    assert_eq!(as_florist(service.get("/accounts/bob")).await.0, 404);
}

#[tokio::test]
async fn a_refund_that_is_asked_for_twice_at_once_waits_and_happens_once() {
    let service = Service::start().await;
    service.charge("order-1", 4200).send().await.unwrap();
    let refund = || service.post("/charges/1/refunds", "refund-1", json!({"amount": 1200})).send();

    let held = service.hold().await;
    let first = tokio::spawn(refund());
    service.wait_until_stuck(1).await;
    sqlx::raw_sql("CREATE TABLE begun AS SELECT clock_timestamp() AS at")
        .execute(&service.pool)
        .await
        .unwrap();
    let second = tokio::spawn(refund());
    // Somebody else than the first one, and than this, has asked for something since.
    service
        .wait_until(
            1,
            "SELECT count(*) FROM pg_stat_activity, begun WHERE datname = current_database()
             AND pid <> pg_backend_pid() AND query_start > begun.at AND query NOT LIKE '%pg_stat_activity%'",
        )
        .await;
    held.rollback().await.unwrap();

    let first = answer(first.await.unwrap().unwrap()).await;
    assert_eq!(first, (StatusCode::CREATED, false, json!({"id": 1, "charge": 1, "amount": 1200})));
    let second = answer(second.await.unwrap().unwrap()).await;
    assert_eq!(second, (StatusCode::CREATED, true, first.2));
    assert_eq!(service.balance("alice").await, 50_000 - 4200 + 1200);
    assert_eq!(service.count("refunds").await, 1);
    let charge = answer(service.get("/charges/1").send().await.unwrap()).await.2;
    assert_eq!(charge["refunded"], 1200);
}

#[tokio::test]
async fn a_refund_in_parts_gives_back_what_was_charged_and_no_more() {
    let service = Service::start().await;
    service.charge("order-1", 4200).send().await.unwrap();
    for (key, amount, status) in
        [("r1", 4000, 201), ("r2", 201, 400), ("r3", 200, 201), ("r4", 1, 400), ("r1", 4000, 201)]
    {
        let refund = service.post("/charges/1/refunds", key, json!({"amount": amount}));
        assert_eq!(refund.send().await.unwrap().status(), status, "{key}");
    }
    assert_eq!(service.balance("alice").await, 50_000);
}

#[tokio::test]
async fn a_charge_that_is_declined_leaves_nothing_and_stays_declined() {
    let service = Service::start().await;
    let charge = || service.charge("order-1", 50_001).send();
    let (status, replayed, problem) = answer(charge().await.unwrap()).await;
    assert_eq!((status.as_u16(), replayed), (402, false));
    assert_eq!(service.count("charges").await, 0);
    assert_eq!(service.count("pgonce.keys").await, 1);

    let deposit = "UPDATE accounts SET balance = balance + 1000";
    sqlx::query(deposit).execute(&service.pool).await.unwrap();
    assert_eq!(answer(charge().await.unwrap()).await, (StatusCode::PAYMENT_REQUIRED, true, problem));
    assert_eq!(service.balance("alice").await, 51_000);
    assert_eq!(service.charge("order-2", 50_001).send().await.unwrap().status(), 201);
}

#[tokio::test]
async fn a_request_that_was_not_valid_may_be_corrected_under_its_key() {
    let service = Service::start().await;
    let bodies = [
        json!({"account": "alice", "amount": 0}),
        json!({"account": "alice", "amount": 1_000_001}),
        json!({"account": "alice", "amount": "4200"}),
        json!({"account": "alice", "amount": 4200, "currency": "EUR"}),
        json!({"account": "nobody", "amount": 4200}),
        json!({"account": "a\0b", "amount": 4200}),
        json!({"account": "' OR true --", "amount": 4200}),
        json!([]),
    ];
    for body in bodies {
        let response = service.post("/charges", "order-1", body.clone()).send().await.unwrap();
        assert_eq!(response.status(), 400, "{body}");
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        let problem = answer(response).await.2;
        assert_eq!(problem["type"], "https://payments.example/problems#invalid-request", "{body}");
    }
    assert_eq!(service.count("pgonce.keys").await, 0);
    assert_eq!(service.charge("order-1", 4200).send().await.unwrap().status(), 201);
}

#[tokio::test]
async fn after_a_deadlock_the_handler_runs_again() {
    let service = Service::start().await;
    service.charge("order-1", 4200).send().await.unwrap();
    let lock_charges = "SELECT FROM charges FOR UPDATE";
    // The refund locks the charge and wants the account. Its rival has the account, wants the charge, and is patient.
    let mut rival = service.hold().await;
    sqlx::raw_sql("SET LOCAL deadlock_timeout = '1h'").execute(&mut *rival).await.unwrap();
    // First both stand in line for the charge, so that it is the refund that closes the circle, and notices.
    let mut first = service.pool.begin().await.unwrap();
    sqlx::query(lock_charges).execute(&mut *first).await.unwrap();
    let refund = tokio::spawn(service.post("/charges/1/refunds", "refund-1", json!({"amount": 1200})).send());
    service.wait_until_stuck(1).await;
    let rival = tokio::spawn(async move {
        sqlx::query(lock_charges).execute(&mut *rival).await.unwrap();
        rival.rollback().await.unwrap();
    });
    service.wait_until_stuck(2).await;
    first.rollback().await.unwrap();
    rival.await.unwrap();

    let response = refund.await.unwrap().unwrap();
    assert_eq!(response.status(), 201);
    assert_eq!(service.balance("alice").await, 50_000 - 4200 + 1200);
    let deadlocks: i64 = sqlx::query_scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = $1")
        .bind(&service.database)
        .fetch_one(&service.pool)
        .await
        .unwrap();
    assert_eq!(deadlocks, 1);
}

#[tokio::test]
async fn after_a_time_out_nothing_is_done_and_the_key_is_free() {
    let mut command = command();
    command.env("TIME_OUT_MILLIS", "2000");
    let service = Service::start_with(command).await;
    let held = service.hold().await;
    let response = service.charge("order-1", 4200).send().await.unwrap();
    assert_eq!(response.status(), 504);
    assert_eq!(response.headers()["access-control-allow-origin"], "*");
    held.rollback().await.unwrap();
    // The server notices within a second that its client is gone, and a slow machine may need a time-out more.
    let status = loop {
        let status = service.charge("order-1", 4200).send().await.unwrap().status().as_u16();
        if ![409, 504].contains(&status) {
            break status;
        }
    };
    assert_eq!(status, 201);
    assert_eq!(service.balance("alice").await, 50_000 - 4200);
}

#[tokio::test]
async fn a_script_in_a_browser_may_send_the_key_and_read_what_came_of_it() {
    let service = Service::start().await;
    let preflight = service
        .client
        .request(reqwest::Method::OPTIONS, format!("{}/charges", service.url))
        .header("origin", "https://shop.example")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization,content-type,idempotency-key");
    let response = preflight.send().await.unwrap();
    assert_eq!(response.status(), 200);
    let allowed = response.headers()["access-control-allow-headers"].to_str().unwrap();
    for header in ["authorization", "content-type", "idempotency-key"] {
        assert!(allowed.contains(header), "{allowed}");
    }
    let response =
        service.charge("order-1", 4200).header("origin", "https://shop.example").send().await.unwrap();
    let exposed = response.headers()["access-control-expose-headers"].to_str().unwrap();
    for header in pgonce::http::EXPOSED_HEADERS {
        assert!(exposed.contains(header.as_str()), "{exposed}");
    }
}
