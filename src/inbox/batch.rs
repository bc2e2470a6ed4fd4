//! Many messages in one transaction: [`Inbox::process_batch`].

use std::collections::HashMap;

use sqlx::PgConnection;
use tokio::time::sleep;
use tracing::{Instrument, debug, warn};

use super::{BatchReport, Handled, Inbox, Message};
use crate::call::{Call, CallOutcome};
use crate::closure::ClosureError;
use crate::patience::Patience;
use crate::settle::Settled;
use crate::step::Step;
use crate::{Error, Fingerprint, InFlight};

/// An async closure of two arguments whose future can be named, and so be required to be [`Send`]; see
/// [`AsyncClosure`](crate::AsyncClosure).
///
/// Implemented for every `async |conn, fresh| …` by itself; never implement it.
pub trait BatchClosure<A, B, R>:
    AsyncFnOnce(A, B) -> R + FnOnce(A, B) -> <Self as BatchClosure<A, B, R>>::Fut
{
    /// The closure's future.
    type Fut: Future<Output = R>;
}

impl<A, B, R, F, Fut> BatchClosure<A, B, R> for F
where
    F: AsyncFnOnce(A, B) -> R + FnOnce(A, B) -> Fut,
    Fut: Future<Output = R>,
{
    type Fut = Fut;
}

