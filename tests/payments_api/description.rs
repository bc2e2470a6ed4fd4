//! The OpenAPI document says what the service does: no more, and no less.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::RequestBuilder;
use serde_json::{Value, json};
use utoipa::openapi::{OpenApi, OpenApiVersion};

use crate::seen::{Answer, Seen};
use crate::service::{Service, command};

const ALL: [&str; 5] = [
    "GET /accounts/{id}",
    "GET /charges",
    "GET /charges/{id}",
    "POST /charges",
    "POST /charges/{id}/refunds",
];

/// A request that succeeds, with this key where one is needed. (Keys belong to the tenant: each operation has its own.)
fn request(service: &Service, operation: &str, key: &str) -> RequestBuilder {
    match operation {
        "POST /charges" => service.charge(key, 4200),
        "POST /charges/{id}/refunds" => {
            service.post("/charges/1/refunds", &format!("refund-{key}"), json!({"amount": 100}))
        }
        get => {
            let path = get.strip_prefix("GET ").unwrap();
            let path = path.replace("accounts/{id}", "accounts/alice").replace("{id}", "1");
            service.get(&path)
        }
    }
}

/// Every answer that there is.
async fn see_everything(service: &Service) -> Seen {
    let mut seen = Seen::default();
    for operation in ["POST /charges", "POST /charges/{id}/refunds"] {
        for _ in 0..2 {
            seen.send(operation, request(service, operation, "first")).await; // 201, of charge 1, which others ask for
        }
        seen.send(operation, request(service, operation, "first").query(&[("other", "request")])).await; // 422
        seen.send(operation, request(service, operation, "one").header("idempotency-key", "two")).await; // 400
        let large = " ".repeat(300 * 1024);
        seen.send(operation, request(service, operation, "large").body(large)).await; // 413

        let held = service.hold().await;
        let first = tokio::spawn(request(service, operation, "in-flight").send());
        service.wait_until_stuck(1).await;
        seen.send(operation, request(service, operation, "in-flight")).await; // 409
        held.rollback().await.unwrap();
        seen.note(operation, first.await.unwrap().unwrap()).await;
    }
    for _ in 0..2 {
        seen.send("POST /charges", service.charge("too-much", 1_000_000)).await; // 402
        let refund = service.post("/charges/4711/refunds", "no-charge", json!({"amount": 1}));
        seen.send("POST /charges/{id}/refunds", refund).await; // 404
    }
    seen.send("GET /charges/{id}", service.get("/charges/4711")).await;
    seen.send("GET /accounts/{id}", service.get("/accounts/nobody")).await;
    for operation in ALL {
        seen.send(operation, request(service, operation, "last")).await;
        let stranger = request(service, operation, "stranger");
        let (client, stranger) = stranger.build_split();
        let mut stranger = stranger.unwrap();
        stranger.headers_mut().remove("authorization");
        seen.note(operation, client.execute(stranger).await.unwrap()).await; // 401
        see_a_lost_connection(service, operation, &mut seen).await; // 503
    }
    seen
}

async fn see_time_outs(seen: &mut Seen) {
    let mut hasty = command();
    hasty.env("TIME_OUT_MILLIS", "100");
    let hasty = Service::start_with(hasty).await;
    let _locked = hasty.hold_tables().await;
    for operation in ALL {
        seen.send(operation, request(&hasty, operation, "late")).await; // 504
    }
}

async fn see_a_lost_connection(service: &Service, operation: &str, seen: &mut Seen) {
    let locked = service.hold_tables().await;
    let request = tokio::spawn(request(service, operation, "lost").send());
    service.wait_until_stuck(1).await;
    sqlx::raw_sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE datname = current_database() AND wait_event_type = 'Lock'",
    )
    .execute(&service.pool)
    .await
    .unwrap();
    seen.note(operation, request.await.unwrap().unwrap()).await;
    locked.rollback().await.unwrap();
}

/// `GET /charges 200` and so on, each with its description.
fn described(document: &Value) -> BTreeMap<Answer, &Value> {
    let mut described = BTreeMap::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            for (status, response) in operation["responses"].as_object().unwrap() {
                described.insert(format!("{} {path} {status}", method.to_uppercase()), response);
            }
        }
    }
    described
}

#[tokio::test]
async fn the_document_describes_every_answer_and_no_other() {
    let service = Service::start().await;
    let document: Value = service.get("/openapi.json").send().await.unwrap().json().await.unwrap();
    let mut seen = see_everything(&service).await;
    see_time_outs(&mut seen).await;

    let described = described(&document);
    let answers = |answers: Vec<&Answer>| answers.into_iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(answers(described.keys().collect()), answers(seen.answers.keys().collect()));
    for (answer, description) in described {
        let headers = description["headers"].as_object();
        let headers: BTreeSet<_> =
            headers.into_iter().flatten().map(|(name, _)| name.to_ascii_lowercase()).collect();
        assert_eq!(headers, seen.answers[&answer], "headers of {answer}");
        let (media_type, body) = &seen.bodies[&answer];
        let content = description["content"].as_object().unwrap();
        assert_eq!(content.keys().collect::<Vec<_>>(), [media_type], "{answer}");
        assert_fits(body, &content[media_type]["schema"], &document);
    }
}

/// The members are those of the schema.
fn assert_fits(body: &Value, schema: &Value, document: &Value) {
    if schema["type"] == "array" {
        body.as_array().unwrap().iter().for_each(|item| assert_fits(item, &schema["items"], document));
        return;
    }
    let schema = &document.pointer(schema["$ref"].as_str().unwrap().trim_start_matches('#')).unwrap();
    let members = |object: &Value| object.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(members(&schema["properties"]), members(body));
    for (name, value) in body.as_object().unwrap() {
        let is_right = match schema["properties"][name]["type"].as_str() {
            Some("integer") => value.is_i64(),
            Some("string") => value.is_string(),
            _ => false,
        };
        assert!(is_right, "{name} in {body}");
    }
}

#[tokio::test]
async fn the_document_is_openapi_3_1_and_describes_key_and_token() {
    let service = Service::start().await;
    let text = service.client.get(format!("{}/openapi.json", service.url)).send().await.unwrap();
    let text = text.text().await.unwrap();
    let parsed: OpenApi = serde_json::from_str(&text).unwrap();
    assert!(parsed.openapi == OpenApiVersion::Version31);
    let document: Value = serde_json::from_str(&text).unwrap();

    let token = &document["components"]["securitySchemes"]["tenant_token"];
    assert_eq!((&token["type"], &token["scheme"]), (&json!("http"), &json!("bearer")));
    for operation in ALL {
        let (method, path) = operation.split_once(' ').unwrap();
        let description = &document["paths"][path][method.to_lowercase()];
        assert_eq!(description["security"], json!([{"tenant_token": []}]), "{operation}");
        let parameters = description["parameters"].as_array().cloned().unwrap_or_default();
        let required = |place: &str| -> Vec<String> {
            let there = parameters.iter().filter(|parameter| parameter["in"] == place);
            there
                .map(|parameter| {
                    assert_eq!(parameter["required"], true, "{operation}");
                    parameter["name"].as_str().unwrap().to_owned()
                })
                .collect()
        };
        assert_eq!(required("path").len(), path.matches('{').count(), "{operation}");
        assert_eq!(required("header"), if method == "POST" { vec!["Idempotency-Key"] } else { vec![] });
        assert_eq!(description["requestBody"]["required"] == true, method == "POST", "{operation}");
    }
}
