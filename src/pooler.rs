//! Whether a connection pooler mixes up prepared statements. Private.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgDatabaseError, PgSeverity};
use sqlx::{ConnectOptions, Connection, PgPool};
use tracing::warn;

/// Each from a connection of its own, and each as that connection's first one. sqlx gives them the same name.
const STATEMENTS: [(i32, &str); 4] = [(1, "SELECT 1"), (2, "SELECT 2"), (3, "SELECT 3"), (4, "SELECT 4")];

/// How long to look for a proof. A pooler that is full would let us wait for minutes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether it is proven that statements of different connections are mixed up: a pooler lends each connection to the
/// server for one transaction only, and does not know which statements were prepared there, by whom and for what.
///
/// Only a proof counts. What cannot be asked (no connection is free) is logged and not held against the pooler.
pub(crate) async fn mixes_up_statements(pool: &PgPool) -> bool {
    match tokio::time::timeout(PATIENCE, ask(&pool.connect_options())).await {
        Ok(Ok(proven)) => proven,
        Ok(Err(error)) => {
            warn!(%error, "could not find out whether a pooler mixes up prepared statements");
            false
        }
        Err(_) => {
            warn!("could not find out in time whether a pooler mixes up prepared statements");
            false
        }
    }
}

/// One connection after the other, since a pooler that is idle lends the same connection to the server again. More
/// than two, since there may be several poolers behind one address.
async fn ask(options: &PgConnectOptions) -> Result<bool, sqlx::Error> {
    for (expected, statement) in STATEMENTS {
        let mut conn = options.connect().await?;
        // The second time it is prepared already, and a pooler that is busy may lend another connection.
        for _ in 0..2 {
            // Should it turn out to be somebody else's statement that is run, it can do no harm.
            let mut transaction = conn.begin_with("BEGIN READ ONLY").await?;
            let answer = sqlx::query_scalar::<_, i32>(statement).fetch_one(&mut *transaction).await;
            let ended = transaction.rollback().await;
            match answer {
                Ok(answer) if answer == expected => ended?,
                Err(error) if !is_proof(&error) => return Err(error),
                _ => return Ok(true),
            }
        }
        conn.close().await?;
    }
    Ok(false)
}

/// The server does not know this statement under our name, or another one was run.
fn is_proof(error: &sqlx::Error) -> bool {
    use sqlx::Error::{ColumnDecode, Database, RowNotFound};
    match error {
        RowNotFound | ColumnDecode { .. } => true,
        Database(error) => {
            // duplicate_prepared_statement, invalid_sql_statement_name; another one with parameters
            // (protocol_violation), or one that writes (read_only_sql_transaction).
            let named = matches!(error.code().as_deref(), Some("42P05" | "26000" | "08P01" | "25006"));
            // Not what a pooler says when it gives up.
            let severity = error.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
            named && severity == Some(PgSeverity::Error)
        }
        _ => false,
    }
}
