//! How the tool ends: [`Exit`], and why it failed: [`Failure`].

use std::process::ExitCode;

use sqlx::error::DatabaseError;

use crate::closure::database_error;
use crate::{Error, ErrorKind};

/// The exit codes. Scripts depend on them: they are never given another meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    Fine = 0,
    /// The answer is no: a problem was found, there is no such key, nobody said yes.
    No = 1,
    Usage = 2,
    NoConnection = 3,
    /// The schema is missing, or of another version.
    Schema = 4,
    Grants = 5,
    /// Another transaction is at the key.
    InFlight = 6,
    /// Anything else.
    Failed = 7,
    Interrupted = 130,
}

impl Exit {
    /// In the help and on the man page.
    pub(super) const CODES: &str = "\
Exit codes:
  0    fine
  1    the answer is no: the doctor found a problem, there is no such key, nobody said yes
  2    wrong usage
  3    no connection
  4    pgonce's schema is missing, or of another version
  5    a grant is missing
  6    the key is in flight: nothing was done, try again
  7    anything else: the database refused, a time-out
  130  interrupted with Ctrl-C";

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fine => "fine",
            Self::No => "no",
            Self::Usage => "usage",
            Self::NoConnection => "no_connection",
            Self::Schema => "schema",
            Self::Grants => "grants",
            Self::InFlight => "in_flight",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why nothing came of it, and what to do.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) message: String,
    pub(super) fix: Option<String>,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), fix: None }
    }

    pub(super) fn with_fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if error.kind() == ErrorKind::NotMigrated {
            return Self::new(Exit::Schema, error.to_string());
        }
        let is_lost = matches!(
            &error,
            Error::Database {
                source: sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::PoolTimedOut,
                ..
            }
        );
        let code = database_error(&error).and_then(DatabaseError::code);
        let exit = match code.as_deref() {
            // insufficient_privilege
            Some("42501") => Exit::Grants,
            // The server ends or starts, or has no connection left.
            Some("57P01" | "57P02" | "57P03" | "53300") => Exit::NoConnection,
            // query_canceled
            Some("57014") => {
                return Self::new(Exit::Failed, "the server did not answer in time")
                    .with_fix("give it longer with --timeout SECONDS, or narrow the question down");
            }
            // lock_not_available
            Some("55P03") => {
                return Self::new(Exit::Failed, "somebody has locked a table of pgonce's")
                    .with_fix("pgonce doctor shows long transactions; then try again");
            }
            _ if is_lost => Exit::NoConnection,
            _ => Exit::Failed,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Self::from(Error::of_statement(error))
    }
}
