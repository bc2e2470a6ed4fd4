//! A primary and its streaming standby, with a bank in them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgonce::{Error, Idempotency, Operation, Outcome};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::types::chrono::{DateTime, Utc};
use sqlx::{Executor, PgConnection, PgPool};
use throwaway_postgres::{Server, Settings};

use crate::front::Front;
use crate::support::{key, scope};

pub struct Cluster {
    servers: (Server, Server),
    pub front: Front,
    /// Straight to the server that is the primary at first.
    pub primary: PgPool,
    /// Straight to the server that is the standby at first.
    pub standby: PgPool,
}

impl Cluster {
    /// With asynchronous replication.
    pub async fn new() -> Self {
        // With settings of its own it is never the server of DATABASE_URL.
        let settings = Settings::fast().with("wal_retrieve_retry_interval", "100ms");
        let mut primary =
            throwaway_postgres::private_with(&settings).unwrap_or_else(|error| panic!("{error}"));
        create_the_bank(&PgPoolOptions::new().connect_lazy_with(options(&primary))).await;
        let standby = primary.standby().unwrap_or_else(|error| panic!("{error}"));
        let cluster = Self {
            primary: PgPoolOptions::new().connect_lazy_with(options(&primary)),
            standby: PgPoolOptions::new().connect_lazy_with(options(&standby)),
            front: Front::new().await,
            servers: (primary, standby),
        };
        wait_until(&cluster.primary, STREAMS).await;
        cluster.front.lead_to(Some(options(&cluster.servers.0).get_port()));
        cluster
    }

    /// With synchronous replication.
    pub async fn synchronous() -> Self {
        let cluster = Self::new().await;
        cluster.make_synchronous().await;
        wait_until(
            &cluster.primary,
            "SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'",
        )
        .await;
        cluster
    }

    /// From now on a COMMIT waits for the standby, also when that is cut off.
    pub async fn make_synchronous(&self) {
        let mut conn = self.primary.acquire().await.expect("connect");
        conn.execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await.expect("a superuser");
        // Sessions are told of it before the checkpointer, which makes COMMITs wait. When a session is told for the
        // second time, the checkpointer was told once; and it obeys that before it makes a checkpoint.
        for _ in 0..2 {
            let before: DateTime<Utc> = load_time(&mut conn).await;
            conn.execute("SELECT pg_reload_conf()").await.expect("a superuser");
            while load_time(&mut conn).await == before {}
        }
        conn.execute("CHECKPOINT").await.expect("a superuser");
    }

    /// From now on the standby gets nothing.
    pub async fn cut_off_standby(&self) {
        self.configure_standby("ALTER SYSTEM SET primary_conninfo = ''").await;
        wait_until(&self.primary, "SELECT count(*) = 0 FROM pg_stat_replication").await;
    }

    pub async fn reconnect_standby(&self) {
        self.configure_standby("ALTER SYSTEM RESET primary_conninfo").await;
        wait_until(&self.primary, STREAMS).await;
    }

    async fn configure_standby(&self, statement: &'static str) {
        for statement in [statement, "SELECT pg_reload_conf()"] {
            self.standby.execute(statement).await.expect(statement);
        }
    }

    pub fn kill_primary(&mut self) {
        tokio::task::block_in_place(|| self.servers.0.stop_immediately()).expect("it is ours");
    }

    pub fn restart_primary(&mut self) {
        tokio::task::block_in_place(|| self.servers.0.start_again()).expect("it is ours");
    }

    /// The standby is the primary now, for everybody.
    pub async fn promote_standby(&self) {
        self.front.lead_to(None);
        let promoted: bool =
            sqlx::query_scalar("SELECT pg_promote()").fetch_one(&self.standby).await.expect("promote");
        assert!(promoted);
        self.front.lead_to(Some(options(&self.servers.1).get_port()));
    }

    pub async fn fail_over(&mut self) {
        self.kill_primary();
        self.promote_standby().await;
    }

    /// To whichever is the primary, through the front.
    pub fn options(&self) -> PgConnectOptions {
        options(&self.servers.0).port(self.front.port())
    }

    pub fn idempotency(&self) -> Idempotency {
        let pool = PgPoolOptions::new().max_connections(20).connect_lazy_with(self.options());
        // A COMMIT that waits for the standby is not cut off.
        Idempotency::new(pool).with_commit_timeout(Duration::from_secs(60))
    }

