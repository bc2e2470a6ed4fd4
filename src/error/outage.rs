//! Whether everything fails like this, whatever it is about: the connection, the server and the pool, or the program, its
//! grants and its tables.

use std::error::Error as StdError;

use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use super::{Error, ErrorKind};
use crate::closure::{chain, database_error};

/// What a single row or message can bring about is none: constraints, conversions, time-outs, conflicts. Nor is an error that
/// does not show what it is.
pub(crate) fn is_outage(error: &(dyn StdError + 'static)) -> bool {
    database_error(error).is_some_and(is_of_all)
        || chain(error).any(|error| {
            let kind = error.downcast_ref::<Error>().map(Error::kind);
            kind == Some(ErrorKind::NotMigrated) || error.downcast_ref().is_some_and(is_connection)
        })
}

fn is_of_all(error: &(dyn DatabaseError + 'static)) -> bool {
    let code = error.code().unwrap_or_default();
    // Row-level security refuses a row with the code of a missing grant.
    let refuses_a_row = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::routine)
        == Some("ExecWithCheckOptions");
    // Classes: connection exceptions; syntax and access; resources; system errors.
    (["08", "42", "53", "58"].iter().any(|class| code.starts_with(class)) && !refuses_a_row)
        // read_only_sql_transaction; the server ends or starts; an idle session was ended.
        || matches!(code.as_ref(), "25006" | "57P01" | "57P02" | "57P03" | "57P05")
}

fn is_connection(error: &sqlx::Error) -> bool {
    matches!(
        error,
        sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::Configuration(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed
    )
}
