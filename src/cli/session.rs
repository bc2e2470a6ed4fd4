//! The connection of a command: [`Session`].

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, PgPool};

use super::args::Server;
use super::exit::{Exit, Failure};
use super::terminal::Terminal;
use crate::MIGRATIONS;
use crate::sql::operations::{self, Place, Tx};

/// How long a statement waits for a lock. A tool for looking must not queue up in front of the application.
const LOCK_TIMEOUT: &str = "5s";

/// What PgBouncer says to a BEGIN in such a mode, in all its versions, and what it means.
const STATEMENT_MODE: (&str, &str, &str) = (
    "transaction blocks not allowed in statement pooling mode",
    "a connection pooler in statement mode lets nobody begin a transaction, so every call fails",
    "PgBouncer: pool_mode = transaction with max_prepared_statements = 200, or pool_mode = session; see docs/pgbouncer.md",
);

const READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// What a command needs of the schema and of its role.
#[derive(Clone, Copy, Debug)]
pub(super) enum Need {
    /// Nothing: the command looks for itself.
    Nothing,
    /// To read keys, of any schema version.
    Read,
    /// To read the trace of evictions.
    Evictions,
    /// To delete keys.
    Purge,
    /// To delete keys, and to leave a trace.
    Evict,
}

/// One connection to where we are.
pub(super) struct Session {
    conn: PgConnection,
    pub(super) place: Place,
    /// In milliseconds, 0 for none.
    timeout: u64,
}

impl Session {
    pub(super) async fn open(server: &Server, need: Need, terminal: &Terminal) -> Result<Self, Failure> {
        let mut conn = connect(server).await?;
        let timeout = milliseconds(server);
        let mut transaction = begin(&mut conn, READ, timeout).await?;
        let place = operations::place(&mut transaction).await?;
        transaction.rollback().await?;
        check(&place, need, terminal)?;
        Ok(Self { conn, place, timeout })
    }

    /// One snapshot, in which nothing can be written.
    pub(super) async fn read(&mut self) -> Result<Tx<'_>, Failure> {
        begin(&mut self.conn, READ, self.timeout).await
    }

    pub(super) async fn write(&mut self) -> Result<Tx<'_>, Failure> {
        begin(&mut self.conn, "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE", self.timeout).await
    }

    /// Of one connection, for what wants a pool of its own and begins its transactions itself; not through a pooler.
    pub(super) fn pool(server: &Server) -> Result<PgPool, Failure> {
        let settings = format!(
            "SET lock_timeout = '{LOCK_TIMEOUT}'; SET statement_timeout = {}; SET default_transaction_read_only = off",
            milliseconds(server)
        );
        let pool = PgPoolOptions::new().max_connections(1).after_connect(move |conn, _| {
            let settings = AssertSqlSafe(settings.clone());
            Box::pin(async move { conn.execute(settings).await.map(drop) })
        });
        Ok(pool.connect_lazy_with(options(server)?))
    }

    pub(super) async fn close(self) {
        // It is over in any case.
        let _ = self.conn.close().await;
    }

    /// Whether the trace of evictions can be read here.
    pub(super) fn sees_evictions(&self) -> bool {
        self.place.evictions
            && !self.place.missing.iter().any(|grant| Need::Evictions.grants().contains(&grant.as_str()))
    }
}

impl Need {
    fn grants(self) -> &'static [&'static str] {
        match self {
            Self::Nothing => &[],
            Self::Read => &["USAGE ON SCHEMA pgonce", "SELECT ON pgonce.keys"],
            Self::Evictions => &["USAGE ON SCHEMA pgonce", "SELECT ON pgonce.evictions"],
            Self::Purge => &[
                "USAGE ON SCHEMA pgonce",
                "SELECT ON pgonce.keys",
                "UPDATE ON pgonce.keys",
                "DELETE ON pgonce.keys",
            ],
            Self::Evict => &[
                "USAGE ON SCHEMA pgonce",
                "SELECT ON pgonce.keys",
                "UPDATE ON pgonce.keys",
                "DELETE ON pgonce.keys",
                "SELECT ON pgonce.evictions",
                "INSERT ON pgonce.evictions",
            ],
        }
    }
}

fn milliseconds(server: &Server) -> u64 {
    u64::from(server.timeout) * 1000
}

/// `timeout` in milliseconds, for each statement.
async fn begin<'c>(conn: &'c mut PgConnection, begin: &str, timeout: u64) -> Result<Tx<'c>, Failure> {
    let begin = format!(
        "{begin}; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; SET LOCAL statement_timeout = {timeout}"
    );
    conn.begin_with(AssertSqlSafe(begin)).await.map_err(|error| match &error {
        sqlx::Error::Database(said) if said.message().contains(STATEMENT_MODE.0) => {
            Failure::new(Exit::Failed, STATEMENT_MODE.1).with_fix(STATEMENT_MODE.2)
        }
        _ => crate::Error::of_begin(error).into(),
    })
}

