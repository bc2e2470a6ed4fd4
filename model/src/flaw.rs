//! Mistakes, to see that the exploration would find them.

/// A mistake in the protocol, or in what it stands on. Each is one that somebody might make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Looks for the key, runs, and inserts the key at the end, where a conflict is not noticed.
    ClaimLast,
    /// Runs and commits, and writes the key in a transaction of its own.
    KeyInItsOwnTransaction,
    /// The claim's conflict clause is `DO UPDATE`, whatever it meets.
    ClaimOverwrites,
    /// The claim relies on the unique index alone, and takes no advisory lock.
    ClaimWithoutLock,
    /// The advisory lock is one of the session, and is given back before COMMIT is sent.
    UnlockBeforeCommit,
    /// The advisory lock is one of the session, and a ROLLBACK does not give it back.
    LockOutlivesRollback,
    /// COMMIT is sent without finding out whether the pending row was finished.
    NoFinishCheck,
    /// There is no deferred foreign key.
    NoGuard,
    /// The connections of the pool may write outside of the transaction: a documented limit, see `Idempotency::connect`.
    PlainPool,
    /// The result is put where others find it before it is committed, in a cache.
    ResultPublishedEarly,
    /// A row is replayed whatever the parameters were.
    ReplayIgnoresFingerprint,
    /// The takeover trusts what the look has seen.
    TakeOverWithoutRecheck,
    /// The purge deletes the keys that its snapshot showed as expired.
    PurgeWithoutRecheck,
    /// A lost answer is taken for a failure.
    LostMeansFailed,
    /// A lost answer is taken for a success.
    LostMeansExecuted,
    /// After a lost answer the closure is run again, through a new claim.
    RetryWithoutProof,
    /// The resolution does not ask for the lock: no row means dead.
    AbsenceIsProof,
    /// The resolution does not look for the row: the lock means dead.
    LockIsProof,
    /// The resolution asks for the lock and for the row in one statement, that is in one snapshot; or in two of a
    /// repeatable read transaction.
    LookBeforeLock,
    /// The resolution looks for the key, not for the attempt.
    AttemptNotCompared,
    /// The resolution takes absence for death however late it is.
    IgnoreExpiryInProof,
    /// The time since the claim is measured from the claim's answer on, not from before it was sent.
    StopwatchStartsLate,
    /// The time since the claim is read before the row is looked for, not after.
    StopwatchIsReadEarly,
    /// The resolution asks a standby.
    ResolveOnStandby,
    /// The resolution only reads the row.
    ResolveWithoutWrite,
}

/// Which promise each of them breaks.
pub const FLAWS: [(Flaw, &str); 25] = [
    (Flaw::ClaimLast, "at most one execution commits while a key is live"),
    (Flaw::KeyInItsOwnTransaction, "a key is committed exactly with its writes"),
    (Flaw::ClaimOverwrites, "all successes while a key is live have the same result"),
    (Flaw::ClaimWithoutLock, "an attempt that was given up for dead is never committed"),
    (Flaw::UnlockBeforeCommit, "an attempt that was given up for dead is never committed"),
    (Flaw::LockOutlivesRollback, "every call ends, and leaves nothing open"),
    (Flaw::NoFinishCheck, "an execution that was reported is committed"),
    (Flaw::NoGuard, "no pending key is committed"),
    (Flaw::PlainPool, "a key is committed exactly with its writes"),
    (Flaw::ResultPublishedEarly, "a replay is the result of a committed execution"),
    (Flaw::ReplayIgnoresFingerprint, "a result is never replayed for other parameters"),
    (Flaw::TakeOverWithoutRecheck, "at most one execution commits while a key is live"),
    (Flaw::PurgeWithoutRecheck, "a key is committed exactly with its writes"),
    (Flaw::LostMeansFailed, "after any other answer nothing of the call is ever committed"),
    (Flaw::LostMeansExecuted, "an execution that was reported is committed"),
    (Flaw::RetryWithoutProof, "an attempt that was given up for dead is never committed"),
    (Flaw::AbsenceIsProof, "an attempt that was given up for dead is never committed"),
    (Flaw::LockIsProof, "an attempt that was given up for dead is never committed"),
    (Flaw::LookBeforeLock, "an attempt that was given up for dead is never committed"),
    (Flaw::AttemptNotCompared, "an execution that was reported is committed"),
    (Flaw::IgnoreExpiryInProof, "an attempt that was given up for dead is never committed"),
    (Flaw::StopwatchStartsLate, "an attempt that was given up for dead is never committed"),
    (Flaw::StopwatchIsReadEarly, "an attempt that was given up for dead is never committed"),
    (Flaw::ResolveOnStandby, "an attempt that was given up for dead is never committed"),
    (Flaw::ResolveWithoutWrite, "an execution that was reported is committed"),
];
