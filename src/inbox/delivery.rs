//! What became of messages: [`Delivery`] of one, [`BatchReport`] of many.

/// What [`Inbox::process`](crate::Inbox::process) did. Either way the message can be acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Delivery<T> {
    /// The closure ran, and its writes and the message's id are committed. What it returned is not stored.
    Processed(T),
    /// The message had been processed before. Nothing ran.
    Duplicate,
}

impl<T> Delivery<T> {
    /// Whether the message had been processed before.
    pub fn is_duplicate(&self) -> bool {
        matches!(self, Self::Duplicate)
    }

    /// What the closure returned, if it ran.
    pub fn processed(self) -> Option<T> {
        match self {
            Self::Processed(value) => Some(value),
            Self::Duplicate => None,
        }
    }
}

/// What became of one message of a batch.
#[derive(Debug)]
#[non_exhaustive]
pub enum Handled<E> {
    /// It was among the fresh ones, and the closure's writes and its id are committed. Acknowledge it.
    Processed,
    /// It had been processed before, or stands in the batch twice. Acknowledge it.
    Duplicate,
    /// Its own failure, by which it was told apart from the others; nothing of it is committed.
    ///
    /// What the closure said when it was alone with this message; or
    /// [`FingerprintMismatch`](crate::ErrorKind::FingerprintMismatch): its id belongs to another content. Park it, or let the
    /// broker deliver it again: a time-out or a conflict may pass.
    Failed(E),
    /// Not committed, as far as is known, and not for a fault of its own: what [stopped](BatchReport::stopped) the batch came before its
    /// turn; or, where nothing did, it stands in the batch twice and the first one failed. Let the broker deliver it again.
    Released,
}

impl<E> Handled<E> {
    /// Whether the message is committed, now or before, and so can be acknowledged.
    pub fn is_committed(&self) -> bool {
        matches!(self, Self::Processed | Self::Duplicate)
    }
}

/// What [`Inbox::process_batch`](crate::Inbox::process_batch) did.
#[derive(Debug)]
#[must_use = "acknowledge the messages that are committed, and no others"]
#[non_exhaustive]
pub struct BatchReport<T, E> {
    /// What became of each message, in the order of the batch.
    pub messages: Vec<Handled<E>>,
    /// What the closure returned, once for each transaction that was committed: at most one, unless a poison message was
    /// isolated. None when there was nothing fresh.
    pub results: Vec<T>,
    /// What ended the work before all messages had their turn, after a part of them had been committed: the database went
    /// away, for example. After a [`CommitUnknown`](crate::ErrorKind::CommitUnknown) some of the released messages may be
    /// committed; they are duplicates, then, when they come again.
    pub stopped: Option<E>,
}

impl<T, E> BatchReport<T, E> {
    /// Whether each message is committed, now or before.
    pub fn is_complete(&self) -> bool {
        self.messages.iter().all(Handled::is_committed)
    }

    /// How many messages were processed now.
    pub fn processed(&self) -> usize {
        self.messages.iter().filter(|handled| matches!(handled, Handled::Processed)).count()
    }

    /// How many messages had been processed before, or stand in the batch a second time.
    pub fn duplicates(&self) -> usize {
        self.messages.iter().filter(|handled| matches!(handled, Handled::Duplicate)).count()
    }
}