/// Whether it is a pooler that stands in the way, which is nothing for the command to mend.
pub(super) fn is_in_statement_mode(failure: &Failure) -> bool {
    failure.message == STATEMENT_MODE.1
}

/// Whether the command can do its work here.
fn check(place: &Place, need: Need, terminal: &Terminal) -> Result<(), Failure> {
    let Place { role, quoted_role, database, schema, standby, missing, .. } = place;
    if matches!(need, Need::Nothing) {
        return Ok(());
    }
    let ours = newest();
    match *schema {
        0 => {
            return Err(Failure::new(
                Exit::Schema,
                format!("there is no pgonce in database {database}: table pgonce.keys is missing"),
            )
            .with_fix("pgonce migrate, as the owner of the database; or --database-url with another one"));
        }
        schema if schema != ours => {
            let fix = other_version(schema);
            let says = format!("the schema of database {database} is of version {schema}, not {ours}");
            // What is there can be read all the same.
            if !matches!(need, Need::Read) {
                return Err(Failure::new(Exit::Schema, says).with_fix(fix));
            }
            terminal.note(format!("warning: {says}: {fix}"));
        }
        _ => {}
    }
    if matches!(need, Need::Evictions | Need::Evict) && !place.evictions {
        let says = format!(
            "table pgonce.evictions is missing in database {database}, though its schema is of version {schema}"
        );
        return Err(Failure::new(Exit::Schema, says).with_fix("pgonce doctor has the SQL that restores it"));
    }
    let lacks: Vec<_> = missing.iter().filter(|grant| need.grants().contains(&grant.as_str())).collect();
    if !lacks.is_empty() {
        let named: Vec<_> = lacks.iter().map(|grant| grant.as_str()).collect();
        let fix: Vec<_> = lacks.iter().map(|grant| format!("GRANT {grant} TO {quoted_role};")).collect();
        return Err(Failure::new(Exit::Grants, format!("role {role} lacks {}", named.join(", ")))
            .with_fix(fix.join("\n")));
    }
    if *standby {
        let says = "this is a standby: it may be behind, and it does not see what is in flight";
        if matches!(need, Need::Purge | Need::Evict) {
            return Err(Failure::new(Exit::Failed, "this is a standby: nothing can be written here")
                .with_fix("connect to the primary"));
        }
        terminal.note(format!("warning: {says}"));
    }
    Ok(())
}

/// The version of the schema that this release brings.
pub(super) fn newest() -> i64 {
    MIGRATIONS.last().map_or(0, |migration| migration.version)
}

/// What to do about a schema of this version.
pub(super) fn other_version(schema: i64) -> String {
    if schema > newest() {
        let release = env!("CARGO_PKG_VERSION");
        format!("a newer release of pgonce made it: take the tool of that release (this is {release})")
    } else {
        "pgonce migrate, as the owner of the database, brings it up to date".into()
    }
}

/// From `--database-url`, or from the variables that libpq knows.
pub(super) fn options(server: &Server) -> Result<PgConnectOptions, Failure> {
    let options = match &server.database_url {
        Some(url) => parse(url).ok_or_else(|| {
            // What is wrong with it may be a part of a password.
            Failure::new(Exit::Usage, "the database's URL cannot be understood").with_fix(
                "postgres://user@host:5432/database, with % codes for special characters in a password",
            )
        })?,
        None => PgConnectOptions::new(),
    };
    let name = options.get_application_name().unwrap_or("pgonce").to_owned();
    // PgBouncer refuses the parameter unless it is told to ignore it, and nobody reads floats here.
    Ok(options.application_name(&name).extra_float_digits(None))
}

fn parse(url: &str) -> Option<PgConnectOptions> {
    let is_one = url.starts_with("postgres://") || url.starts_with("postgresql://");
    is_one.then(|| url.parse().ok()).flatten()
}

async fn connect(server: &Server) -> Result<PgConnection, Failure> {
    let options = options(server)?;
    let place = place_of(&options);
    let failed = |why: String| {
        Failure::new(Exit::NoConnection, format!("cannot connect to {place}: {why}")).with_fix(
            "--database-url, DATABASE_URL, or PGHOST, PGPORT, PGUSER, PGPASSWORD and PGDATABASE say where to",
        )
    };
    let connected = if server.timeout == 0 {
        Ok(options.connect().await)
    } else {
        tokio::time::timeout(Duration::from_secs(server.timeout.into()), options.connect()).await
    };
    match connected {
        Ok(Ok(conn)) => Ok(conn),
        Ok(Err(sqlx::Error::Database(error))) => Err(failed(error.message().to_owned())),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no answer within {} s", server.timeout))),
    }
}

fn place_of(options: &PgConnectOptions) -> String {
    let host = match options.get_socket() {
        Some(socket) => socket.display().to_string(),
        None => options.get_host().to_owned(),
    };
    let database = options.get_database().unwrap_or(options.get_username());
    format!("database {database} on {host}:{} as {}", options.get_port(), options.get_username())
}
