//! One call of the library: written down before and after.

use std::sync::Arc;
use std::time::Duration;

use pgonce::{
    Claim, Error, ErrorKind, Idempotency, Isolation, Mode, Operation, Outcome, Record, Scope, State,
};
use sqlx::{Connection, PgConnection};
use tokio::time::timeout;
use uuid::Uuid;

use crate::log::{Answer, Entry, Journal, Receipt, Start, Stored, now};
use crate::plan::{Api, Try};
use crate::work::{Failure, Work, terms};

pub struct Caller {
    pub idempotency: Idempotency,
    pub hardened: bool,
    pub journal: Arc<Journal>,
}

impl Caller {
    pub async fn call(self: &Arc<Self>, scope: &str, key: &str, retention: Duration, with: Try) -> Answer {
        let call = Uuid::new_v4();
        let whole = format!("{scope} {key}");
        let operation = Operation::new(Scope::new(scope).expect("a scope"), key.try_into().expect("a key"))
            .with_params(&terms(&whole, with.variant))
            .expect("parameters")
            .with_retention(retention)
            .with_in_flight(with.in_flight);
        self.journal.write(&Entry::Start(Start {
            call,
            key: whole.clone(),
            variant: with.variant,
            retention: retention.as_micros() as i64,
            api: with.api,
            deed: with.deed,
            optimistic: with.mode == Mode::Optimistic,
            cancels: with.cancel.is_some(),
            at: now(),
        }));
        let caller = Arc::clone(self);
        let cancel = with.cancel.unwrap_or(Duration::MAX);
        // In a task of its own, which may panic.
        let task = tokio::spawn(async move {
            let work = Work {
                journal: &caller.journal,
                call,
                key: whole,
                variant: with.variant,
                deed: with.deed,
                dawdle: with.dawdle,
                hardened: caller.hardened,
            };
            timeout(cancel, caller.make(&operation, &work, &with)).await.unwrap_or(Answer::Cancelled)
        });
        let answer = task.await.unwrap_or_else(|error| {
            let panic = error.into_panic();
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            Answer::Panicked(text.or_else(|| panic.downcast_ref().cloned()).unwrap_or_default())
        });
        self.journal.write(&Entry::End { call, at: now(), answer: answer.clone() });
        answer
    }

    async fn make(&self, operation: &Operation, work: &Work<'_>, with: &Try) -> Answer {
        let idempotency = self.idempotency.clone().with_isolation(with.isolation).with_mode(with.mode);
        let plain = async |conn: &mut PgConnection| work.run_plain(conn).await;
        match with.api {
            Api::Execute => told(idempotency.execute(operation, plain).await),
            Api::ExecuteOnce => told(idempotency.execute_once(operation, plain).await),
            Api::ExecuteRecording => {
                let outcome = idempotency
                    .execute_recording(operation, async |conn: &mut PgConnection| work.run(conn).await)
                    .await;
                told_either(outcome)
            }
            Api::ExecuteIn => {
                execute_in(&idempotency, operation, work, with.isolation).await.unwrap_or_else(Answer::from)
            }
            Api::Claim => claim(&idempotency, operation, work).await.unwrap_or_else(Answer::from),
            Api::Find => match idempotency.find(operation.scope(), operation.key()).await {
                Ok(Some(record)) => Answer::Found(stored(&record)),
                Ok(None) => Answer::NotFound,
                Err(error) => error.into(),
            },
            Api::Purge => idempotency.purge_expired(50).await.map_or_else(Answer::from, |_| Answer::Purged),
        }
    }
}

async fn execute_in(
    idempotency: &Idempotency,
    operation: &Operation,
    work: &Work<'_>,
    isolation: Isolation,
) -> Result<Answer, Failure> {
    let mut conn = idempotency.pool().acquire().await?;
    // sqlx may return it to the pool with the transaction open, when this future is dropped.
    conn.close_on_drop();
    let begin = match isolation {
        Isolation::Serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE READ WRITE",
        Isolation::RepeatableRead => "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE",
        _ => "BEGIN READ WRITE",
    };
    let mut transaction = conn.begin_with(begin).await?;
    let plain = async |conn: &mut PgConnection| work.run_plain(conn).await;
    let answer = told(idempotency.execute_in(&mut transaction, operation, plain).await);
    if !matches!(answer, Answer::Executed(_)) {
        return Ok(answer);
    }
    // A caller who hears nothing knows nothing.
    let committed = timeout(Duration::from_secs(1), transaction.commit()).await;
    Ok(if matches!(committed, Ok(Ok(()))) { answer } else { Answer::CallersCommitFailed })
}

async fn claim(idempotency: &Idempotency, operation: &Operation, work: &Work<'_>) -> Result<Answer, Failure> {
    let claimed = match idempotency.claim(operation).await? {
        Claim::Replayed(record) => return Ok(Answer::Replayed(stored(&record))),
        Claim::Claimed(claimed) => claimed,
    };
    let mut claimed = claimed.recording().await?;
    match work.run(&mut claimed).await {
        Ok(Ok(receipt)) => {
            claimed.complete(&receipt).await?;
            Ok(Answer::Executed(written(&receipt, false)))
        }
        Ok(Err(receipt)) => {
            claimed.fail(&receipt).await?;
            Ok(Answer::Executed(written(&receipt, true)))
        }
        Err(Failure::Refused) => {
            claimed.release().await;
            Ok(Answer::Refused)
        }
        Err(error) => Err(error),
    }
}

fn told(outcome: Result<Outcome<Receipt>, Failure>) -> Answer {
    told_either(outcome.map(|outcome| outcome.map(Ok)))
}

fn told_either(outcome: Result<Outcome<Result<Receipt, Receipt>>, Failure>) -> Answer {
    let written = |result: Result<Receipt, Receipt>| match result {
        Ok(receipt) => written(&receipt, false),
        Err(receipt) => written(&receipt, true),
    };
    match outcome {
        Ok(Outcome::Executed(result)) => Answer::Executed(written(result)),
        Ok(Outcome::Replayed(result)) => Answer::Replayed(written(result)),
        Err(failure) => failure.into(),
    }
}

fn written(receipt: &Receipt, failed: bool) -> Stored {
    Stored { failed, result: serde_json::to_string(receipt).expect("a receipt is JSON") }
}

fn stored(record: &Record) -> Stored {
    let bytes = record.result_bytes().unwrap_or_default();
    Stored { failed: record.state() == State::Failed, result: String::from_utf8_lossy(bytes).into_owned() }
}

impl From<Failure> for Answer {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused => Self::Refused,
            Failure::Library(error) => error.into(),
        }
    }
}

impl From<Error> for Answer {
    fn from(error: Error) -> Self {
        match (error.kind(), &error) {
            (_, Error::CommitUnknown { attempt, .. }) => Self::CommitUnknown { attempt: *attempt },
            (ErrorKind::InFlight, _) => Self::InFlight,
            (ErrorKind::FingerprintMismatch, _) => Self::FingerprintMismatch,
            (ErrorKind::AtomicityViolation, _) => Self::AtomicityViolation(error.to_string()),
            (ErrorKind::Decode, _) => Self::Decode,
            (ErrorKind::Database, _) => {
                Self::Database { retryable: error.is_retryable(), text: error.to_string() }
            }
            _ => Self::Other(error.to_string()),
        }
    }
}
