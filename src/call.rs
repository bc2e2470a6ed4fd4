//! One call, as an operator sees it: its span, and the one outcome that it ends in. Private.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

use tracing::{Span, field, info_span};

use crate::closure::ClosureError;
use crate::metrics::{self, Labels, ScopeLabel};
use crate::record::{Record, State};
use crate::{Error, ErrorKind, Operation, Scope};

/// The span of a call: the fields of all, and some more.
macro_rules! span {
    ($name:expr, $($field:tt)+) => {
        info_span!(
            "pgonce",
            call = $name,
            scope = field::Empty,
            $($field)+,
            outcome = field::Empty,
            otel.name = field::Empty,
            otel.status_code = field::Empty,
            "error.type" = field::Empty,
        )
    };
}

/// What a call comes to. Each call, and each message of a batch, comes to exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum CallOutcome {
    /// Dropped before it ended. What every call is that has not ended.
    Cancelled,
    Panicked,
    Executed,
    FailedRecorded,
    Replayed,
    ReplayedFailure,
    Released,
    InFlight,
    FingerprintMismatch,
    Conflict,
    CommitUnknown,
    AtomicityViolation,
    ResultRefused,
    Undecodable,
    DatabaseError,
}

impl CallOutcome {
    const ALL: [Self; 15] = [
        Self::Cancelled,
        Self::Panicked,
        Self::Executed,
        Self::FailedRecorded,
        Self::Replayed,
        Self::ReplayedFailure,
        Self::Released,
        Self::InFlight,
        Self::FingerprintMismatch,
        Self::Conflict,
        Self::CommitUnknown,
        Self::AtomicityViolation,
        Self::ResultRefused,
        Self::Undecodable,
        Self::DatabaseError,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Cancelled => "cancelled",
            Self::Panicked => "panicked",
            Self::Executed => "executed",
            Self::FailedRecorded => "failed_recorded",
            Self::Replayed => "replayed",
            Self::ReplayedFailure => "replayed_failure",
            Self::Released => "released",
            Self::InFlight => "in_flight",
            Self::FingerprintMismatch => "fingerprint_mismatch",
            Self::Conflict => "conflict",
            Self::CommitUnknown => "commit_unknown",
            Self::AtomicityViolation => "atomicity_violation",
            Self::ResultRefused => "result_refused",
            Self::Undecodable => "undecodable",
            Self::DatabaseError => "database_error",
        }
    }

    /// Of a call that fails with this error of pgonce's own.
    pub(crate) fn of(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::InFlight => Self::InFlight,
            ErrorKind::FingerprintMismatch => Self::FingerprintMismatch,
            ErrorKind::CommitUnknown => Self::CommitUnknown,
            ErrorKind::AtomicityViolation => Self::AtomicityViolation,
            ErrorKind::Encode | ErrorKind::ResultTooLarge => Self::ResultRefused,
            // A stored scope or key that is none.
            ErrorKind::Decode | ErrorKind::InvalidKey | ErrorKind::InvalidScope => Self::Undecodable,
            ErrorKind::NotMigrated | ErrorKind::Database if error.is_conflict() => Self::Conflict,
            ErrorKind::NotMigrated | ErrorKind::Database => Self::DatabaseError,
        }
    }

    /// Of a call whose closure fails with this.
    pub(crate) fn of_closure<E: ClosureError>(error: &E) -> Self {
        if error.is_conflict() { Self::Conflict } else { Self::Released }
    }

    fn is_error(self) -> bool {
        !matches!(self, Self::Executed | Self::FailedRecorded | Self::Replayed | Self::ReplayedFailure)
    }
}

/// One call, from its claim to its end. Whoever works for it holds a copy; when the last one is dropped, however that comes,
/// the call is counted with the outcome that was noted last.
#[derive(Clone, Debug)]
pub(crate) struct Call(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    labels: Labels,
    span: Span,
    outcome: AtomicU8,
    /// How many are still to be counted: 1, or the messages of a batch.
    left: AtomicUsize,
}

impl Call {
    pub(crate) fn new(name: &'static str, operation: &Operation, label: ScopeLabel) -> Self {
        let span = span!(name, key_hash = field::Empty);
        if !span.is_disabled() {
            span.record("key_hash", operation.key_hash());
        }
        Self::of(name, operation.scope(), label, span, 1)
    }

    pub(crate) fn of_batch(name: &'static str, scope: &Scope, label: ScopeLabel, messages: usize) -> Self {
        Self::of(name, scope, label, span!(name, messages = messages), messages)
    }

    fn of(name: &'static str, scope: &Scope, label: ScopeLabel, span: Span, left: usize) -> Self {
        if !span.is_disabled() {
            span.record("scope", scope.as_str());
            span.record("otel.name", format!("pgonce {name}"));
        }
        Self(Arc::new(Inner {
            labels: Labels::new(name, label, scope),
            span,
            outcome: AtomicU8::new(CallOutcome::Cancelled as u8),
            left: AtomicUsize::new(left),
        }))
    }

    /// Its scope and a hash of its key, never parameters or results.
    pub(crate) fn span(&self) -> Span {
        self.0.span.clone()
    }

    pub(crate) fn labels(&self) -> &Labels {
        &self.0.labels
    }

    /// Notes what the call will have come to if it ends now.
    pub(crate) fn comes_to(&self, outcome: CallOutcome) {
        self.0.outcome.store(outcome as u8, Relaxed);
    }

    /// The same, for an error of pgonce's own.
    pub(crate) fn fails_with(&self, error: &Error) {
        self.comes_to(CallOutcome::of(error));
    }

    /// The same, and the error as the caller's.
    pub(crate) fn fail<E: From<Error>>(&self, error: Error) -> E {
        self.fails_with(&error);
        error.into()
    }

    /// The same, for what was committed earlier.
    pub(crate) fn replays(&self, record: &Record) {
        self.comes_to(match record.state() {
            State::Failed => CallOutcome::ReplayedFailure,
            _ => CallOutcome::Replayed,
        });
    }

    /// Begins another attempt, after a conflict or a COMMIT that was lost and took no effect.
    pub(crate) fn retries(&self) {
        let reason = if self.outcome() == CallOutcome::Conflict { "conflict" } else { "commit_lost" };
        metrics::retried(self.labels(), reason);
        self.comes_to(CallOutcome::Cancelled);
    }

    /// Counts so many of the messages now; those that are left are counted at the end.
    pub(crate) fn counts(&self, outcome: CallOutcome, messages: usize) {
        self.0.left.fetch_sub(messages, Relaxed);
        metrics::ended(self.labels(), outcome, messages);
    }

    /// Counts all messages that are left.
    pub(crate) fn counts_rest(&self, outcome: CallOutcome) {
        metrics::ended(self.labels(), outcome, self.0.left.swap(0, Relaxed));
    }

    pub(crate) fn outcome(&self) -> CallOutcome {
        self.0.outcome()
    }
}

impl Inner {
    fn outcome(&self) -> CallOutcome {
        CallOutcome::ALL[usize::from(self.outcome.load(Relaxed))]
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let outcome = match self.outcome() {
            CallOutcome::Cancelled if std::thread::panicking() => CallOutcome::Panicked,
            outcome => outcome,
        };
        metrics::ended(&self.labels, outcome, *self.left.get_mut());
        if !self.span.is_disabled() {
            self.span.record("outcome", outcome.as_str());
            if outcome.is_error() {
                self.span.record("error.type", outcome.as_str());
                self.span.record("otel.status_code", "ERROR");
            }
        }
    }
}