impl Inbox {
    /// Runs the closure once for all messages of the batch that were not processed before, in one transaction.
    ///
    /// **The promise.** The closure's writes and the ids of the messages that it was given commit together, or not at all.
    /// The closure gets the fresh messages alone, in their order: what was processed before is left out, and so is the second one
    /// of two with the same id. It does not run when nothing is fresh, so what it also writes for a batch, a position in a
    /// stream for example, does not move then ([`BatchReport::results`] is empty). Nothing is reported as committed
    /// ([`Handled::is_committed`]) that is not: acknowledge these, and no others.
    ///
    /// One statement claims all of them, so a batch costs about as many statements as a single message; a closure that writes
    /// its rows by `unnest` instead of one by one keeps it so. Ids are claimed in a fixed order: of two batches that overlap, one waits
    /// for the other to end, without a deadlock, and finds duplicates then. (So does [`process`](Self::process), for a
    /// message that a batch is at. PostgreSQL's `lock_timeout` bounds that wait.)
    ///
    /// When the closure fails, nothing of the batch is committed. By default the error is returned; with
    /// [`with_poison`](Self::with_poison) the messages that fail are told apart and the others committed, each part in a transaction
    /// of its own and with a clone of the closure. The database being away, a table or a grant missing is no message's fault: it ends
    /// the work. So does a closure that [left its transaction](crate::ErrorKind::AtomicityViolation).
    ///
    /// An empty batch touches nothing. Ten thousand messages are no problem; how many are best is a matter of how much work a
    /// failure may undo, and of how long the rows that the closure locks may be locked.
    ///
    /// ```
    /// # use pgonce::{Inbox, Message};
    /// # struct Payment { account: i64, amount: i64 }
    /// # async fn example(inbox: Inbox, messages: Vec<Message<Payment>>) -> Result<(), pgonce::Error> {
    /// let report = inbox
    ///     .process_batch(&messages, async |conn, fresh| {
    ///         let accounts: Vec<i64> = fresh.iter().map(|message| message.body().account).collect();
    ///         let amounts: Vec<i64> = fresh.iter().map(|message| message.body().amount).collect();
    ///         sqlx::query("INSERT INTO payments (account, amount) SELECT * FROM unnest($1::bigint[], $2::bigint[])")
    ///             .bind(accounts)
    ///             .bind(amounts)
    ///             .execute(conn)
    ///             .await?;
    ///         Ok::<_, pgonce::Error>(())
    ///     })
    ///     .await?;
    /// for (message, handled) in messages.iter().zip(&report.messages) {
    ///     if handled.is_committed() { /* acknowledge */ } else { /* let it be delivered again, or park it */ }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Nothing of the batch is committed, with the exceptions that [`Error`] names; acknowledge nothing. The closure's own error
    /// (with [`Poison::FailBatch`](crate::Poison::FailBatch)), or what ended the work before anything was committed, as in
    /// [`process`](Self::process). After something was committed the same is in [`BatchReport::stopped`].
    ///
    /// # Panics
    ///
    /// When the closure panics. Its transaction is rolled back and the connection closed; parts that were committed before that
    /// stay, and are duplicates when they come again.
    pub async fn process_batch<B, T, E, F>(
        &self,
        messages: &[Message<B>],
        closure: F,
    ) -> Result<BatchReport<T, E>, E>
    where
        F: for<'c, 'f, 'm> BatchClosure<&'c mut PgConnection, &'f [&'m Message<B>], Result<T, E>, Fut: Send>
            + Clone
            + Send,
        B: Sync,
        T: Send,
        E: ClosureError,
    {
        let label = self.idempotency.scope_label;
        let call = Call::of_batch("process_batch", &self.consumer, label, messages.len());
        let span = call.span();
        async move {
            let first = first_of_each_id(messages);
            let distinct: Vec<usize> = (0..messages.len()).filter(|&at| first[at] == at).collect();
            let mut progress = Progress::new(messages.len());
            // The next part is the last one.
            let mut parts = if distinct.is_empty() { Vec::new() } else { vec![distinct] };
            while let Some(part) = parts.pop() {
                call.comes_to(CallOutcome::Cancelled);
                let processed =
                    self.process_part(messages, &part, closure.clone(), &mut progress, &call).await;
                let (fresh, error) = match processed {
                    Ok(()) => continue,
                    Err(NotProcessed::Failed { fresh, error }) => (fresh, error),
                    Err(NotProcessed::Stopped(error)) if progress.report.results.is_empty() => {
                        return Err(error);
                    }
                    Err(NotProcessed::Stopped(error)) => {
                        progress.report.stopped = Some(error);
                        break;
                    }
                };
                match self.poison.split(&fresh) {
                    None => return Err(error),
                    Some(_) if fresh.len() == 1 => {
                        call.counts(call.outcome(), 1);
                        progress.report.messages[fresh[0]] = Handled::Failed(error);
                    }
                    Some(smaller) => {
                        let messages = fresh.len();
                        debug!(messages, "a batch failed: looking for the message that it fails for");
                        parts.extend(smaller);
                    }
                }
            }
            for (at, &first) in first.iter().enumerate().filter(|(at, first)| at != *first) {
                progress.report.messages[at] = match &progress.committed[first] {
                    None => Handled::Released,
                    Some(content) if content.is_of_the_same(&messages[at].content()) => Handled::Duplicate,
                    Some(_) => self.mismatch(&messages[at]),
                };
            }
            count_rest(&call, &progress.report);
            Ok(progress.report)
        }
        .instrument(span)
        .await
    }

    /// Processes the messages of this part in one transaction, and reports what became of them.
    async fn process_part<B, T, E, F>(
        &self,
        messages: &[Message<B>],
        part: &[usize],
        closure: F,
        progress: &mut Progress<T, E>,
        call: &Call,
    ) -> Result<(), NotProcessed<E>>
    where
        F: for<'c, 'f, 'm> BatchClosure<&'c mut PgConnection, &'f [&'m Message<B>], Result<T, E>, Fut: Send>
            + Clone
            + Send,
        B: Sync,
        T: Send,
        E: ClosureError,
    {
        let mut patience = Patience::new(InFlight::Reject, self.idempotency.max_attempts);
        loop {
            let (fresh, error) = match self.claim_part(messages, part, call).await {
                Ok((sorted, claimed)) => {
                    // What others have committed stays so, whatever becomes of this transaction.
                    for &(at, content) in &sorted.known {
                        let is_same = content.is_of_the_same(&messages[at].content());
                        let handled = if is_same { Handled::Duplicate } else { self.mismatch(&messages[at]) };
                        progress.set(at, handled, content);
                    }
                    let Some(mut claimed) = claimed else { return Ok(()) };
                    let batch: Vec<_> = sorted.fresh.iter().map(|&at| &messages[at]).collect();
                    let step = Step::closure(call);
                    let returned =
                        closure.clone()(claimed.connection(), &batch).instrument(step.span()).await;
                    drop(step);
                    match claimed.settle(returned, |_| Ok(None)).await {
                        Settled::Committed(value) => {
                            debug!(messages = sorted.fresh.len(), "committed the writes and the messages");
                            for &at in &sorted.fresh {
                                progress.set(at, Handled::Processed, messages[at].content());
                            }
                            progress.report.results.push(value);
                            call.counts(CallOutcome::Executed, sorted.fresh.len());
                            return Ok(());
                        }
                        Settled::Again(error) => (sorted.fresh, error),
                        Settled::Failed { error, outage: false } => {
                            return Err(NotProcessed::Failed { fresh: sorted.fresh, error });
                        }
                        Settled::Failed { error, outage: true } | Settled::Unproven(error) => {
                            return Err(NotProcessed::Stopped(error));
                        }
                    }
                }
                Err(error) if error.is_conflict() => (part.to_vec(), E::from(error)),
                Err(error) => return Err(NotProcessed::Stopped(E::from(error))),
            };
            let Some(pause) = patience.retry() else {
                return Err(match error.is_conflict() {
                    true => NotProcessed::Failed { fresh, error },
                    // A lost COMMIT.
                    false => NotProcessed::Stopped(error),
                });
            };
            warn!("a serialization failure, a deadlock or a lost COMMIT: the batch is processed again");
            call.retries();
            sleep(pause).await;
        }
    }

    fn mismatch<B, E: ClosureError>(&self, message: &Message<B>) -> Handled<E> {
        debug!("a message's id was used with another content");
        let (scope, key) = (self.consumer.clone(), message.id().clone());
        Handled::Failed(E::from(Error::FingerprintMismatch { scope, key }))
    }
}

