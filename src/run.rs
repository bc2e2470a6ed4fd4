//! The loop around the protocol: conflicts are repeated, keys in flight are waited for. Private.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{PgConnection, Postgres};
use tokio::time::{Instant, timeout_at};
use tracing::{Instrument, debug, warn};

use crate::call::{Call, CallOutcome};
use crate::claim::{Claim, Claimed};
use crate::closure::{AsyncClosure, ClosureError};
use crate::flight::{Flight, News, Place};
use crate::kind::Kind;
use crate::look::{is_swallowed, look};
use crate::patience::Patience;
use crate::protocol::{self, Attempt};
use crate::record::Record;
use crate::settle::Settled;
use crate::sql::{Finish, Owner};
use crate::step::Step;
use crate::transaction::Transaction;
use crate::{Error, Idempotency, Isolation, Mode, Operation};

impl Idempotency {
    /// Claims, with the retries and the waiting that `patience` has left.
    pub(crate) async fn claim_patiently(
        &self,
        operation: &Operation,
        patience: &mut Patience,
        call: &Call,
    ) -> Result<Claim, Error> {
        self.enter(operation, patience, call, false).await
    }

    /// The same; what is optimistic is not claimed but only begun.
    async fn enter(
        &self,
        operation: &Operation,
        patience: &mut Patience,
        call: &Call,
        optimistic: bool,
    ) -> Result<Claim, Error> {
        let mut waiting = None;
        let mut flight = None;
        loop {
            if let (Some(flights), None) = (&self.flights, &flight) {
                match flights.board(operation) {
                    Place::First(first) => flight = Some(first),
                    Place::Behind(mut first) => {
                        let limit = patience.wait_behind();
                        if limit.is_some() {
                            waiting.get_or_insert_with(|| Step::wait(call));
                        }
                        let began = Instant::now();
                        let news = first.hears(limit, optimistic).await;
                        patience.waited_behind(began.elapsed());
                        match news {
                            News::Landed(record) => return heard(operation, record, call),
                            News::Ended if limit.is_some() => continue,
                            News::Ended | News::Silence => {}
                        }
                    }
                }
            }
            let error = match self.try_claim(operation, patience, call, &mut flight, optimistic).await {
                Ok(Some(claim)) => return Ok(claim),
                Ok(None) => {
                    debug!("the key is in flight");
                    if let Some(flight) = &flight {
                        flight.somebody_works();
                    }
                    operation.in_flight_error()
                }
                Err(error) => error,
            };
            call.fails_with(&error);
            // No connection is held across the pauses.
            let pause = match call.outcome() {
                CallOutcome::InFlight => patience.wait().inspect(|_| {
                    waiting.get_or_insert_with(|| Step::wait(call));
                }),
                CallOutcome::Conflict => patience.retry().inspect(|_| {
                    debug!("the claim met a conflict; claiming again");
                    call.retries();
                }),
                _ => None,
            };
            let Some(pause) = pause else { return Err(error) };
            call.comes_to(CallOutcome::Cancelled);
            tokio::time::sleep(pause).await;
        }
    }

    /// Claims once; None means in flight.
    async fn try_claim(
        &self,
        operation: &Operation,
        patience: &mut Patience,
        call: &Call,
        flight: &mut Option<Flight>,
        optimistic: bool,
    ) -> Result<Option<Claim>, Error> {
        let begin = match self.mode {
            _ if optimistic => Step::begin,
            Mode::LookFirst => Step::look,
            _ => Step::claim,
        };
        let mut step = begin(call, self);
        let deadline = patience.deadline();
        let claim = async {
            match self.claim_on(operation, optimistic, &mut step).await? {
                Entered::Claimed(transaction, owner) => {
                    patience.claimed();
                    debug!(attempt = %owner.attempt, "claimed the key");
                    let claimed = Claimed::new(transaction, owner, self.clone(), call.clone(), flight.take());
                    Ok(Some(Claim::Claimed(claimed)))
                }
                Entered::Replayed(record) => {
                    debug!(attempt = %record.attempt, state = record.state.as_str(), "replayed the result");
                    call.replays(&record);
                    if let Some(flight) = flight.take() {
                        flight.lands(|| record.clone());
                    }
                    Ok(Some(Claim::Replayed(record)))
                }
                Entered::InFlight => Ok(None),
            }
        };
        let claimed = match deadline {
            None => claim.await,
            // A pool that is exhausted must not make the wait any longer, nor a table that is locked.
            Some(deadline) => timeout_at(deadline + LAST_LOOK, claim).await.unwrap_or(Ok(None)),
        };
        claimed.inspect_err(|error| step.failed(error))
    }

    async fn claim_on(
        &self,
        operation: &Operation,
        optimistic: bool,
        step: &mut Step,
    ) -> Result<Entered, Error> {
        // Boxed, since a call's future, which is moved some times, would be two thirds this.
        let mut conn = Box::pin(self.pool().acquire()).instrument(step.span()).await?;
        if optimistic {
            let transaction = self.begin_guarded(conn).instrument(step.span()).await?;
            let owner = Owner::at_the_end(operation, self.retention_of(operation));
            return Ok(Entered::Claimed(transaction, owner));
        }
        if self.mode == Mode::LookFirst {
            if let Some(record) = look(&mut *conn, operation).instrument(step.span()).await? {
                return Ok(Entered::Replayed(record));
            }
            step.goes_on(self);
        }
        self.claim_with(conn, operation).instrument(step.span()).await
    }

