//! What a careless closure can do to its transaction.

use futures_util::FutureExt;
use pgonce::{Error, Mode};
use sqlx::{Connection, Executor, PgConnection};

/// What the closure does after its charge of 42.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Deed {
    SwallowAnError,
    Commit,
    CommitAndChain,
    CommitSwallowed,
    CommitAndGoOn,
    SetConstraintsImmediate,
    Rollback,
    RollbackAndBeginAgain,
    BeginWith,
    BeginOnAbortedSwallowed,
    CancelNestedBegin,
    ForgetNested,
    /// Not a deed against the transaction: `BEGIN` in a transaction is only a warning.
    RawBegin,
}

pub use Deed::*;

pub const ALL: [Deed; 12] = [
    SwallowAnError,
    Commit,
    CommitAndChain,
    CommitSwallowed,
    CommitAndGoOn,
    SetConstraintsImmediate,
    Rollback,
    RollbackAndBeginAgain,
    BeginWith,
    BeginOnAbortedSwallowed,
    CancelNestedBegin,
    ForgetNested,
];

/// In optimistic mode there is no constraint that could be made immediate.
pub fn all() -> impl Iterator<Item = Deed> {
    ALL.into_iter().filter(|deed| *deed != SetConstraintsImmediate || super::mode() != Mode::Optimistic)
}

pub async fn commit_deed(conn: &mut PgConnection, deed: Deed) -> Result<(), Error> {
    super::charge(conn, 42).await?;
    match deed {
        SwallowAnError => drop(conn.execute("SELECT 1 / 0").await),
        Commit => conn.execute("COMMIT").await.map(drop)?,
        CommitAndChain => conn.execute("COMMIT AND CHAIN").await.map(drop)?,
        CommitSwallowed => drop(conn.execute("COMMIT").await),
        // What fails afterwards fails in another transaction.
        CommitAndGoOn => {
            conn.execute("COMMIT AND CHAIN").await?;
            conn.execute("SELECT 1 / 0").await.map(drop)?;
        }
        SetConstraintsImmediate => conn.execute("SET CONSTRAINTS ALL IMMEDIATE").await.map(drop)?,
        Rollback => conn.execute("ROLLBACK").await.map(drop)?,
        RollbackAndBeginAgain => conn.execute("ROLLBACK; BEGIN").await.map(drop)?,
        BeginWith => drop(conn.begin_with("BEGIN").await),
        BeginOnAbortedSwallowed => {
            drop(conn.execute("SELECT 1 / 0").await);
            drop(conn.begin().await);
        }
        // Until it is dropped while it waits for its answer.
        CancelNestedBegin => while conn.begin().now_or_never().is_some() {},
        ForgetNested => std::mem::forget(conn.begin().await?),
        RawBegin => conn.execute("BEGIN").await.map(drop)?,
    }
    Ok(())
}

/// What it writes after the deed; on a plain pool this may be committed by itself.
pub async fn write_on(conn: &mut PgConnection) -> Result<(), Error> {
    conn.execute("INSERT INTO ledger (amount) VALUES (666)").await?;
    Ok(())
}