    pub fn standby_options(&self) -> PgConnectOptions {
        options(&self.servers.1)
    }
}

const STREAMS: &str = "SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'";

fn options(server: &Server) -> PgConnectOptions {
    server.url().parse().expect("the server's url")
}

/// When this session has read the configuration.
async fn load_time(conn: &mut PgConnection) -> DateTime<Utc> {
    sqlx::query_scalar("SELECT pg_conf_load_time()").fetch_one(conn).await.expect("a time")
}

pub async fn is_true(pool: &PgPool, query: &'static str) -> bool {
    sqlx::query_scalar(query).fetch_one(pool).await.expect(query)
}

/// Waits until the query, which returns a boolean, is true.
pub async fn wait_until(pool: &PgPool, query: &'static str) {
    let started = Instant::now();
    while !is_true(pool, query).await {
        assert!(started.elapsed() < Duration::from_secs(60), "never became true: {query}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn create_the_bank(pool: &PgPool) {
    pgonce::migrate(pool).await.expect("migrate");
    // Nothing but pgonce keeps a key from being charged twice. A run is one run of the closure.
    sqlx::raw_sql(
        "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL);
         CREATE TABLE charges (key text COLLATE \"C\" NOT NULL, run text NOT NULL DEFAULT gen_random_uuid());
         INSERT INTO accounts SELECT id, 1000 FROM generate_series(0, 7) AS id",
    )
    .execute(pool)
    .await
    .expect("create the bank");
    pool.close().await;
}

pub fn operation(name: &str) -> Operation {
    Operation::new(scope(), key(name)).with_params(name).expect("parameters")
}

/// Charges for this key. Returns the run, which is another one whenever the closure runs again.
pub async fn charge(conn: &mut PgConnection, name: &str) -> Result<String, Error> {
    let run = note(conn, name).await?;
    transfer(conn, name).await?;
    Ok(run)
}

pub async fn note(conn: &mut PgConnection, name: &str) -> Result<String, Error> {
    let insert = "INSERT INTO charges (key) VALUES ($1) RETURNING run";
    Ok(sqlx::query_scalar(insert).bind(name).fetch_one(conn).await?)
}

/// From an account that only pays to one that only gets, so that there are no deadlocks.
pub async fn transfer(conn: &mut PgConnection, name: &str) -> Result<(), Error> {
    for statement in [
        "UPDATE accounts SET balance = balance - 1 WHERE id = hashtext($1) & 3",
        "UPDATE accounts SET balance = balance + 1 WHERE id = 4 + (hashtext($1) & 3)",
    ] {
        sqlx::query(statement).bind(name).execute(&mut *conn).await?;
    }
    Ok(())
}

/// One call.
pub async fn call(idempotency: &Idempotency, name: &str) -> Result<Outcome<String>, Error> {
    idempotency.execute(&operation(name), async |conn| charge(conn, name).await).await
}

/// What a caller does: the same call, until it is answered.
pub async fn call_until_answered(idempotency: &Idempotency, name: &str) -> Outcome<String> {
    let started = Instant::now();
    loop {
        match call(idempotency, name).await {
            Ok(outcome) => return outcome,
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
        assert!(started.elapsed() < Duration::from_secs(60), "no answer for {name}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The run of each key that was charged.
pub async fn charges(pool: &PgPool) -> HashMap<String, String> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT key, run FROM charges").fetch_all(pool).await.expect("the charges");
    rows.into_iter().collect()
}

/// One charge for each key and one completed key for each charge, with the charge's run as the stored bytes; no key is
/// pending; the money is where the charges say.
pub async fn assert_consistent(pool: &PgPool) {
    let wrong: Vec<String> = sqlx::query_scalar(
        "SELECT format('%s charges for %s key %s with %s', n, state, key, result)
         FROM (SELECT key, count(*) AS n, min(run) AS run FROM charges GROUP BY key) AS charged
         FULL JOIN pgonce.keys USING (key)
         WHERE (n, state, result) IS DISTINCT FROM (1, 'completed', convert_to(format('\"%s\"', run), 'UTF8'))
         UNION ALL
         SELECT format('account %s has %s', id, balance) FROM accounts
         WHERE balance <> 1000 - (SELECT count(*) FROM charges WHERE hashtext(key) & 3 = id)
                               + (SELECT count(*) FROM charges WHERE 4 + (hashtext(key) & 3) = id)",
    )
    .fetch_all(pool)
    .await
    .expect("a comparison");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