    async fn claim_with(
        &self,
        conn: PoolConnection<Postgres>,
        operation: &Operation,
    ) -> Result<Entered, Error> {
        let retention = self.retention_of(operation);
        let mut transaction = if operation.is_message() {
            self.begin_guarded(conn).await?
        } else {
            self.begin_on(conn, self.isolation).await?
        };
        let finish = match self.isolation {
            Isolation::Serializable => Finish::Upsert,
            _ => Finish::Update,
        };
        let attempt = protocol::claim(transaction.connection(), operation, retention, finish).await;
        let entered = match attempt {
            Ok(Attempt::Claimed(owner)) => return Ok(Entered::Claimed(transaction, owner)),
            Ok(Attempt::Replayed(record)) => Entered::Replayed(record),
            Ok(Attempt::InFlight) => Entered::InFlight,
            Err(error) => {
                transaction.rollback().await;
                return Err(error);
            }
        };
        transaction.leave();
        Ok(entered)
    }

    /// `again` makes the copy for the next attempt; without it there is none.
    pub(crate) async fn run<K, E, F>(
        &self,
        operation: &Operation,
        closure: F,
        again: Option<fn(&F) -> F>,
    ) -> Result<K::Answer, E>
    where
        K: Kind,
        F: for<'c> AsyncClosure<&'c mut PgConnection, Result<K::Value, E>, Fut: Send> + Send,
        E: ClosureError,
    {
        let call = Call::new(K::CALL, operation, self.scope_label);
        let mut patience = self.patience_for(operation);
        let mut closure = closure;
        // What cannot run again must not run in vain.
        let mut optimistic = self.mode == Mode::Optimistic && !operation.is_message() && again.is_some();
        async {
            loop {
                let mut claimed = match self.enter(operation, &mut patience, &call, optimistic).await? {
                    Claim::Claimed(claimed) => claimed,
                    Claim::Replayed(record) => {
                        return K::replay(&record).map_err(|error| call.fail(error));
                    }
                };
                if K::RECORDS {
                    claimed.recorded_from_here().await?;
                }
                let copy = again.map(|again| again(&closure));
                let step = Step::closure(&call);
                let returned = closure(claimed.connection()).instrument(step.span()).await;
                drop(step);
                let settled = claimed.settle(returned, |value| K::encode(value, self.max_result_size)).await;
                // Whatever comes after the first run claims its key first.
                let optimistic = mem::take(&mut optimistic);
                let (error, again) = match settled {
                    Settled::Committed(value) => return Ok(K::executed(value)),
                    Settled::Again(error) => (error, true),
                    Settled::Failed { error, .. } => (error, false),
                    Settled::Unproven(error) if optimistic && is_swallowed(&error) => (error, false),
                    Settled::Unproven(error) => return Err(error),
                };
                let mut taken = false;
                if optimistic {
                    taken = call.outcome() == CallOutcome::InFlight;
                    if let Some(record) = self.first_result(operation, &call).await? {
                        return K::replay(&record).map_err(|error| call.fail(error));
                    }
                }
                // Another execution had the key a moment ago: the claim finds out what became of it, and waits.
                let pause =
                    if taken { Some(Duration::ZERO) } else { again.then(|| patience.retry()).flatten() };
                let (Some(copy), Some(pause)) = (copy, pause) else { return Err(error) };
                if again {
                    warn!("a serialization failure, a deadlock or a lost COMMIT: the closure runs again");
                    call.retries();
                } else {
                    call.comes_to(CallOutcome::Cancelled);
                }
                closure = copy;
                tokio::time::sleep(pause).await;
            }
        }
        .instrument(call.span())
        .await
    }

    pub(crate) fn patience_for(&self, operation: &Operation) -> Patience {
        Patience::new(operation.in_flight().unwrap_or(self.in_flight), self.max_attempts)
    }

    pub(crate) fn retention_of(&self, operation: &Operation) -> Duration {
        operation.retention().unwrap_or(self.retention)
    }
}

/// What one try to enter came to.
enum Entered {
    Claimed(Transaction, Owner),
    Replayed(Record),
    InFlight,
}

/// What was heard from another call of this process.
fn heard(operation: &Operation, record: Arc<Record>, call: &Call) -> Result<Claim, Error> {
    let record = protocol::replay(operation, Arc::unwrap_or_clone(record));
    let record = record.inspect_err(|error| call.fails_with(error))?;
    debug!(attempt = %record.attempt, "heard the result from another call");
    call.replays(&record);
    Ok(Claim::Replayed(record))
}

/// How long the last look at a key in flight may take beyond the time to wait.
const LAST_LOOK: Duration = Duration::from_secs(1);
