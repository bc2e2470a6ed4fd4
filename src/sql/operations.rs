//! The statements of the operator's tool. Private.
//!
//! None of them is kept prepared, and all run in explicit transactions: so they read right values also through a pooler that
//! does not follow prepared statements, which is one of the things that the tool is to find.

mod diagnosis;
mod evict;
mod key;
mod list;
mod place;
mod slots;
mod stats;

use sqlx::postgres::{PgArguments, PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{Postgres, Transaction};

pub(crate) use self::diagnosis::{
    Backlog, Connections, Prepared, Setting, Table, Transacting, Verified, backlog, committed_pending,
    connections, index_problems, long_transactions, prepared, settings, table, verify_as,
};
pub(crate) use self::evict::{Eviction, Filter as EvictionFilter, evict, evictions};
pub(crate) use self::key::{Holder, Row, holder, row};
pub(crate) use self::list::{Filter, Listed, Order, list};
pub(crate) use self::place::{Place, clock, place};
pub(crate) use self::slots::{Slot, slots};
pub(crate) use self::stats::{Sizes, Stats, sizes, stats};
use crate::Error;

/// A transaction of the tool's.
pub(crate) type Tx<'c> = Transaction<'c, Postgres>;

fn query<'q>(statement: &'static str) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(statement).persistent(false)
}

async fn all<T>(
    conn: &mut PgConnection,
    query: Query<'_, Postgres, PgArguments>,
    read: impl Fn(&PgRow) -> Result<T, sqlx::Error>,
) -> Result<Vec<T>, Error> {
    let rows = query.fetch_all(conn).await.map_err(Error::of_statement)?;
    Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
}

async fn one<T>(
    conn: &mut PgConnection,
    query: Query<'_, Postgres, PgArguments>,
    read: impl Fn(&PgRow) -> Result<T, sqlx::Error>,
) -> Result<T, Error> {
    let row = query.fetch_one(conn).await.map_err(Error::of_statement)?;
    Ok(read(&row)?)
}
