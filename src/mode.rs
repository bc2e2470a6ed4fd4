//! When a call asks about its key: [`Mode`].

/// When a call asks whether its key was used.
///
/// The promise is the same in each mode, and calls in different modes can be mixed for the same key. What differs is what is
/// done in vain:
///
/// | mode | a fresh call | a replay | runs a closure in vain |
/// | --- | --- | --- | --- |
/// | [`ClaimFirst`](Self::ClaimFirst) | two statements beyond BEGIN and COMMIT | two, and BEGIN and ROLLBACK | never |
/// | [`LookFirst`](Self::LookFirst) | three | **one**, and no transaction | never |
/// | [`Optimistic`](Self::Optimistic) | **one** | the closure, and up to three, and BEGIN and ROLLBACK | at each retry, and as below |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// Claims the key before the closure runs. The default.
    #[default]
    ClaimFirst,
    /// Looks for a result before it begins a transaction, and then claims the key. For those who expect many replays: a
    /// worker that goes through its list again, a client that retries at once.
    LookFirst,
    /// Runs the closure first, and claims the key with its result. **Only for closures that touch nothing but this
    /// database.**
    ///
    /// **The promise** is kept in full: at most one execution commits, the closure's writes, the key and the result together,
    /// and every call gets the first result. But it is found out later that there is one:
    ///
    /// - a retry **runs the closure again**, and rolls it back. So does one of two calls at the same time, in different
    ///   processes. What the closure does
    ///   outside of this database (a call to a card processor, an email) is done again, and a
    ///   [`derived_key`](crate::Operation::derived_key) is needed more than ever;
    /// - a retry takes the closure's row locks, and waits for them, before it learns that there was nothing to do;
    /// - two calls at the same time are only told apart when the first closure has ended. Whoever comes too late is answered as a
    ///   duplicate is ([`InFlight`](crate::InFlight)), after its own closure has run;
    /// - a key that has expired, and is still there, is taken over by a second run of the closure;
    /// - a closure that fails because the first execution had succeeded (the account is empty now) does not show its failure: the
    ///   key is read, and the first result wins;
    /// - a call with other parameters runs the closure, too, before it fails with
    ///   [`FingerprintMismatch`](crate::ErrorKind::FingerprintMismatch).
    ///
    /// The retention counts from the end of the closure. A COMMIT of the closure's own is refused by the database, here by a cursor
    /// that is open until the result is stored.
    ///
    /// It is for `execute` and `execute_recording`. What cannot run again (`execute_once`), what has no closure ([`claim`](crate::Idempotency::claim),
    /// the HTTP layer), what is in a transaction of the caller's ([`execute_in`](crate::Idempotency::execute_in)) and the
    /// [`Inbox`](crate::Inbox), whose single statement is a claim already, claim first.
    Optimistic,
}
