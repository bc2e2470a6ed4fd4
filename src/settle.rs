//! What becomes of a claim when the work has returned: commit, or roll back. Private.

use crate::call::CallOutcome;
use crate::claim::{Claimed, Ended};
use crate::closure::{ClosureError, database_error};
use crate::commit::NotCommitted;
use crate::error::{is_guard, is_outage};
use crate::record::State;
use crate::{Error, ErrorKind};

/// What one run of the closure came to.
pub(crate) enum Settled<V, E> {
    Committed(V),
    /// A conflict, or lost at COMMIT: nothing of it is left, and it may be run again at once.
    Again(E),
    /// Nothing of it is left.
    Failed {
        error: E,
        /// Whatever else is done would fail like this, too.
        outage: bool,
    },
    /// It is not proven that nothing is left, so it must not be run again.
    Unproven(E),
}

impl Claimed {
    /// Commits what the closure did, with what `encode` makes of its value; or rolls back.
    pub(crate) async fn settle<V: Send, E: ClosureError>(
        self,
        returned: Result<V, E>,
        encode: impl FnOnce(&V) -> Result<Option<(State, Vec<u8>)>, Error>,
    ) -> Settled<V, E> {
        let error = match returned {
            Ok(value) => {
                let encoded = encode(&value);
                return match self.conclude(encoded).await {
                    Ok(_) => Settled::Committed(value),
                    Err(NotCommitted { error, lost }) if lost || error.is_conflict() => {
                        Settled::Again(E::from(error))
                    }
                    Err(NotCommitted { error, .. }) => match error.kind() {
                        ErrorKind::AtomicityViolation | ErrorKind::CommitUnknown => {
                            Settled::Unproven(E::from(error))
                        }
                        _ => Settled::Failed { outage: is_outage(&error), error: E::from(error) },
                    },
                };
            }
            Err(error) => error,
        };
        let call = self.call.clone();
        call.comes_to(CallOutcome::of_closure(&error));
        match (self.abandon().await, guard_violation(&error)) {
            // More telling than what the closure made of it.
            (_, Some(violation)) => Settled::Unproven(call.fail(violation)),
            (Ended::Outside, None) => Settled::Unproven(call.fail(Error::left_the_transaction(None))),
            (Ended::Unheard, None) => Settled::Unproven(error),
            (Ended::Inside | Ended::Lost, None) if error.is_conflict() => Settled::Again(error),
            (Ended::Inside, None) => Settled::Failed { outage: is_outage(error.as_error()), error },
            (Ended::Lost, None) => Settled::Failed { outage: true, error },
        }
    }
}

/// What the closure's error means when it comes from the guard against committed pending rows.
pub(crate) fn guard_violation<E: ClosureError>(error: &E) -> Option<Error> {
    database_error(error.as_error()).filter(|error| is_guard(*error)).map(|_| Error::guarded())
}
