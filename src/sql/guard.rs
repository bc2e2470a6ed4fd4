//! What refuses a COMMIT of the closure's own where there is no pending row that does: in the transaction of a message, and of an
//! operation in optimistic mode. Private.

/// Sent with BEGIN. Until the cursor is closed, every COMMIT fails (see migration 5).
///
/// Whoever closes it knows that we are still in that transaction, and that it is alive: elsewhere there is no such cursor. That does
/// not tell two such transactions apart: a closure that swaps its connection for that of another call is not noticed. Nor is a COMMIT
/// refused to a closure that says CLOSE ALL before it.
pub(crate) const OPEN: &str =
    "DECLARE pgonce_open NO SCROLL CURSOR WITH HOLD FOR SELECT pgonce.refuse_commit()";

/// Instead of COMMIT, for messages. (An operation has a last statement in which the cursor is closed, and a plain COMMIT.)
///
/// AND CHAIN, since sqlx counts transactions and would not know that this one has ended: it gets another one to end.
pub(crate) const CLOSE_AND_COMMIT: &str = "CLOSE pgonce_open; COMMIT AND CHAIN";

/// Whether we are still in that transaction, by what CLOSE will ask for.
pub(super) const STILL_INSIDE: &str =
    "SELECT EXISTS (SELECT FROM pg_catalog.pg_cursors WHERE name = 'pgonce_open')";
