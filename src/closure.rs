//! What a caller may hand in: the closure ([`AsyncClosure`]) and its error ([`ClosureError`]).

use std::error::Error as StdError;

use sqlx::error::DatabaseError;
use sqlx::postgres::PgDatabaseError;

use crate::Error;
use crate::error::is_conflict;

/// An async closure whose future can be named, and so be required to be [`Send`].
///
/// Implemented for every `async |conn| …` and every `async fn(conn)` by itself; never implement it.
///
/// `AsyncFnOnce` alone does not say that the future is `Send`, and `AsyncFnMut` fails as soon as the call runs in
/// an axum handler or in `tokio::spawn` ("implementation of `Send` is not general enough"). The associated type
/// is the way around both, until return type notation is stable.
pub trait AsyncClosure<A, R>: AsyncFnOnce(A) -> R + FnOnce(A) -> <Self as AsyncClosure<A, R>>::Fut {
    /// The closure's future.
    type Fut: Future<Output = R>;
}

impl<A, R, F, Fut> AsyncClosure<A, R> for F
where
    F: AsyncFnOnce(A) -> R + FnOnce(A) -> Fut,
    Fut: Future<Output = R>,
{
    type Fut = Fut;
}

/// The error type of a closure: pgonce's own errors become part of it, and pgonce can look into it.
///
/// To ask which of pgonce's errors it is, match on the variant, or `error.downcast_ref::<pgonce::Error>()` with `anyhow`.
///
/// Nothing has to be written for [`pgonce::Error`](Error), for `anyhow::Error`, for `eyre::Report` and for
/// everything else that is `AsRef<dyn std::error::Error + Send + Sync>`. An enum of one's own needs a variant for
/// pgonce's errors and one line:
///
/// ```
/// #[derive(Debug, thiserror::Error)]
/// enum ChargeError {
///     #[error("the account has not enough money")]
///     InsufficientFunds,
///     #[error(transparent)]
///     Database(#[from] sqlx::Error),
///     #[error(transparent)]
///     Idempotency(#[from] pgonce::Error),
/// }
///
/// impl pgonce::ClosureError for ChargeError { fn as_error(&self) -> &(dyn std::error::Error + 'static) { self } }
/// ```
///
/// Why it must look inside: a deadlock or a serialization failure that surfaces as an error of a statement in the
/// closure is not the closure's fault, and running a fresh copy of it is safe. Without seeing the `sqlx::Error`
/// somewhere in the chain of sources pgonce could not tell.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the error of a pgonce closure yet",
    label = "pgonce must be able to see a `sqlx::Error` inside `{Self}`, or it cannot retry deadlocks",
    note = "for an error type of your own add this line: `impl pgonce::ClosureError for {Self} {{ fn as_error(&self) -> &(dyn std::error::Error + 'static) {{ self }} }}`",
    note = "`anyhow::Error` and `pgonce::Error` work as they are; `sqlx::Error` alone cannot carry pgonce's errors: use `pgonce::Error`, into which `?` turns it"
)]
pub trait ClosureError: From<Error> + Send {
    /// This error as the start of a chain of sources, at the end of which a [`sqlx::Error`] may be found.
    fn as_error(&self) -> &(dyn StdError + 'static);

    /// Whether this is a serialization failure or a deadlock: nothing is wrong but the moment, and the remedy is to run
    /// again. `execute` does so by itself; after [`execute_once`](crate::Idempotency::execute_once) and
    /// [`execute_in`](crate::Idempotency::execute_in) it is the caller's to do.
    fn is_conflict(&self) -> bool {
        database_error(self.as_error()).is_some_and(is_conflict)
    }
}

impl<E> ClosureError for E
where
    E: From<Error> + AsRef<dyn StdError + Send + Sync + 'static> + Send,
{
    fn as_error(&self) -> &(dyn StdError + 'static) {
        self.as_ref()
    }
}

/// An error and its sources.
pub(crate) fn chain<'e>(
    error: &'e (dyn StdError + 'static),
) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The database's own error in a chain of sources, if there is one.
pub(crate) fn database_error<'e>(
    error: &'e (dyn StdError + 'static),
) -> Option<&'e (dyn DatabaseError + 'static)> {
    chain(error).find_map(|error| {
        if let Some(sqlx::Error::Database(found)) = error.downcast_ref() {
            return Some(found.as_ref());
        }
        // `#[error(transparent)]` hides the sqlx::Error itself and shows only what is below it.
        let boxed = error.downcast_ref::<Box<dyn DatabaseError>>().map(Box::as_ref);
        boxed.or_else(|| error.downcast_ref::<PgDatabaseError>().map(|found| found as _))
    })
}
