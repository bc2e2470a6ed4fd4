//! The service under test: a router behind the layer, on a socket, and a client.

use axum::Router;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::middleware::{Next, from_fn};
use pgonce::{Idempotency, IdempotencyLayer, IdempotentTx, Scope};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

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
        Self::of(|db| routes.route_layer(set(layer(db.idempotency()))).layer(from_fn(authenticate))).await
    }

    /// The same, with layers outside of everything.
    pub async fn with_outside(routes: Router, outside: impl FnOnce(Router) -> Router) -> Self {
        Self::of(|db| outside(routes.route_layer(layer(db.idempotency())).layer(from_fn(authenticate)))).await
    }

    /// Serves a router of the test's own.
    pub async fn of(router: impl FnOnce(&Database) -> Router) -> Self {
        let db = Database::new().await;
        let url = serve(router(&db)).await;
        Self::at(db, url)
    }

    /// The same, on a database that is there already.
    pub async fn serving(db: Database, router: Router) -> Self {
        Self::at(db, serve(router).await)
    }

    /// A server that runs already.
    pub fn at(db: Database, url: String) -> Self {
        // A redirect is a response like any other.
        let client = Client::builder().redirect(Policy::none()).build().unwrap();
        Self { db, client, url }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.client.post(self.url(path)).header("authorization", "acct_42")
    }

    /// Sends what no client library would send, and returns what comes back until the connection ends.
    pub async fn raw(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.url.trim_start_matches("http://")).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).await.unwrap();
        String::from_utf8(response).unwrap()
    }

    /// A charge of 42 under this key.
    pub fn charge(&self, key: &str) -> RequestBuilder {
        self.post("/charges").header("idempotency-key", format!("\"{key}\"")).json(&42)
    }
}

pub async fn serve(app: Router) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

/// The layer as most tests have it.
pub fn layer(idempotency: Idempotency) -> IdempotencyLayer {
    IdempotencyLayer::new(idempotency, scope)
}

fn scope(request: &Parts) -> Option<Scope> {
    let Tenant(tenant) = request.extensions.get()?;
    Scope::new(tenant.as_str()).ok()
}

pub async fn authenticate(mut request: Request, next: Next) -> axum::response::Response {
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
#[derive(Clone, Debug, PartialEq)]
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
