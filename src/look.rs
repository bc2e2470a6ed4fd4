//! A look at what is committed for an operation, in no transaction. Private.

use std::time::Duration;

use sqlx::PgExecutor;
use tokio::time::timeout;
use tracing::{Instrument, debug};

use crate::call::{Call, CallOutcome};
use crate::closure::{ClosureError, database_error};
use crate::record::Record;
use crate::{Error, ErrorKind, Idempotency, Operation, protocol, sql, step};

pub(crate) async fn look(
    executor: impl PgExecutor<'_>,
    operation: &Operation,
) -> Result<Option<Record>, Error> {
    let found = sql::find(executor, operation.scope(), operation.key()).await?;
    found.map(|record| protocol::replay(operation, record)).transpose()
}

impl Idempotency {
    /// After an optimistic run that came to nothing: what an earlier execution left. That is what the call would have met,
    /// had it claimed its key first.
    pub(crate) async fn first_result(
        &self,
        operation: &Operation,
        call: &Call,
    ) -> Result<Option<Record>, Error> {
        let span = step::look(call, self);
        let looked = timeout(LOOK, look(self.pool(), operation)).instrument(span.clone()).await;
        let looked = looked.unwrap_or_else(|_| Err(sqlx::Error::PoolTimedOut.into()));
        match looked.inspect_err(|error| step::failed(&span, error)) {
            Ok(Some(record)) => {
                debug!(attempt = %record.attempt, state = record.state.as_str(), "replayed the result");
                call.replays(&record);
                Ok(Some(record))
            }
            Ok(None) => Ok(None),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::FingerprintMismatch | ErrorKind::AtomicityViolation | ErrorKind::Decode
                ) =>
            {
                Err(call.fail(error))
            }
            // That another execution has the key is no answer while it is not known what became of it.
            Err(error) if call.outcome() == CallOutcome::InFlight => Err(call.fail(error)),
            // Why the run failed says more.
            Err(_) => Ok(None),
        }
    }
}

/// How long the error of a closure is held back for a look that does not come through, on a pool that is exhausted.
const LOOK: Duration = Duration::from_secs(5);

/// An aborted transaction was used further: nothing of it can have been committed, since every COMMIT is refused. (Unless the closure has
/// said ROLLBACK and then BEGIN: in an aborted transaction nobody can ask whose it is. See [`Idempotency::new`].)
pub(crate) fn is_swallowed<E: ClosureError>(error: &E) -> bool {
    database_error(error.as_error()).and_then(|error| error.code()).as_deref() == Some("25P02")
}
