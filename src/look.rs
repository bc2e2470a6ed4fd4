//! A look at what is committed for an operation, in no transaction. Private.

use sqlx::PgExecutor;
use tracing::debug;

use crate::call::{Call, CallOutcome};
use crate::closure::{ClosureError, database_error};
use crate::record::Record;
use crate::{Error, ErrorKind, Idempotency, Operation, protocol, sql};

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
        match look(self.pool(), operation).await {
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

/// An aborted transaction was used further: nothing of it can have been committed.
pub(crate) fn is_swallowed<E: ClosureError>(error: &E) -> bool {
    database_error(error.as_error()).and_then(|error| error.code()).as_deref() == Some("25P02")
}
