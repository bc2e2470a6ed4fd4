//! What to do about a message that makes its batch fail: [`Poison`].

/// What [`Inbox::process_batch`](crate::Inbox::process_batch) does when the closure fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Poison {
    /// Nothing of the batch is committed, and the closure's error is returned. The default, since it keeps the order of
    /// the messages.
    #[default]
    FailBatch,
    /// The fresh messages are halved again and again, until the ones that fail are alone: about 2 log₂ n transactions for one
    /// poison message among n. Those behind a poison message are processed all the same, before it.
    Halve,
    /// Each fresh message is processed in a transaction of its own, in their order. For batches in which many fail.
    OneByOne,
}

impl Poison {
    /// The parts in which messages are tried again, the first one last, or None when they are not.
    pub(super) fn split(self, failed: &[usize]) -> Option<Vec<Vec<usize>>> {
        let size = match self {
            Self::FailBatch => return None,
            Self::Halve => failed.len().div_ceil(2),
            Self::OneByOne => 1,
        };
        Some(failed.chunks(size.max(1)).rev().map(<[usize]>::to_vec).collect())
    }
}
