//! A pool connection with our transaction on it, which goes back to the pool only when that transaction has
//! provably ended. Private.

use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::PgTransactionManager as Manager;
use sqlx::{Connection, Executor, PgConnection, Postgres, SqlStr};
use sqlx_core::transaction::TransactionManager;
use tokio::time::timeout;

use crate::sql;

/// How long a transaction that is given up may take to end in an orderly way.
pub(crate) const ORDERLY_END: Duration = Duration::from_secs(2);

/// Dropped without [`commit`](Self::commit) or [`rollback`](Self::rollback) (a panic, a cancelled future, an error) it
/// closes the connection, and the server rolls back.
///
/// sqlx's own `Transaction` queues a ROLLBACK and returns the connection to the pool instead, where it can hold a slot
/// until a cancelled statement has run out, or be handed on with the transaction open (sqlx #4349, #4393).
pub(crate) struct Transaction {
    conn: PoolConnection<Postgres>,
    /// The transaction has ended: the connection may be used again.
    ended: bool,
}

impl Transaction {
    /// Opens the transaction through sqlx's own begin, so that a nested `begin()` stays a savepoint.
    pub(crate) async fn begin(
        conn: PoolConnection<Postgres>,
        statement: SqlStr,
    ) -> Result<Self, sqlx::Error> {
        let mut transaction = Self { conn, ended: false };
        Manager::begin(&mut transaction.conn, Some(statement)).await?;
        Ok(transaction)
    }

    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        &mut self.conn
    }

    /// Commits. The caller has checked that this is the outermost level.
    pub(crate) async fn commit(mut self) -> Result<(), sqlx::Error> {
        let committed = Manager::commit(&mut self.conn).await;
        self.after_commit(committed).await
    }

    /// The same where what was opened with [`OPEN`](crate::sql::OPEN) is still to be closed. It leaves another transaction open, an
    /// empty one, which
    /// ends when the pool takes the connection back, which asks the server in any case.
    pub(crate) async fn close_and_commit(mut self) -> Result<(), sqlx::Error> {
        let committed = self.conn.execute(sql::CLOSE_AND_COMMIT).await.map(drop);
        if committed.is_ok() {
            Manager::start_rollback(&mut self.conn);
        }
        self.after_commit(committed).await
    }

    async fn after_commit(&mut self, committed: Result<(), sqlx::Error>) -> Result<(), sqlx::Error> {
        // An error that the server sent also ends the transaction, but sqlx then counts it as open still.
        self.ended = committed.is_ok();
        if let Err(sqlx::Error::Database(_)) = committed {
            // The server answers before it has let go of the key; it is ready when it has.
            let _ = timeout(ORDERLY_END, self.conn.ping()).await;
        }
        committed
    }

    /// Rolls back what has written nothing, without waiting for the answer: the pool does, when it takes the connection back.
    pub(crate) fn leave(mut self) {
        if depth(&self.conn) == 1 {
            Manager::start_rollback(&mut self.conn);
            // sqlx only queues it. It is sent now, since the runtime may be at rest before the pool's task is polled (`block_on`, a
            // process that is frozen between requests), and the key's lock would be held until then.
            let flush = pin!(self.conn.flush());
            let _ = flush.poll(&mut Context::from_waker(Waker::noop()));
            self.ended = true;
        }
    }

    /// Rolls back; where that fails or takes long the connection is closed, which has the same effect.
    pub(crate) async fn rollback(mut self) {
        if depth(&self.conn) == 1 {
            let rollback = timeout(ORDERLY_END, Manager::rollback(&mut self.conn)).await;
            self.ended = matches!(rollback, Ok(Ok(())));
        }
    }
}

impl AsRef<PgConnection> for Transaction {
    fn as_ref(&self) -> &PgConnection {
        &self.conn
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.ended {
            self.conn.close_on_drop();
        }
    }
}

/// How deep the connection is in transactions, as sqlx counts: 0 none, 1 a transaction, more for savepoints.
pub(crate) fn depth(conn: &PgConnection) -> usize {
    Manager::get_transaction_depth(conn)
}

/// Undoes savepoints until the connection is `depth` deep again.
pub(crate) async fn rollback_to_depth(conn: &mut PgConnection, target: usize) -> Result<(), sqlx::Error> {
    while depth(conn) > target {
        Manager::rollback(conn).await?;
    }
    Ok(())
}
