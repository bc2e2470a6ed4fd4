//! The program, and what it said.

use std::process::{Output, Stdio};
use std::time::Duration;

use pgonce::{Error, Idempotency, IdempotencyKey, Operation, Scope};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tokio::process::Command;

use crate::support::Database;

pub const SCOPE: &str = "acct_42/charges";
pub const CONSUMER: &str = "ledger/payments";

/// What the program said, and how it ended.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Asserts how it ended.
    #[track_caller]
    pub fn ending(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.out, self.err);
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// On stdout or on stderr.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        assert!(
            self.out.contains(text) || self.err.contains(text),
            "no `{text}` in:\n{}\n{}",
            self.out,
            self.err
        );
        self
    }

    #[track_caller]
    pub fn does_not_say(&self, text: &str) -> &Self {
        assert!(
            !self.out.contains(text) && !self.err.contains(text),
            "`{text}` in:\n{}\n{}",
            self.out,
            self.err
        );
        self
    }
}

/// The program, with nothing of the caller's environment that it would read.
pub fn program(args: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_pgonce"));
    program.args(args).stdin(Stdio::null()).kill_on_drop(true);
    for name in [
        "DATABASE_URL",
        "PGHOST",
        "PGHOSTADDR",
        "PGPORT",
        "PGUSER",
        "PGPASSWORD",
        "PGPASSFILE",
        "PGDATABASE",
        "PGSSLMODE",
        "PGOPTIONS",
        "PGAPPNAME",
        "COLUMNS",
        "NO_COLOR",
    ] {
        program.env_remove(name);
    }
    program
}

pub fn said(output: Output) -> Said {
    Said {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        err: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Runs the program on this server and database.
pub async fn run_at(url: &str, args: &[&str]) -> Said {
    let running = program(args).env("DATABASE_URL", url).output();
    let output = tokio::time::timeout(Duration::from_secs(60), running).await.expect("it ends");
    said(output.expect("run pgonce"))
}

pub async fn run(db: &Database, args: &[&str]) -> Said {
    run_at(&db.url(), args).await
}

pub async fn json(db: &Database, args: &[&str]) -> Value {
    run(db, &[args, &["--json"]].concat()).await.json()
}

/// As another role, by the variables that libpq knows.
pub async fn run_as(db: &Database, role: &str, args: &[&str]) -> Said {
    let options = db.options();
    let output = program(args)
        .env("PGHOST", options.get_host())
        .env("PGPORT", options.get_port().to_string())
        .env("PGUSER", role)
        .env("PGPASSWORD", "secret")
        .env("PGDATABASE", db.name())
        .output();
    said(output.await.expect("run pgonce"))
}

/// A role that may log in and owns nothing.
pub struct Role {
    pub name: String,
}

impl Role {
    pub async fn new(db: &Database) -> Self {
        let name = format!("app_{}", uuid::Uuid::new_v4().simple());
        sql(&db.pool, &format!("CREATE ROLE {name} LOGIN PASSWORD 'secret'")).await;
        Self { name }
    }
}

pub async fn sql(pool: &PgPool, statements: &str) {
    sqlx::raw_sql(AssertSqlSafe(statements.to_owned()))
        .execute(pool)
        .await
        .unwrap_or_else(|error| panic!("{statements}: {error}"));
}

pub fn operation(scope: &str, key: &str) -> Operation {
    Operation::new(Scope::new(scope).unwrap(), IdempotencyKey::try_from(key).unwrap())
        .with_params(&1)
        .unwrap()
}

pub fn expired(scope: &str, key: &str) -> Operation {
    operation(scope, key).with_retention(Duration::ZERO)
}

/// Executes it, with a result that is not to be seen by everybody.
pub async fn execute(idempotency: &Idempotency, operation: &Operation) {
    idempotency.execute(operation, async |_| Ok::<_, Error>("the secret receipt".to_owned())).await.unwrap();
}

/// Records a final failure.
pub async fn fail(idempotency: &Idempotency, operation: &Operation) {
    let refusal =
        async |_: &mut PgConnection| Ok::<Result<(), String>, Error>(Err("the secret refusal".to_owned()));
    idempotency.execute_recording(operation, refusal).await.unwrap().into_inner().unwrap_err();
}

/// Processes a message.
pub async fn process(idempotency: &Idempotency, id: &str, retention: Duration) {
    let inbox = idempotency.inbox(Scope::new(CONSUMER).unwrap()).with_retention(retention);
    inbox.process(id, async |_| Ok::<_, Error>(())).await.unwrap();
}
