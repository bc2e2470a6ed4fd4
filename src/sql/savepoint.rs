//! The savepoints. Private.

use std::sync::atomic::{AtomicU8, Ordering};

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::Error;
use crate::transaction::rollback_to_depth;

/// A savepoint of ours. Not sqlx's `begin()`, which ends the outer transaction when it is cancelled.
///
/// An inner operation that was dropped leaves its savepoint behind, and an outer one must not take it for its own. The
/// names are few all the same, since each is a line in the server's statistics of statements; should two ever meet, the
/// outer operation is undone in part, and its pending row keeps that from being committed.
#[derive(Clone, Copy)]
pub(crate) enum Savepoint {
    /// Before the work whose failure may be recorded. There is one in a transaction.
    Recording,
    /// Around an operation inside of a caller's transaction.
    Operation(u8),
}

impl Savepoint {
    pub(crate) fn of_operation() -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        Self::Operation(NEXT.fetch_add(1, Ordering::Relaxed) % 64)
    }

    pub(crate) async fn set(self, conn: &mut PgConnection) -> Result<(), Error> {
        self.run(conn, &["SAVEPOINT"]).await
    }

    /// Undoes what was written since, and what sqlx has open above this depth. It does not stay on the server, where each
    /// one takes a transaction id and a lock as soon as something is written under it.
    pub(crate) async fn undo(self, conn: &mut PgConnection, depth: usize) -> Result<(), Error> {
        rollback_to_depth(conn, depth).await.map_err(Error::of_statement)?;
        self.run(conn, &["ROLLBACK TO SAVEPOINT", "RELEASE SAVEPOINT"]).await
    }

    /// Keeps what was written since.
    pub(crate) async fn release(self, conn: &mut PgConnection) -> Result<(), Error> {
        self.run(conn, &["RELEASE SAVEPOINT"]).await
    }

    async fn run(self, conn: &mut PgConnection, commands: &[&str]) -> Result<(), Error> {
        let name = match self {
            Self::Recording => "pgonce_recording".to_owned(),
            Self::Operation(n) => format!("pgonce_operation_{n}"),
        };
        let statements: Vec<_> = commands.iter().map(|command| format!("{command} {name}")).collect();
        conn.execute(AssertSqlSafe(statements.join("; "))).await.map(drop).map_err(Error::of_statement)
    }
}
