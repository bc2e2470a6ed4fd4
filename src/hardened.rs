//! The hardened pool, whose connections can write nothing outside of pgonce's transactions. Private.

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{PgPool, Row};

use crate::Error;

const POOLER: &str = "a connection pooler does not pass on the settings of a hardened pool: connect to the server itself, \
    or make a plain pool (`Idempotency::new`)";

/// Connects with the settings of a hardened pool, and sees that they are in force: a pooler may refuse or, worse, ignore
/// what it is told at the start of a connection.
pub(crate) async fn connect(pool: PgPoolOptions, options: PgConnectOptions) -> Result<PgPool, Error> {
    let options = options
        .options([("default_transaction_read_only", "on"), ("client_connection_check_interval", "1s")]);
    let pool = pool.connect_with(options).await.map_err(refused)?;
    let row = sqlx::raw_sql("SELECT current_setting('default_transaction_read_only') = 'on'")
        .fetch_one(&pool)
        .await?;
    if row.try_get(0)? {
        return Ok(pool);
    }
    pool.close().await;
    let source = sqlx::Error::Configuration("default_transaction_read_only was ignored".into());
    Err(Error::Database { source, hint: Some(POOLER) })
}

fn refused(error: sqlx::Error) -> Error {
    let code = error.as_database_error().and_then(|error| error.code());
    // protocol_violation, which is PgBouncer's for everything.
    let hint = (code.as_deref() == Some("08P01")).then_some(POOLER);
    Error::Database { source: error, hint }
}
