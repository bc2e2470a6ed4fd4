//! `pgonce migrate`: brings the schema up to date.

use clap::Args;
use serde::Serialize;

use super::args::Server;
use super::exit::{Exit, Failure};
use super::session::{self, Need, Session, newest};
use super::terminal::{STRONG, Terminal};
use super::words;
use crate::MIGRATIONS;

/// Apply the migrations that are missing
///
/// As a role that may create a schema, over a direct connection. Harmless to repeat. A database in which another tool than
/// sqlx's has run the migrations stays with that tool.
#[derive(Args, Debug)]
pub(super) struct Migrate {
    /// Change nothing; say what is missing
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run: the SQL of what is missing
    #[arg(long, requires = "dry_run")]
    sql: bool,
}

#[derive(Serialize)]
struct Document {
    database: String,
    /// The schema's version before.
    version: i64,
    missing: Vec<Missing>,
    applied: bool,
}

#[derive(Serialize)]
struct Missing {
    version: i64,
    name: &'static str,
}

impl Migrate {
    pub(super) async fn run(&self, server: &Server, terminal: &Terminal) -> Result<Exit, Failure> {
        // Clap overlooks a global flag that stands before the command.
        if self.sql && terminal.json {
            return Err(Failure::new(Exit::Usage, "--sql cannot be used with --json")
                .with_fix("--json alone names what is missing"));
        }
        let session = Session::open(server, Need::Nothing, terminal).await?;
        let place = &session.place;
        let (database, version, noted) = (place.database.clone(), place.schema, place.noted);
        let standby = place.standby;
        session.close().await;
        if version > newest() {
            return Err(Failure::new(
                Exit::Schema,
                format!("the schema of database {database} is of version {version}, not {}", newest()),
            )
            .with_fix(session::other_version(version)));
        }
        let missing: Vec<_> = MIGRATIONS.iter().filter(|migration| migration.version > version).collect();
        if self.sql {
            let files = missing.iter().map(|migration| migration.up.trim_end());
            terminal.say(files.collect::<Vec<_>>().join("\n\n"));
            return Ok(Exit::Fine);
        }
        if !self.dry_run && !missing.is_empty() {
            if standby {
                return Err(Failure::new(Exit::Failed, "this is a standby: nothing can be written here")
                    .with_fix("connect to the primary"));
            }
            if version > 0 && !noted {
                return Err(Failure::new(
                    Exit::Schema,
                    format!("another tool than sqlx's has migrated database {database}"),
                )
                .with_fix("stay with that tool; pgonce migrate --dry-run --sql prints what it is to run"));
            }
            let pool = Session::pool(server)?;
            crate::migrate(&pool).await?;
            pool.close().await;
        }
        if terminal.json {
            let missing =
                missing.iter().map(|migration| Missing { version: migration.version, name: migration.name });
            terminal.document(&Document {
                database,
                version,
                missing: missing.collect(),
                applied: !self.dry_run,
            })?;
            return Ok(Exit::Fine);
        }
        let (done, database) =
            (if self.dry_run { "missing" } else { "applied" }, terminal.paint(STRONG, &database));
        if missing.is_empty() {
            terminal.say(format!("{database}: nothing to do, the schema is of version {version}"));
        }
        for migration in missing {
            terminal.say(format!(
                "{database}: {done} {} {}",
                migration.version,
                words::argument(migration.name)
            ));
        }
        Ok(Exit::Fine)
    }
}