/// What is known of the batch.
struct Progress<T, E> {
    report: BatchReport<T, E>,
    /// The content that is committed under a message's id, now or before.
    committed: Vec<Option<Fingerprint>>,
}

impl<T, E> Progress<T, E> {
    fn new(messages: usize) -> Self {
        let all = (0..messages).map(|_| Handled::Released).collect();
        let report = BatchReport { messages: all, results: Vec::new(), stopped: None };
        Self { report, committed: vec![None; messages] }
    }

    fn set(&mut self, at: usize, handled: Handled<E>, committed: Fingerprint) {
        self.report.messages[at] = handled;
        self.committed[at] = Some(committed);
    }
}

/// Why a part is not committed. Nothing of it is.
enum NotProcessed<E> {
    /// For the fault of one of its messages.
    Failed { fresh: Vec<usize>, error: E },
    /// Nor would any other be.
    Stopped(E),
}

/// Counts what is not counted yet: neither committed now, nor failed alone.
fn count_rest<T, E>(call: &Call, report: &BatchReport<T, E>) {
    let whole = if report.stopped.is_some() { call.outcome() } else { CallOutcome::Executed };
    let released = if report.stopped.is_some() { whole } else { CallOutcome::Released };
    call.counts(CallOutcome::Replayed, report.duplicates());
    call.counts(
        released,
        report.messages.iter().filter(|handled| matches!(handled, Handled::Released)).count(),
    );
    call.counts_rest(CallOutcome::FingerprintMismatch);
    call.comes_to(whole);
}

/// For each message the place of the first one with its id.
fn first_of_each_id<B>(messages: &[Message<B>]) -> Vec<usize> {
    let mut first = HashMap::with_capacity(messages.len());
    messages.iter().enumerate().map(|(at, message)| *first.entry(message.id()).or_insert(at)).collect()
}
