//! The two ends of the protocol, on any connection in a transaction: the claim before the work, the finish after it.
//! Private.

use std::cmp::Ordering;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use tracing::debug;

use crate::record::{Record, State};
use crate::sql::{self, Finish, Finished, Found, Owner};
use crate::transaction;
use crate::{Error, Operation, Scope};

/// What one try to claim came to.
pub(crate) enum Attempt {
    Claimed(Owner),
    Replayed(Record),
    InFlight,
}

/// Tries to claim, once, inside of the open transaction on this connection.
pub(crate) async fn claim(
    conn: &mut PgConnection,
    operation: &Operation,
    retention: Duration,
    finish: Finish,
) -> Result<Attempt, Error> {
    let finish = if operation.is_message() { Finish::AtCommit } else { finish };
    // A second round needs another transaction to have finished or removed the row in between.
    for _ in 0..MAX_ROUNDS {
        if let Some(owner) = sql::claim(conn, operation, retention, finish).await? {
            return Ok(Attempt::Claimed(owner));
        }
        match sql::look(conn, operation).await? {
            Found::Live(record) => return replay(operation, record).map(Attempt::Replayed),
            Found::Locked => return Ok(Attempt::InFlight),
            Found::Nothing => {}
            Found::Expired => {
                if let Some(owner) = sql::take_over(conn, operation, retention, finish).await? {
                    return Ok(Attempt::Claimed(owner));
                }
            }
        }
    }
    Err(neither_inserted_nor_seen())
}

/// What a live row is for this call.
pub(crate) fn replay(operation: &Operation, record: Record) -> Result<Record, Error> {
    if record.state == State::Pending {
        return Err(visible_pending(operation.scope()));
    }
    if !operation.is_same_as(&record.fingerprint) {
        debug!("the key was used with other parameters");
        return Err(operation.mismatch_error());
    }
    Ok(record)
}

pub(crate) fn neither_inserted_nor_seen() -> Error {
    Error::atomicity(
        "a row of pgonce.keys can neither be inserted nor be seen: a trigger, a rule or row-level security on that table \
         is in the way; see `pgonce::verify`. Nothing was run",
        None,
    )
}

/// Far more than a purge and takeovers can cause by chance.
pub(crate) const MAX_ROUNDS: u32 = 100;

/// Stores the result, and says when, as the last statement before COMMIT (or before the end of the caller's savepoint). Proves that
/// the transaction is alive, still the one that claimed, and as deep as it was.
pub(crate) async fn finish(
    conn: &mut PgConnection,
    owner: &mut Owner,
    depth: usize,
    state: State,
    result: &[u8],
) -> Result<DateTime<Utc>, Error> {
    is_as_deep(conn, depth)?;
    match sql::finish(conn, owner, state, result).await {
        Ok(Finished::Stored(at)) => Ok(at),
        Ok(Finished::Taken) => Err(Error::InFlight { scope: owner.scope.clone(), key: owner.key.clone() }),
        Ok(Finished::Outside) => Err(Error::left_the_transaction(None)),
        // read_only_sql_transaction: on a hardened pool, outside of our transaction.
        Err(error)
            if error.as_database_error().and_then(|error| error.code()).as_deref() == Some("25006") =>
        {
            Err(Error::left_the_transaction(Some(error)))
        }
        Err(error) => Err(Error::of_statement(error)),
    }
}

/// Whether the work has left the transaction as deep as it was, by sqlx's count.
pub(crate) fn is_as_deep(conn: &PgConnection, depth: usize) -> Result<(), Error> {
    match transaction::depth(conn).cmp(&depth) {
        Ordering::Equal => Ok(()),
        Ordering::Greater => Err(Error::atomicity(
            "the closure opened a nested transaction and neither committed nor dropped it (`mem::forget`?); nothing \
             was committed",
            None,
        )),
        Ordering::Less => Err(Error::left_the_transaction(None)),
    }
}

/// Without the key: the error may be logged.
pub(crate) fn visible_pending(scope: &Scope) -> Error {
    Error::atomicity(
        format!(
            "a key in scope `{scope}` is pending where no pending row can be seen: either the closure of this very operation \
             executes it again in its own transaction, or a pending row was committed because the constraint \
             pgonce.keys_finished_before_commit was dropped, disabled or bypassed. Nothing was run. In the second case \
             find the row (`SELECT * FROM pgonce.readable_keys WHERE state = 'pending'`), find out whether the operation \
             took effect, then delete it, and see `pgonce::verify`"
        ),
        None,
    )
}
