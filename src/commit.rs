//! The COMMIT, and what became of it when its answer is lost. Private.
//!
//! | what COMMIT comes to | what it means |
//! | --- | --- |
//! | its answer | committed |
//! | an error that the server sent and lived on after | not committed: a deferred constraint, a serialization failure |
//! | an error by which the server ended the session, or that says that the connection is gone | unknown |
//! | a lost connection, or no answer in time | unknown |
//!
//! An unknown one is looked for on another connection. The claim holds the key's advisory lock until its transaction
//! ends. So whoever gets that lock knows that it has ended, and sees in a *new* snapshot how: the row has our attempt,
//! or it never will. The closure's result decides nothing here, so it may be different in every run.

use std::io;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use sqlx::postgres::{PgDatabaseError, PgSeverity};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use crate::sql::{self, Owner};
use crate::transaction::Transaction;
use crate::{Error, Idempotency};

/// Why a claim that was to be committed is not.
pub(crate) struct NotCommitted {
    pub(crate) error: Error,
    /// It was lost at COMMIT and is proven to have left nothing, so the same work may be done again at once.
    pub(crate) lost: bool,
}

impl From<Error> for NotCommitted {
    fn from(error: Error) -> Self {
        Self { error, lost: false }
    }
}

/// Commits. When the answer is lost, finds out what became of it.
pub(crate) async fn commit(
    transaction: Transaction,
    owner: &Owner,
    idempotency: &Idempotency,
) -> Result<(), NotCommitted> {
    let limit = idempotency.commit_timeout;
    // Cut off, it closes its connection. The server may be committing all the same.
    let source = match timeout(limit, transaction.commit()).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) if !leaves_commit_unknown(&error) => return Err(Error::of_commit(error).into()),
        Ok(Err(error)) => error,
        Err(_) => io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")).into(),
    };
    warn!(attempt = %owner.attempt, "the answer to COMMIT was lost: {source}");
    match find_out(owner, idempotency).await {
        Fate::Committed => {
            info!(attempt = %owner.attempt, "it had been committed");
            Ok(())
        }
        Fate::Dead => {
            info!(attempt = %owner.attempt, "nothing of it had been committed");
            Err(NotCommitted { error: Error::lost_at_commit(source), lost: true })
        }
        Fate::Unknown(known) => {
            warn!(attempt = %owner.attempt, "it is not known whether it was committed: {known}");
            let Owner { scope, key, attempt, .. } = owner.clone();
            Err(Error::CommitUnknown { scope, key, attempt, known, source }.into())
        }
    }
}

/// What became of an attempt.
enum Fate {
    Committed,
    /// Nothing of it is left, nor will be.
    Dead,
    /// What is known of it.
    Unknown(String),
}

/// Asks, in rounds, until there is an answer or the time is over.
async fn find_out(owner: &Owner, idempotency: &Idempotency) -> Fate {
    let limit = idempotency.commit_timeout;
    let deadline = Instant::now() + limit;
    let mut pauses = ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(4))
        .with_max_delay(Duration::from_millis(250))
        .without_max_times()
        .with_jitter()
        .build();
    let mut known = format!("the database did not answer for {limit:?}");
    loop {
        // Several rounds, since the pool's idle connections may be as dead as the one that was lost; each long enough to
        // make a new one.
        let round = deadline.min(Instant::now() + Duration::from_secs(1).max(limit / 4));
        match timeout_at(round, ask(owner, idempotency)).await {
            Ok(Ok(Answer::Committed)) => return Fate::Committed,
            // A row that is not there may also have expired and been purged.
            Ok(Ok(Answer::Absent)) if Instant::now() < owner.live_until => return Fate::Dead,
            Ok(Ok(Answer::Absent)) => {
                return Fate::Unknown("its retention ended before that could be found out".to_owned());
            }
            Ok(Ok(Answer::Running)) => {
                known = format!("after {limit:?} its transaction was still open on the server");
            }
            Ok(Err(Error::Database { source: error @ sqlx::Error::PoolClosed, .. })) => {
                return Fate::Unknown(format!("the database could not be asked: {error}"));
            }
            Ok(Err(error)) => known = format!("the database could not be asked for {limit:?}: {error}"),
            Err(_) => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match pauses.next() {
            Some(pause) if !left.is_zero() => tokio::time::sleep(pause.min(left)).await,
            _ => return Fate::Unknown(known),
        }
    }
}

enum Answer {
    Committed,
    Absent,
    Running,
}

async fn ask(owner: &Owner, idempotency: &Idempotency) -> Result<Answer, Error> {
    let mut transaction = idempotency.begin_on_primary().await?;
    let ended = sql::try_lock(transaction.connection(), owner).await?;
    if sql::confirm(transaction.connection(), owner).await? {
        // Where a standby must confirm each commit, this one is confirmed after the one that was lost.
        transaction.commit().await?;
        return Ok(Answer::Committed);
    }
    transaction.rollback().await;
    Ok(if ended { Answer::Absent } else { Answer::Running })
}

/// Whether a COMMIT that failed like this may have taken effect all the same: whenever the session ended with it.
fn leaves_commit_unknown(error: &sqlx::Error) -> bool {
    let Some(database) = error.as_database_error() else { return true };
    // connection exceptions, statement_completion_unknown
    let unknown = database.code().is_some_and(|code| code.starts_with("08") || code == "40003");
    let severity = database.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
    unknown || matches!(severity, None | Some(PgSeverity::Fatal | PgSeverity::Panic))
}
