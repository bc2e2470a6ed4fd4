//! The service under test: a router behind the layer, on a socket, and a client.

use axum::Router;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::middleware::{Next, from_fn};
use pgonce::{IdempotencyLayer, IdempotentTx, Scope};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use tokio::net::TcpListener;

use crate::support::Database;

/// Who asks: what the `Authorization` header says.
#[derive(Clone)]
struct Tenant(String);

/// A server with a database of its own.
pub struct App {
    pub db: Database,
    pub client: Client,
    url: String,
}

impl App {
    /// Serves the routes behind the layer. What authenticates is outside of it.
    pub async fn new(routes: Router) -> Self {
        Self::with(routes, |layer| layer).await
    }

    /// The same, with settings for the layer.
    pub async fn with(routes: Router, set: impl FnOnce(IdempotencyLayer) -> IdempotencyLayer) -> Self {
        let db = Database::new().await;
        let layer = set(IdempotencyLayer::new(db.idempotency(), scope));
        let url = serve(routes.route_layer(layer).layer(from_fn(authenticate))).await;
        Self { db, client: Client::new(), url }
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).header("authorization", "acct_42")
    }

    /// A charge of 42 under this key.
    pub fn charge(&self, key: &str) -> RequestBuilder {
        self.post("/charges").header("idempotency-key", format!("\"{key}\"")).json(&42)
    }
}

async fn serve(app: Router) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

fn scope(request: &Parts) -> Option<Scope> {
    let Tenant(tenant) = request.extensions.get()?;
    Scope::new(tenant.as_str()).ok()
}

async fn authenticate(mut request: Request, next: Next) -> axum::response::Response {
    let tenant = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    if let Some(tenant) = tenant.map(|tenant| Tenant(tenant.to_owned())) {
        request.extensions_mut().insert(tenant);
    }
    next.run(request).await
}

/// Charges what the body says.
pub async fn charge(
    mut tx: IdempotentTx,
    axum::Json(amount): axum::Json<i64>,
) -> Result<(StatusCode, axum::Json<i64>), pgonce::Error> {
    let id = crate::support::charge(&mut tx, amount).await?;
    Ok((StatusCode::CREATED, axum::Json(id)))
}

/// What a client sees of a response.
#[derive(Debug, PartialEq)]
pub struct Seen {
    pub status: StatusCode,
    pub replayed: bool,
    pub body: Vec<u8>,
}

pub async fn seen(response: Response) -> Seen {
    Seen {
        status: response.status(),
        replayed: response.headers().get("idempotent-replayed").is_some_and(|value| value == "true"),
        body: response.bytes().await.unwrap().to_vec(),
    }
}
