//! A caller of `execute`: where it is, and what it was told.

use crate::server::{Attempt, Row, SessionId};

/// What a call returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Told {
    /// Our own result; `resolved` when the answer to COMMIT was lost.
    Executed {
        /// Which of the attempts.
        attempt: Attempt,
        /// After a lost answer.
        resolved: bool,
    },
    /// The result of this attempt.
    Replayed(Attempt),
    /// Another one runs.
    InFlight,
    /// The key was used with other parameters.
    FingerprintMismatch,
    /// The closure broke its transaction, or a pending row was found.
    AtomicityViolation,
    /// A database error: nothing was committed.
    Failed,
    /// The attempt of this number may have been committed.
    CommitUnknown(u8),
    /// Nothing: the process was killed in the attempt of this number.
    Nothing(u8),
}

/// Where a caller is: what it does next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Calls.
    #[default]
    Ready,
    /// CLAIM, which tries the lock first.
    Claiming,
    /// CLAIM with the lock, which inserts.
    Inserting,
    /// LOOK, whose snapshot is taken first.
    Looking,
    /// LOOK with its snapshot, which tries the lock and reads.
    Reading(Option<Row>),
    /// TAKE_OVER, whose snapshot is taken first.
    TakingOver,
    /// TAKE_OVER, which locks the row and checks it again.
    Updating,
    /// The closure, FINISH, and COMMIT is sent.
    Running,
    /// Waits for the answer to COMMIT.
    Committing,
    /// The answer is under way: committed, or not.
    Answered(bool),
    /// The answer was lost: between two rounds of the resolution.
    Resolving,
    /// In a round, which has asked for the lock: looks for the row in a new snapshot.
    Seeking {
        /// Whether the lock is ours.
        ours: bool,
    },
    /// In a round, whose snapshot shows the row: updates it, once it is not busy.
    Touching {
        /// Whether the lock is ours.
        ours: bool,
    },
    /// In a round that has found the row: commits the update.
    Acknowledging,
    /// In a round that looks before it asks for the lock: [`LookBeforeLock`](crate::Flaw::LookBeforeLock).
    LockingLate {
        /// Whether the row was there.
        present: bool,
    },
    /// Makes no more calls.
    Ended,
}

impl Phase {
    /// What is done next, for people.
    pub fn statement(self) -> &'static str {
        match self {
            Self::Ready => "BEGIN, and its stopwatch starts",
            Self::Claiming => "CLAIM asks for the lock",
            Self::Inserting => "CLAIM inserts, or meets a row",
            Self::Looking => "LOOK takes its snapshot",
            Self::Reading(_) => "LOOK asks for the lock, and reads",
            Self::TakingOver => "TAKE_OVER takes its snapshot",
            Self::Updating => "TAKE_OVER locks the row, and checks again",
            Self::Running => "the closure runs; FINISH; COMMIT is sent",
            Self::Committing => "waits for the answer to COMMIT",
            Self::Answered(true) => "hears that it is committed",
            Self::Answered(false) => "hears that COMMIT was refused",
            Self::Resolving => "a round begins, and asks for the lock",
            Self::Seeking { .. } => "the round's UPDATE takes its snapshot",
            Self::Touching { .. } => "the round's UPDATE locks the row, and checks again",
            Self::Acknowledging => "the round commits, and hears so",
            Self::LockingLate { .. } => "the round asks for the lock in its old snapshot",
            Self::Ended => "makes no more calls",
        }
    }
}

/// A caller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    /// What it does next.
    pub phase: Phase,
    /// The number of the attempt in this call, or in the last one.
    pub attempt: u8,
    /// When it began to claim, by the clock.
    pub since: u8,
    /// Its open transaction.
    pub session: Option<SessionId>,
    /// What its calls returned.
    pub told: Vec<Told>,
}
