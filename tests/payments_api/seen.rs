//! What the service was seen to answer, in the terms of its description.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::{RequestBuilder, Response};
use serde_json::Value;

/// `POST /charges 201`.
pub type Answer = String;

/// The headers that are worth a description.
const TOLD: [&str; 5] =
    ["idempotency-key-expires", "idempotent-replayed", "location", "retry-after", "www-authenticate"];

#[derive(Default)]
pub struct Seen {
    /// With the headers that were there at least once.
    pub answers: BTreeMap<Answer, BTreeSet<String>>,
    /// One body for each kind of answer, with its media type.
    pub bodies: BTreeMap<Answer, (String, Value)>,
}

impl Seen {
    /// Sends it. `operation` is what the description calls it, for example `GET /charges/{id}`.
    pub async fn send(&mut self, operation: &str, request: RequestBuilder) {
        self.note(operation, request.send().await.unwrap()).await;
    }

    pub async fn note(&mut self, operation: &str, response: Response) {
        let answer = format!("{operation} {}", response.status().as_u16());
        let headers = response.headers();
        let told = TOLD.into_iter().filter(|name| headers.contains_key(*name)).map(str::to_owned);
        self.answers.entry(answer.clone()).or_default().extend(told);
        let media_type = headers["content-type"].to_str().unwrap().to_owned();
        self.bodies.insert(answer, (media_type, response.json().await.unwrap()));
    }
}
