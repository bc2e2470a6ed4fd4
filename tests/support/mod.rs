//! What every test binary needs: a database of its own, and a bank in it.
#![allow(dead_code, reason = "each binary uses another part")]

pub mod deed;
pub mod private;

use std::pin::pin;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::future::poll_fn;
use pgonce::{Idempotency, IdempotencyKey, Mode, Operation, Scope};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool};
use throwaway_postgres::Server;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy, split};
use tokio::net::{TcpListener, TcpStream, UnixStream};

/// One server for all test binaries; it ends with the last process that uses it.
static SERVER: LazyLock<Server> =
    LazyLock::new(|| throwaway_postgres::shared().unwrap_or_else(|error| panic!("{error}")));

/// A fresh database, dropped with the value.
pub struct Database {
    pub pool: PgPool,
    name: String,
}

impl Database {
    /// With pgonce's schema, two accounts and a ledger.
    pub async fn new() -> Self {
        let database = Self::empty().await;
        found_bank(&database.pool).await;
        database
    }

    /// With nothing.
    pub async fn empty() -> Self {
        let name = format!("pgonce_test_{}", uuid::Uuid::new_v4().simple());
        let mut conn = connect_to_server().await;
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&mut conn)
            .await
            .expect("create a database");
        let database = Self { pool: PgPoolOptions::new().connect_lazy_with(options(&name)), name };
        conn.close().await.expect("close");
        database
    }

    pub fn options(&self) -> PgConnectOptions {
        options(&self.name)
    }

    pub fn url(&self) -> String {
        SERVER.url_of(&self.name)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Another pool to the same database.
    pub fn pool_of(&self, connections: u32) -> PgPool {
        PgPoolOptions::new().max_connections(connections).connect_lazy_with(self.options())
    }

    /// A pool of one connection, through a forwarder on the test's own runtime. On a single-threaded runtime an answer
    /// can only arrive while the test awaits it, so every statement is an await point, each time.
    pub async fn forwarded_pool(&self) -> PgPool {
        self.forwarded_pool_to(&self.options()).await
    }

    /// The same, to whatever stands before the server.
    pub async fn forwarded_pool_to(&self, to: &PgConnectOptions) -> PgPool {
        self.gated_pool_to(to, "no statement has this text", async || {}).await
    }

    /// Like `forwarded_pool`, with a gate: a message of the client that contains the text is held up by the future.
    pub async fn gated_pool<G, F>(&self, text: &'static str, gate: G) -> PgPool
    where
        G: Fn() -> F + Clone + Send + 'static,
        F: Future<Output = ()> + Send,
    {
        self.gated_pool_to(&self.options(), text, gate).await
    }

    async fn gated_pool_to<G, F>(&self, to: &PgConnectOptions, text: &'static str, gate: G) -> PgPool
    where
        G: Fn() -> F + Clone + Send + 'static,
        F: Future<Output = ()> + Send,
    {
        let to = to.clone();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("listen");
        let port = listener.local_addr().expect("an address").port();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = connect_to(&to).await;
                let gate = gate.clone();
                tokio::spawn(async move {
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = split(server);
                    tokio::spawn(async move { copy(&mut from_server, &mut to_client).await });
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
                        if buffer[..length].windows(text.len()).any(|window| window == text.as_bytes()) {
                            gate().await;
                        }
                        if to_server.write_all(&buffer[..length]).await.is_err() {
                            break;
                        }
                    }
                    // So that the server sees the client go.
                    let _ = to_server.shutdown().await;
                });
            }
        });
        let options = self.options().host("127.0.0.1").port(port);
        PgPoolOptions::new().max_connections(1).connect_lazy_with(options)
    }

    pub fn idempotency(&self) -> Idempotency {
        on(self.pool.clone())
    }

    pub async fn balance(&self, account: &str) -> i64 {
        sqlx::query_scalar("SELECT balance FROM accounts WHERE id = $1")
            .bind(account)
            .fetch_one(&self.pool)
            .await
            .expect("read a balance")
    }

    pub async fn count(&self, table: &'static str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
            .fetch_one(&self.pool)
            .await
            .expect("count")
    }

    /// Asserts that nothing happened: no key, no ledger row, no money moved.
    pub async fn assert_untouched(&self) {
        assert_eq!(self.count("pgonce.keys").await, 0, "a key was left");
        assert_eq!(self.count("ledger").await, 0, "a ledger row was left");
        assert_eq!(self.balance("alice").await, 1000, "money moved");
    }

    /// Asserts that exactly one charge of 42 happened, with one key.
    pub async fn assert_charged_once(&self) {
        assert_eq!(self.count("pgonce.keys").await, 1, "not one key");
        assert_eq!(self.count("ledger").await, 1, "not one ledger row");
        assert_eq!(self.balance("alice").await, 958, "not one charge");
    }

    /// Waits until the query, which returns a boolean, is true.
    pub async fn wait_until(&self, query: &'static str) {
        let started = Instant::now();
        while !sqlx::query_scalar::<_, bool>(query).fetch_one(&self.pool).await.expect(query) {
            assert!(started.elapsed() < Duration::from_secs(30), "never became true: {query}");
            tokio::task::yield_now().await;
        }
    }

    /// Ends the backends of all open transactions, and waits until they are gone.
    pub async fn kill_open_transactions(&self) {
        sqlx::raw_sql(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
             WHERE datname = current_database() AND state = 'idle in transaction'",
        )
        .execute(&self.pool)
        .await
        .expect("end the backends");
    }

    /// Waits until no other session of this database is in a transaction. A call that replays returns before its ROLLBACK is answered,
    /// so its lock may still be held for a moment, in which a key that is *now* made to expire would be in flight.
    pub async fn wait_until_idle(&self) {
        self.wait_until(
            "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()
             AND pid <> pg_backend_pid() AND state <> 'idle')",
        )
        .await;
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn connect_to(options: &PgConnectOptions) -> Box<dyn Stream> {
    let (host, port) = (options.get_host(), options.get_port());
    match options.get_socket() {
        Some(folder) => {
            let socket = folder.join(format!(".s.PGSQL.{port}"));
            Box::new(UnixStream::connect(socket).await.expect("connect to the server's socket"))
        }
        None => Box::new(TcpStream::connect((host, port)).await.expect("connect to the server")),
    }
}

