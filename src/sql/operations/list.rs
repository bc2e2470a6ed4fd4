//! Many keys, page by page.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::{all, query};
use crate::Error;

/// A page goes on after the last row of the one before (`$9`, `$10`, `$11`), so it costs the same however many came before.
macro_rules! list {
    ($after:literal, $order:literal) => {
        concat!(
            "SELECT scope, key, state, attempt, created_at, completed_at, expires_at,
                    state <> 'pending' AND expires_at <= pg_catalog.clock_timestamp() AS expired,
                    state = 'completed' AND result IS NULL AS message,
                    pg_catalog.octet_length(result)::bigint AS result_bytes
             FROM pgonce.keys
             WHERE ($1::text IS NULL OR scope = $1) AND ($2::text IS NULL OR pg_catalog.starts_with(scope, $2))
                 AND ($3::text IS NULL OR pg_catalog.starts_with(key, $3))
                 AND ($4::text IS NULL
                      OR CASE WHEN state = 'completed' AND result IS NULL THEN 'message' ELSE state END = $4)
                 AND ($5::boolean IS NULL
                      OR (state <> 'pending' AND expires_at <= pg_catalog.clock_timestamp()) = $5)
                 AND ($6::timestamptz IS NULL OR created_at >= $6)
                 AND ($7::timestamptz IS NULL OR created_at < $7)
                 AND ($10::text IS NULL OR ",
            $after,
            ") ORDER BY ",
            $order,
            " LIMIT $8"
        )
    };
}

/// `$9` is bound in every order, and so it is named in every one.
const NEWEST: &str = list!(
    "(created_at, scope, key) < ($9::timestamptz, $10, $11::text)",
    "created_at DESC, scope DESC, key DESC"
);
const OLDEST: &str =
    list!("(created_at, scope, key) > ($9::timestamptz, $10, $11::text)", "created_at, scope, key");
const EXPIRES: &str =
    list!("(expires_at, scope, key) > ($9::timestamptz, $10, $11::text)", "expires_at, scope, key");
const KEY: &str = list!("(scope, key) > ($10, $11::text) OR $9::timestamptz IS NULL", "scope, key");

/// In which order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize, Serialize)]
pub(crate) enum Order {
    /// The newest claim first
    #[default]
    Newest,
    /// The oldest claim first
    Oldest,
    /// What expires first; quick however many keys there are
    Expires,
    /// By scope and key; quick however many keys there are
    Key,
}

/// Which keys, and which page of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) scope: Option<String>,
    pub(crate) scope_prefix: Option<String>,
    pub(crate) key_prefix: Option<String>,
    pub(crate) state: Option<&'static str>,
    pub(crate) expired: Option<bool>,
    pub(crate) created_from: Option<DateTime<Utc>>,
    pub(crate) created_before: Option<DateTime<Utc>>,
    pub(crate) order: Order,
    pub(crate) limit: u32,
    /// The last row of the page before.
    pub(crate) after: Option<(DateTime<Utc>, String, String)>,
}

/// One of them.
#[derive(Debug, Serialize)]
pub(crate) struct Listed {
    pub(crate) scope: String,
    pub(crate) key: String,
    pub(crate) state: String,
    pub(crate) message: bool,
    pub(crate) expired: bool,
    pub(crate) attempt: Uuid,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) completed_at: Option<DateTime<Utc>>,
    pub(crate) expires_at: DateTime<Utc>,
    pub(crate) result_bytes: Option<i64>,
}

pub(crate) async fn list(conn: &mut PgConnection, filter: &Filter) -> Result<Vec<Listed>, Error> {
    let statement = match filter.order {
        Order::Newest => NEWEST,
        Order::Oldest => OLDEST,
        Order::Expires => EXPIRES,
        Order::Key => KEY,
    };
    let after = filter.after.as_ref();
    let query = query(statement)
        .bind(&filter.scope)
        .bind(&filter.scope_prefix)
        .bind(&filter.key_prefix)
        .bind(filter.state)
        .bind(filter.expired)
        .bind(filter.created_from)
        .bind(filter.created_before)
        .bind(i64::from(filter.limit))
        .bind(after.map(|(at, ..)| *at))
        .bind(after.map(|(_, scope, _)| scope))
        .bind(after.map(|(.., key)| key));
    all(conn, query, |row| {
        Ok(Listed {
            scope: row.try_get("scope")?,
            key: row.try_get("key")?,
            state: row.try_get("state")?,
            message: row.try_get("message")?,
            expired: row.try_get("expired")?,
            attempt: row.try_get("attempt")?,
            created_at: row.try_get("created_at")?,
            completed_at: row.try_get("completed_at")?,
            expires_at: row.try_get("expires_at")?,
            result_bytes: row.try_get("result_bytes")?,
        })
    })
    .await
}
