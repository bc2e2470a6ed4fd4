//! What a call did: [`Outcome`].

/// What a call did: ran the closure and committed, or returned the result of an earlier run.
///
/// Both carry the result, so most callers only need [`into_inner`](Self::into_inner). A recorded failure is a result too:
/// `Executed(Err(declined))` means that the closure ran now, and that its "declined" is committed.
///
/// What `Executed` holds is the closure's own value; what `Replayed` holds has been through serde. For a type
/// where the two differ (a skipped field, a float that is not a number) that is the type's mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome<T> {
    /// The closure ran, and its writes, the key and this result are committed.
    Executed(T),
    /// An earlier execution had committed; this is its result. The closure did not run.
    Replayed(T),
}

impl<T> Outcome<T> {
    /// The result, whoever produced it.
    pub fn into_inner(self) -> T {
        match self {
            Self::Executed(value) | Self::Replayed(value) => value,
        }
    }

    /// Whether the result is that of an earlier execution.
    pub fn is_replayed(&self) -> bool {
        matches!(self, Self::Replayed(_))
    }

    /// The same outcome with a reference to the result.
    pub fn as_ref(&self) -> Outcome<&T> {
        match self {
            Self::Executed(value) => Outcome::Executed(value),
            Self::Replayed(value) => Outcome::Replayed(value),
        }
    }

    /// The same outcome with another result.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Self::Executed(value) => Outcome::Executed(f(value)),
            Self::Replayed(value) => Outcome::Replayed(f(value)),
        }
    }
}