/// pgonce's schema, two accounts and a ledger.
async fn found_bank(pool: &PgPool) {
    pgonce::migrate(pool).await.expect("migrate");
    sqlx::raw_sql(
        "CREATE TABLE accounts (id text PRIMARY KEY, balance bigint NOT NULL CHECK (balance >= 0));
         CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, amount bigint NOT NULL);
         INSERT INTO accounts VALUES ('alice', 1000), ('bob', 0);",
    )
    .execute(pool)
    .await
    .expect("create the bank");
}

impl Drop for Database {
    fn drop(&mut self) {
        let name = std::mem::take(&mut self.name);
        // A runtime of its own, since the test's may be busy or gone; a test that fails also cleans up.
        let dropped = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(
                async {
                    let mut conn = connect_to_server().await;
                    let sql = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
                    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await.map(drop)
                },
            )
        });
        if !std::thread::panicking() {
            dropped.join().expect("join").expect("drop the database");
        }
    }
}

fn options(database: &str) -> PgConnectOptions {
    let options: PgConnectOptions = SERVER.url().parse().expect("the server's url");
    options.database(database)
}

async fn connect_to_server() -> PgConnection {
    SERVER
        .url()
        .parse::<PgConnectOptions>()
        .expect("the server's url")
        .connect()
        .await
        .expect("connect to the server")
}

/// On this pool, in the mode whose tests these are.
pub fn on(pool: PgPool) -> Idempotency {
    Idempotency::new(pool).with_mode(mode())
}

/// `tests/optimistic` takes the tests of other binaries as its modules, and this module with each.
pub fn mode() -> Mode {
    if module_path!().starts_with("optimistic::") { Mode::Optimistic } else { Mode::ClaimFirst }
}

/// The closure of a call that is answered by an earlier one. In optimistic mode it runs, and its failure does not show.
pub async fn must_not_run<T>(conn: &mut PgConnection) -> Result<T, pgonce::Error> {
    runs_in_vain(conn).await?;
    Err(sqlx::Error::WorkerCrashed.into())
}

/// The same, and it succeeds.
pub async fn runs_in_vain(conn: &mut PgConnection) -> Result<(), pgonce::Error> {
    assert_eq!(mode(), Mode::Optimistic, "it must not run");
    charge(conn, 13).await.map(drop)
}

pub fn scope() -> Scope {
    Scope::new("acct_42/charges").expect("a scope")
}

pub fn key(text: &str) -> IdempotencyKey {
    IdempotencyKey::try_from(text).expect("a key")
}

/// The operation that most tests execute.
pub fn operation() -> Operation {
    Operation::new(scope(), key("order-1")).with_params(&42).expect("parameters")
}

/// Moves money from alice to bob and writes it into the ledger. Returns the ledger row's id.
pub async fn charge(conn: &mut PgConnection, amount: i64) -> Result<i64, pgonce::Error> {
    for (account, change) in [("alice", -amount), ("bob", amount)] {
        sqlx::query("UPDATE accounts SET balance = balance + $2 WHERE id = $1")
            .bind(account)
            .bind(change)
            .execute(&mut *conn)
            .await?;
    }
    Ok(sqlx::query_scalar("INSERT INTO ledger (amount) VALUES ($1) RETURNING id")
        .bind(amount)
        .fetch_one(conn)
        .await?)
}

/// Asserts that a document has this text, between `<!-- name -->` and `<!-- end -->`.
pub fn assert_in_document(path: &str, name: &str, text: &str) {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let document = std::fs::read_to_string(&path).expect("the document");
    let mark = format!("<!-- {name} -->\n\n");
    let (before, rest) = document.split_once(&mark).unwrap_or_else(|| panic!("no mark {mark}"));
    let (found, after) = rest.split_once("\n<!-- end -->").expect("the end");
    if std::env::var_os("PGONCE_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, [before, &mark, text, "\n<!-- end -->", after].concat())
            .expect("write the document");
    } else {
        assert_eq!(text, found, "{name} in {}: run this test with PGONCE_UPDATE_SNAPSHOTS=1", path.display());
    }
}

/// Polls the future as often as it is woken, but at most `polls` times, then drops it. None when it was dropped.
pub async fn poll_at_most<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

/// The only slot of the pool comes back, what comes back is in no transaction, and so is nothing on the server.
pub async fn assert_at_rest(db: &Database, pool: &PgPool, after: &str) {
    let mut conn = pool.acquire().await.unwrap();
    assert!(!conn.is_in_transaction(), "a transaction after {after}");
    conn.ping().await.unwrap();
    drop(conn);
    db.wait_until_idle().await;
    let locks: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .fetch_one(&db.pool)
    .await
    .unwrap();
    assert_eq!(locks, 0, "a lock after {after}");
}

/// The server's code of the error, if it came from there.
pub fn sqlstate(error: &pgonce::Error) -> Option<String> {
    let pgonce::Error::Database { source, .. } = error else { return None };
    source.as_database_error()?.code().map(Into::into)
}
