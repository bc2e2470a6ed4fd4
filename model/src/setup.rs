//! What is explored: who calls, how much may go wrong, and which mistake is made.

use crate::Flaw;

/// One exploration.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Who calls `execute` with the same key.
    pub callers: Vec<Plan>,
    /// How much may go wrong.
    pub bounds: Bounds,
    /// What a crash leaves.
    pub durability: Durability,
    /// Whether a resolution that was not conclusive is tried again: as often as it likes, or not at all.
    pub patient: bool,
    /// A mistake in the protocol.
    pub flaw: Option<Flaw>,
}

/// Three callers, and nothing goes wrong.
impl Default for Setup {
    fn default() -> Self {
        Self {
            callers: vec![Plan::default(); 3],
            bounds: Bounds::default(),
            durability: Durability::Full,
            patient: true,
            flaw: None,
        }
    }
}

impl Setup {
    /// Whether this mistake is made.
    pub fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }
}

/// What a caller does.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Of its parameters.
    pub fingerprint: u8,
    /// How often it makes the call, whatever it is told.
    pub calls: u8,
    /// `max_attempts`; one is `execute_once`, or `claim` and `complete`.
    pub attempts: u8,
}

impl Default for Plan {
    fn default() -> Self {
        Self { fingerprint: 0, calls: 1, attempts: 2 }
    }
}

/// How often each thing may happen. All of it may happen at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// A connection is lost, or cut off by the commit timeout. What was sent on it may or may not arrive.
    pub losses: u8,
    /// A caller's process is killed.
    pub kills: u8,
    /// The server crashes and starts again, or another one takes its place.
    pub crashes: u8,
    /// The server answers COMMIT with an error: a deferred constraint.
    pub refusals: u8,
    /// A closure breaks its transaction: swallows an error, commits, rolls back and writes on.
    pub mistakes: u8,
    /// The clock moves on by one retention.
    pub ticks: u8,
    /// The purge of expired keys runs.
    pub purges: u8,
    /// Another key's claim holds the same advisory lock for a while.
    pub collisions: u8,
}

/// What a crash leaves of what was committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// All of it.
    #[default]
    Full,
    /// `synchronous_commit = off`: COMMIT is answered at once, and a crash loses the last ones.
    Asynchronous,
    /// Synchronous replication: COMMIT is answered when the standby has it, but one whose sender is gone may have become
    /// visible before. The crash is a failover.
    Replicated,
}
