//! Where the story takes place: a database that nobody else uses, and that is gone afterwards.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use throwaway_postgres::Server;
use uuid::Uuid;

pub const ROLE: &str = "keeper-of-the-database";

pub struct Stage {
    url: String,
    place: Place,
}

enum Place {
    /// A server of our own.
    ThrowawayServer(Server),
    /// A database of our own on the server that `DATABASE_URL` names, and the process that keeps it.
    Database { name: String, keeper: Child },
}

impl Stage {
    pub fn set() -> Result<Self> {
        let server = throwaway_postgres::private()?;
        if !server.is_external() {
            return Ok(Self { url: server.url().to_owned(), place: Place::ThrowawayServer(server) });
        }
        let name = format!("pgonce_payment_{}", Uuid::new_v4().simple());
        let keeper = start_keeper(&name)?;
        Ok(Self { url: server.url_of(&name), place: Place::Database { name, keeper } })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn description(&self) -> String {
        match &self.place {
            Place::ThrowawayServer(server) => format!("a throwaway server, from the {}", server.origin()),
            Place::Database { name, .. } => format!("the one in DATABASE_URL, new database {name}"),
        }
    }

    /// Takes everything away, makes sure that it is gone, and says what it was.
    pub async fn clear(self) -> Result<String> {
        match self.place {
            Place::ThrowawayServer(server) => {
                drop(server);
                ensure!(
                    PgConnection::connect(&self.url).await.is_err(),
                    "the throwaway server is still there"
                );
                Ok("The throwaway server is gone.".into())
            }
            Place::Database { name, keeper } => {
                // Closes the keeper's stdin, and waits for its end.
                let output = keeper.wait_with_output()?;
                ensure!(output.status.success(), "cannot drop the database {name}: {}", complaint(&output));
                Ok(format!("The database {name} is dropped."))
            }
        }
    }
}

/// Returns when the database is there.
fn start_keeper(database: &str) -> Result<Child> {
    let mut keeper = Command::new(env::current_exe()?)
        .args([ROLE, database])
        // A group of its own: a Ctrl-C that ends the story must not end who cleans up after it.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(keeper.stdout.take().context("the keeper has no stdout")?).read_line(&mut line)?;
    if line.is_empty() {
        let output = keeper.wait_with_output()?;
        bail!("cannot make a database on the server in DATABASE_URL: {}", complaint(&output));
    }
    Ok(keeper)
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}

/// The keeper: makes the database, and drops it as soon as the story's end of the pipe is closed. That happens at
/// its end, and also when it is killed.
pub async fn play() -> Result<()> {
    let name = env::args().nth(2).context("the name of a database")?;
    let mut conn = PgConnection::connect(&env::var("DATABASE_URL")?).await?;
    // A name cannot be bound as a value; this one was made by `Stage::set`.
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut conn).await?;
    // Should the story be gone already, nobody reads this, and the database must go all the same.
    let _ = writeln!(io::stdout(), "it is there");
    io::stdin().read_to_end(&mut Vec::new())?;
    sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"))).execute(&mut conn).await?;
    conn.close().await?;
    Ok(())
}
