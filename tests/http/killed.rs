//! The server's process is killed in the middle of a charge. After a restart the client's retry gets exactly one.

use std::process::Stdio;

use axum::Router;
use axum::routing::post;
use pgonce::Idempotency;
use pgonce::testing::{Edge, Fault, Message, Proxy, Side};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::app::{App, Seen, charge, layer, serve};
use crate::scene::{PATIENCE, behind, send, send_patiently};
use crate::support::Database;

/// The environment variable that makes a server of this process; it says where the database is.
const VARIABLE: &str = "PGONCE_HTTP_TEST_SERVER";

/// What the server says when it can be asked.
const LISTENS: &str = "listens at ";

/// This test binary, run again as the server.
struct Server {
    process: Child,
    url: String,
}

impl Server {
    async fn start(database: &PgConnectOptions) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "killed::a_server_that_is_killed_anywhere_charges_once", "--nocapture"])
            .env(VARIABLE, String::from(database.to_url_lossy()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        loop {
            let line = lines.next_line().await.unwrap().expect("the server has ended by itself");
            if let Some(url) = line.strip_prefix(LISTENS) {
                return Self { process, url: url.to_owned() };
            }
        }
    }

    /// SIGKILL.
    async fn kill(mut self) {
        self.process.kill().await.unwrap();
    }
}

/// Serves until standard input ends, also because the parent was killed.
async fn be_a_server(database: &str) {
    let options: PgConnectOptions = database.parse().unwrap();
    // Without a cache, each statement is sent with its text.
    let options = options.statement_cache_capacity(0);
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
    let routes = Router::new().route("/charges", post(charge));
    let url = serve(behind(layer(Idempotency::new(pool)), routes)).await;
    println!("\n{LISTENS}{url}");
    tokio::task::spawn_blocking(|| std::io::stdin().lines().for_each(drop)).await.unwrap();
}

/// The moments of a charge: the beginning of each statement, and its end on the server.
fn moments(conversation: &[Message]) -> Vec<(Side, String)> {
    let mut moments = Vec::new();
    for Message { side, label, .. } in conversation {
        let kind = label.split(':').next().unwrap();
        let moment = (*side, label.clone());
        if matches!(kind, "Query" | "Parse" | "CommandComplete") && !moments.contains(&moment) {
            moments.push(moment);
        }
    }
    moments
}

#[tokio::test]
async fn a_server_that_is_killed_anywhere_charges_once() {
    if let Ok(database) = std::env::var(VARIABLE) {
        return be_a_server(&database).await;
    }
    let mut db = Database::new().await;
    let proxy = Proxy::start(&db.options()).await.unwrap();

    let mut server = Server::start(&proxy.options()).await;
    let app = App::at(db, server.url.clone());
    assert_eq!(send(&app, "undisturbed").await.status, 201);
    db = app.db;
    let moments = moments(&proxy.conversation());
    assert!(moments.len() > 10, "{moments:?}");
    server.kill().await;
    server = Server::start(&proxy.options()).await;

    let mut replays = 0;
    for (number, (side, label)) in moments.iter().enumerate() {
        let moment = format!("{side:?} {label}");
        let key = format!("killed/{number}");
        let (at_side, at_label) = (*side, label.clone());
        proxy.arm(Fault::Stall, Edge::Before, move |message| {
            message.side == at_side && message.label == at_label
        });
        let app = App::at(db, server.url.clone());
        let request = tokio::spawn(app.charge(&key).send());
        timeout(PATIENCE, proxy.hit(number + 1)).await.expect(&moment);
        server.kill().await;
        request.await.unwrap().expect_err("no response");
        // What it had sent arrives, late.
        proxy.heal();

        server = Server::start(&proxy.options()).await;
        let app = App::at(app.db, server.url.clone());
        let retry = send_patiently(&app, &key).await;
        assert_eq!(retry.status, 201, "{moment}: {retry:?}");
        replays += usize::from(retry.replayed);
        assert_eq!(send(&app, &key).await, Seen { replayed: true, ..retry }, "{moment}");
        db = app.db;
        let charges = number as i64 + 2;
        assert_eq!(db.count("ledger").await, charges, "{moment}");
        assert_eq!(db.count("pgonce.keys").await, charges, "{moment}");
        assert_eq!(db.balance("bob").await, 42 * charges, "{moment}");
        // The next one is the first of this process again.
        server.kill().await;
        server = Server::start(&proxy.options()).await;
    }
    let commit = moments.iter().position(|(_, label)| label == "Query: COMMIT").unwrap();
    assert_eq!(replays, moments.len() - commit, "those whose COMMIT was sent");
    server.kill().await;
}
