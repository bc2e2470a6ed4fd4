//! What is to happen once, as a number that it changes. Private.

use sqlx::{AssertSqlSafe, PgPool};

use super::handler::Boxed;

pub(super) struct Effect<'a> {
    /// As the report calls it.
    pub(super) name: String,
    source: Source<'a>,
}

enum Source<'a> {
    /// In the database.
    Query(String),
    /// Anywhere else.
    Callback(Box<dyn Fn() -> Boxed<'a, i64> + Send + Sync + 'a>),
}

impl<'a> Effect<'a> {
    pub(super) fn of_query(query: &str) -> Self {
        let query = query.trim().trim_end_matches(';');
        // Millionths, so that an amount of money with decimals is a whole number too. Nothing summed up is 0.
        let sql = format!("SELECT round(coalesce((\n{query}\n), 0)::numeric * {MILLION})::text");
        Self { name: format!("`{query}`"), source: Source::Query(sql) }
    }

    pub(super) fn of_callback<F, Fut>(name: &str, callback: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'a,
        Fut: Future<Output = i64> + Send + 'a,
    {
        Self { name: format!("`{name}`"), source: Source::Callback(Box::new(move || Box::pin(callback()))) }
    }

    /// The number, in millionths.
    pub(super) async fn value(&self, pool: &PgPool) -> Result<i128, sqlx::Error> {
        match &self.source {
            Source::Query(sql) => {
                let number: String = sqlx::query_scalar(AssertSqlSafe(sql.as_str())).fetch_one(pool).await?;
                number.parse().map_err(|_| sqlx::Error::Decode(format!("{number} is too large").into()))
            }
            Source::Callback(callback) => Ok(i128::from(callback().await) * MILLION),
        }
    }
}

const MILLION: i128 = 1_000_000;
