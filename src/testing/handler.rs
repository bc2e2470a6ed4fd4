//! What is tested, reduced to one thing: a call that gets a key, and what it says. Private.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::Poll;

use crate::closure::database_error;
use crate::{ClosureError, Idempotency, IdempotencyKey};

/// The handler under test.
pub(super) struct Handler<'a, T>(Box<Call<'a, T>>);

type Call<'a, T> = dyn Fn(Idempotency, IdempotencyKey) -> Boxed<'a, Said<T>> + Send + Sync + 'a;

pub(super) type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a call said to its caller.
pub(super) enum Said<T> {
    Answer(T),
    /// An error, or a panic.
    Failure(String),
    /// An error that shows that the closure does not keep to its transaction.
    Violation(String),
    /// It was given up.
    Nothing,
}

impl<'a, T: 'a> Handler<'a, T> {
    pub(super) fn new<E, F, Fut>(handler: F) -> Self
    where
        F: FnOnce(Idempotency, IdempotencyKey) -> Fut + Clone + Send + Sync + 'a,
        Fut: Future<Output = Result<T, E>> + Send + 'a,
        E: ClosureError,
    {
        Self(Box::new(move |idempotency, key| {
            let call = handler.clone()(idempotency, key);
            Box::pin(async move { call.await.map_or_else(|error| Said::of(error.as_error()), Said::Answer) })
        }))
    }
}

impl<T> Handler<'_, T> {
    /// Calls it, and polls it as often as it is woken, until no more polls are left; then it is dropped. A panic is a failure,
    /// as it is in a server.
    pub(super) async fn call(
        &self,
        idempotency: &Idempotency,
        key: &IdempotencyKey,
        polls: &mut usize,
    ) -> Said<T> {
        let mut call = (self.0)(idempotency.clone(), key.clone());
        poll_fn(|context| {
            if *polls == 0 {
                return Poll::Ready(Said::Nothing);
            }
            *polls -= 1;
            match catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(context))) {
                Ok(poll) => poll,
                Err(panic) => Poll::Ready(Said::Failure(format!("a panic: {}", message_of(&*panic)))),
            }
        })
        .await
    }
}

impl<T> Said<T> {
    fn of(error: &(dyn StdError + 'static)) -> Self {
        let text = described(error);
        // in_failed_sql_transaction: an error was swallowed, and the next statement fails.
        let swallowed = database_error(error).is_some_and(|error| error.code().as_deref() == Some("25P02"));
        // By its text, since an error type may hide which error it wraps.
        if swallowed || text.contains("atomicity violation") {
            Self::Violation(text)
        } else {
            Self::Failure(text)
        }
    }
}

impl<T: fmt::Debug> fmt::Display for Said<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(answer) => write!(f, "the answer {answer:?}"),
            Self::Failure(error) | Self::Violation(error) => write!(f, "the error \"{error}\""),
            Self::Nothing => f.write_str("nothing, since it was dropped"),
        }
    }
}

/// The error, and of its sources those that it does not tell itself.
fn described(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = match error.downcast_ref() {
            // Without the line in the server's source.
            Some(sqlx::Error::Database(error)) => error.message().to_owned(),
            _ => error.to_string(),
        };
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message")
}

/// Runs all of them at the same time, on this task.
pub(super) async fn all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut running: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    poll_fn(|context| {
        let mut ready = Poll::Ready(());
        for (future, output) in running.iter_mut().filter(|(_, output)| output.is_none()) {
            match future.as_mut().poll(context) {
                Poll::Ready(value) => *output = Some(value),
                Poll::Pending => ready = Poll::Pending,
            }
        }
        ready
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}
