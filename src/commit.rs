//! The COMMIT, and what became of it when its answer is lost. Private.
//!
//! | what COMMIT comes to | what it means |
//! | --- | --- |
//! | its answer | committed |
//! | an error that the server sent and lived on after | not committed: a deferred constraint, a serialization failure |
//! | an error by which the server ended the session, or that says that the connection is gone | unknown |
//! | a lost connection, or no answer in time | unknown |
//!
//! An unknown one is looked for on another connection, in the primary. The claim holds an advisory lock, of its key or its batch, until
//! its transaction ends. So whoever gets that lock knows that it has ended, and sees in a *new* snapshot how: the row has our attempt,
//! or it never will. The closure's result decides nothing here, so it may be different in every run.

use std::io;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use sqlx::postgres::{PgDatabaseError, PgSeverity};
use sqlx::{ConnectOptions, Connection};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use crate::call::Call;
use crate::sql::{self, Owner};
use crate::transaction::Transaction;
use crate::{Error, Idempotency, metrics};

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
    call: &Call,
) -> Result<(), NotCommitted> {
    let limit = idempotency.commit_timeout;
    let closes = owner.closes_at_commit();
    let commit =
        async { if closes { transaction.close_and_commit().await } else { transaction.commit().await } };
    // Cut off, it closes its connection. The server may be committing all the same.
    let source = match timeout(limit, commit).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) if !leaves_commit_unknown(&error) => {
            return Err(Error::of_commit(error, closes).into());
        }
        Ok(Err(error)) => error,
        Err(_) => io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}")).into(),
    };
    warn!(attempt = %owner.attempt, "the answer to COMMIT was lost: {source}");
    // Boxed, as it is seldom needed, and larger than all the rest of a call.
    let fate = Box::pin(find_out(owner, idempotency)).await;
    metrics::resolved(call.labels(), fate.as_str());
    match fate {
        Fate::Committed => {
            info!(attempt = %owner.attempt, "it had been committed");
            Ok(())
        }
        Fate::Dead => {
            info!(attempt = %owner.attempt, "nothing of it had been committed");
            Err(NotCommitted { error: Error::lost_at_commit(source), lost: true })
        }
        Fate::Expired => {
            let known = "its retention ended before that could be found out";
            Err(unknown(owner, source, known, true))
        }
        Fate::Unknown(known) => Err(unknown(owner, source, &known, false)),
    }
}

fn unknown(owner: &Owner, source: sqlx::Error, known: &str, retention_ended: bool) -> NotCommitted {
    warn!(attempt = %owner.attempt, "it is not known whether it was committed: {known}");
    let Owner { scope, key, attempt, .. } = owner.clone();
    Error::CommitUnknown { scope, key, attempt, known: known.into(), retention_ended, source }.into()
}

/// What became of an attempt.
enum Fate {
    Committed,
    /// Nothing of it is left, nor will be.
    Dead,
    /// Its row may have been purged: nobody will ever find out.
    Expired,
    /// What is known of it.
    Unknown(String),
}

impl Fate {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Dead => "not_committed",
            Self::Expired | Self::Unknown(_) => "unknown",
        }
    }
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
    // The pool has connections that are set up as the application wants it. But it may be exhausted, and its idle
    // connections as dead as the one that was lost; so each second round makes a connection of its own.
    for of_pool in [true, false].into_iter().cycle() {
        // Several rounds, each long enough to make a connection.
        let round = deadline.min(Instant::now() + Duration::from_secs(1).max(limit / 4));
        match timeout_at(round, ask(owner, idempotency, of_pool, &mut known)).await {
            Ok(Ok(Found::Committed)) => return Fate::Committed,
            Ok(Ok(Found::Absent)) => return Fate::Dead,
            Ok(Ok(Found::Expired)) => return Fate::Expired,
            Ok(Ok(Found::Running)) => {
                known =
                    "a transaction with the key's lock, its own or another call's, was still open".to_owned();
            }
            Ok(Err(error)) if known != UNCONFIRMED => {
                known = format!("the database could not be asked for {limit:?}: {error}");
            }
            Ok(Err(_)) | Err(_) => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match pauses.next() {
            Some(pause) if !left.is_zero() => tokio::time::sleep(pause.min(left)).await,
            _ => break,
        }
    }
    Fate::Unknown(known)
}

const UNCONFIRMED: &str =
    "its row was found, but that could not be confirmed (by a synchronous standby, for example)";

enum Found {
    Committed,
    Absent,
    Expired,
    Running,
}

/// On a connection that is closed afterwards, however this ends.
async fn ask(
    owner: &Owner,
    idempotency: &Idempotency,
    of_pool: bool,
    known: &mut String,
) -> Result<Found, Error> {
    let pool = idempotency.pool();
    let mut conn =
        if of_pool { pool.acquire().await?.detach() } else { pool.connect_options().connect().await? };
    // A standby, which may not have everything, refuses to write.
    let begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";
    let mut transaction = conn.begin_with(begin).await.map_err(Error::of_begin)?;
    let ended = sql::try_lock(&mut transaction, owner).await?;
    let (found, expired) = sql::confirm(&mut transaction, owner).await?;
    let answer = match (found, ended) {
        (true, _) => {
            UNCONFIRMED.clone_into(known);
            Found::Committed
        }
        (false, false) => Found::Running,
        (false, true) if expired => Found::Expired,
        (false, true) => Found::Absent,
    };
    // Where a standby must confirm each commit, this one is confirmed after the one that was lost.
    transaction.commit().await?;
    // Polite, and nothing depends on it.
    let _ = conn.close().await;
    Ok(answer)
}

/// Whether a COMMIT that failed like this may have taken effect all the same: whenever the session ended with it.
fn leaves_commit_unknown(error: &sqlx::Error) -> bool {
    let Some(database) = error.as_database_error() else { return true };
    // connection exceptions, statement_completion_unknown
    let unknown = database.code().is_some_and(|code| code.starts_with("08") || code == "40003");
    let severity = database.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
    unknown || matches!(severity, None | Some(PgSeverity::Fatal | PgSeverity::Panic))
}
