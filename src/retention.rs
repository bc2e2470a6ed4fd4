//! The end of a key: [`Idempotency::purge_expired`].

use crate::{Error, Idempotency, Isolation, metrics, sql};

impl Idempotency {
    /// Deletes at most `limit` expired keys, the oldest first, in a transaction of its own, and says how many.
    ///
    /// Call it from a job every few minutes, until it returns less than `limit`; a few thousand at a time keep the
    /// transaction short. It never touches a live or a pending key, never waits for a claim, and skips a key that is
    /// being taken over. An expired key needs no purge to be usable again.
    ///
    /// # Errors
    ///
    /// [`NotMigrated`](crate::ErrorKind::NotMigrated), [`Database`](crate::ErrorKind::Database). Call it again.
    pub async fn purge_expired(&self, limit: u32) -> Result<u64, Error> {
        let mut transaction = self.begin(Isolation::ReadCommitted).await?;
        let purged = sql::purge(transaction.connection(), limit).await?;
        transaction.commit().await?;
        metrics::purged(purged);
        tracing::debug!(purged, "purged expired idempotency keys");
        Ok(purged)
    }
}
