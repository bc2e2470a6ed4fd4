//! The database of a run: a bank, and a history of all keys.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::log::Micros;
use crate::plan::ACCOUNTS;

const SCHEMA: &str = "
CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL);

CREATE TABLE payments (
    run uuid NOT NULL,
    key text NOT NULL,
    debtor bigint NOT NULL,
    creditor bigint NOT NULL,
    amount bigint NOT NULL,
    xid text NOT NULL DEFAULT pg_current_xact_id()::text
);

-- Everything that was ever committed to a row of pgonce.keys, also to those that are purged.
CREATE TABLE history (
    id bigint GENERATED ALWAYS AS IDENTITY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    xid text NOT NULL DEFAULT pg_current_xact_id()::text,
    before pgonce.keys,
    after pgonce.keys
);

CREATE FUNCTION remember() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO history (before, after) VALUES (
        CASE WHEN TG_OP <> 'INSERT' THEN OLD END,
        CASE WHEN TG_OP <> 'DELETE' THEN NEW END
    );
    RETURN NULL;
END $$;
CREATE TRIGGER remember AFTER INSERT OR UPDATE OR DELETE ON pgonce.keys FOR EACH ROW EXECUTE FUNCTION remember();

CREATE FUNCTION micros(timestamptz) RETURNS bigint STRICT LANGUAGE sql AS
    'SELECT (extract(epoch FROM $1) * 1000000)::bigint';

CREATE FUNCTION evidence(pgonce.keys) RETURNS json STRICT LANGUAGE sql AS $$
    SELECT json_build_object(
        'key', $1.scope || ' ' || $1.key, 'state', $1.state, 'attempt', $1.attempt,
        'result', convert_from($1.result, 'UTF8'),
        'created_at', micros($1.created_at), 'expires_at', micros($1.expires_at)
    )
$$;
";

/// Creates it. pgonce's own schema is there.
pub async fn create(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(SCHEMA).execute(&mut *conn).await?;
    sqlx::query("INSERT INTO accounts SELECT id, 0 FROM generate_series(0, $1 - 1) AS id")
        .bind(ACCOUNTS as i64)
        .execute(conn)
        .await
        .map(drop)
}

/// What the database holds at the end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evidence {
    /// In the order in which they happened, for each key.
    pub history: Vec<Change>,
    pub keys: Vec<Row>,
    pub payments: Vec<Payment>,
    pub accounts: Vec<Account>,
}

/// One change of a row of pgonce.keys, in which one of the two may be missing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Change {
    pub at: Micros,
    pub xid: String,
    pub before: Option<Row>,
    pub after: Option<Row>,
}

/// A row of pgonce.keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// With the scope.
    pub key: String,
    pub state: String,
    pub attempt: Uuid,
    pub result: Option<String>,
    pub created_at: Micros,
    pub expires_at: Micros,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Payment {
    pub run: Uuid,
    pub key: String,
    pub debtor: i64,
    pub creditor: i64,
    pub amount: i64,
    pub xid: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Account {
    pub id: i64,
    pub balance: i64,
}

impl Evidence {
    pub async fn read(conn: &mut PgConnection) -> Result<Self, sqlx::Error> {
        let change = "json_build_object('at', micros(at), 'xid', xid, 'before', evidence(before), 'after', evidence(after))";
        Ok(Self {
            history: rows(conn, &format!("SELECT {change} FROM history ORDER BY id")).await?,
            keys: rows(conn, "SELECT evidence(k) FROM pgonce.keys AS k").await?,
            payments: rows(conn, "SELECT row_to_json(p) FROM payments AS p").await?,
            accounts: rows(conn, "SELECT row_to_json(a) FROM accounts AS a").await?,
        })
    }
}

/// The rows of a query that selects one JSON.
async fn rows<T: DeserializeOwned>(conn: &mut PgConnection, query: &str) -> Result<Vec<T>, sqlx::Error> {
    let query = query.replacen(" FROM", "::text FROM", 1);
    let texts: Vec<String> = sqlx::query_scalar(AssertSqlSafe(query)).fetch_all(conn).await?;
    Ok(texts.iter().map(|text| serde_json::from_str(text).expect(text)).collect())
}
