//! The running service, a client, and a way into its database.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use reqwest::{Client, RequestBuilder};
use serde_json::Value;
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, PgPool, Postgres, Transaction};
use throwaway_postgres::Server;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::timeout;

use crate::program;

/// One server for all of them; each service makes a database there.
static SERVER: LazyLock<Server> =
    LazyLock::new(|| throwaway_postgres::shared().unwrap_or_else(|error| panic!("{error}")));

static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| program::example("payments_api"));

pub const BOOKSHOP: &str = "demo-token-of-bookshop";
pub const FLORIST: &str = "demo-token-of-florist";

pub struct Service {
    /// `http://127.0.0.1:1234`.
    pub url: String,
    pub client: Client,
    /// Its database, by a pool of the test's own.
    pub pool: PgPool,
    pub database: String,
    /// What it has printed at the start.
    pub welcome: String,
    child: Child,
    _watchdog: Child,
    stdout: Lines<BufReader<ChildStdout>>,
}

/// The program, as a test starts it: on any free port, and with a card network that takes no time.
pub fn command() -> Command {
    let mut command = Command::new(&*PROGRAM);
    command
        .envs([("DATABASE_URL", SERVER.url()), ("PORT", "0"), ("CARD_NETWORK_MILLIS", "0")])
        .env("RUST_LOG", "error")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true);
    command
}

impl Service {
    pub async fn start() -> Self {
        Self::start_with(command()).await
    }

    /// Returns when it listens.
    pub async fn start_with(mut command: Command) -> Self {
        let mut child = command.spawn().expect("start the service");
        let mut stdout = BufReader::new(child.stdout.take().expect("its stdout")).lines();
        let mut welcome = String::new();
        while !welcome.contains("Ctrl-C") {
            let line =
                stdout.next_line().await.expect("read its stdout").expect("a service that has started");
            welcome += &format!("{line}\n");
        }
        let after = |mark: &str| {
            let (_, rest) = welcome.split_once(mark).unwrap_or_else(|| panic!("no {mark:?} in {welcome}"));
            rest.split_whitespace().next().expect("a word").trim_end_matches('.').to_owned()
        };
        let (url, database) = (after("listens on "), after("new database "));
        let pool =
            PgPoolOptions::new().max_connections(3).connect_lazy(&SERVER.url_of(&database)).expect("a pool");
        let watchdog = watchdog(&child);
        Self { url, client: Client::new(), pool, database, welcome, child, _watchdog: watchdog, stdout }
    }

    pub fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(format!("{}{path}", self.url)).bearer_auth(BOOKSHOP)
    }

    pub fn post(&self, path: &str, key: &str, body: Value) -> RequestBuilder {
        self.client
            .post(format!("{}{path}", self.url))
            .bearer_auth(BOOKSHOP)
            .header("idempotency-key", format!("\"{key}\""))
            .json(&body)
    }

    /// A charge to alice at the bookshop.
    pub fn charge(&self, key: &str, amount: i64) -> RequestBuilder {
        self.post("/charges", key, serde_json::json!({"account": "alice", "amount": amount}))
    }

    pub async fn balance(&self, account: &str) -> i64 {
        let body: Value =
            self.get(&format!("/accounts/{account}")).send().await.unwrap().json().await.unwrap();
        body["balance"].as_i64().unwrap_or_else(|| panic!("no balance in {body}"))
    }

    pub async fn count(&self, table: &'static str) -> i64 {
        let sql = AssertSqlSafe(format!("SELECT count(*) FROM {table}"));
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    /// Locks the accounts' rows: every charge and refund gets stuck there until the transaction ends.
    pub async fn hold(&self) -> Transaction<'static, Postgres> {
        let mut held = self.pool.begin().await.unwrap();
        sqlx::query("SELECT FROM accounts FOR UPDATE").execute(&mut *held).await.unwrap();
        held
    }

    /// Locks the tables: nothing can even be read there until the transaction ends.
    pub async fn hold_tables(&self) -> Transaction<'static, Postgres> {
        let mut held = self.pool.begin().await.unwrap();
        sqlx::query("LOCK TABLE accounts, charges").execute(&mut *held).await.unwrap();
        held
    }

    /// Waits until so many sessions are stuck behind a lock.
    pub async fn wait_until_stuck(&self, sessions: i64) {
        self.wait_until(
            sessions,
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        )
        .await;
    }

    /// Waits until the query counts so many, or more.
    pub async fn wait_until(&self, count: i64, query: &'static str) {
        let started = Instant::now();
        while sqlx::query_scalar::<_, i64>(query).fetch_one(&self.pool).await.expect(query) < count {
            assert!(started.elapsed() < Duration::from_secs(60), "never so many: {query}");
            tokio::task::yield_now().await;
        }
    }

    /// Asks it to end: `TERM` or `INT`.
    pub async fn signal(&self, name: &str) {
        let pid = self.child.id().expect("it runs").to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().await.unwrap();
        assert!(sent.success());
    }

    /// Waits for its end. What it has printed since the start, too.
    pub async fn ended(mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        let end = async {
            while let Some(line) = self.stdout.next_line().await.unwrap() {
                rest += &format!("{line}\n");
            }
            self.child.wait().await.unwrap()
        };
        let status = timeout(Duration::from_secs(60), end).await.expect("the service ends");
        (status, rest)
    }
}

/// Ends the service when this process is killed, and cannot do it: then the pipe is closed.
fn watchdog(service: &Child) -> Child {
    Command::new("sh")
        .args(["-c", "cat; kill -s KILL $0", &service.id().expect("it runs").to_string()])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .expect("start sh")
}

/// Whether the server has a database of this name.
pub async fn exists(database: &str) -> bool {
    let pool = PgPool::connect(SERVER.url()).await.unwrap();
    let sql = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    sqlx::query_scalar(sql).bind(database).fetch_one(&pool).await.unwrap()
}
