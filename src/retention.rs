//! The end of a key: [`Idempotency::purge_expired`].

use crate::sql::{Purge, Purged};
use crate::{Error, Idempotency, Isolation};

impl Idempotency {
    /// Deletes at most `limit` expired keys, the oldest first, in a transaction of its own, and says how many.
    ///
    /// A [`Reaper`](crate::Reaper) does that by itself; this is for a job that comes every few minutes and calls it until it
    /// returns less than `limit`. A few thousand at a time keep the transaction short. It never touches a live or a pending
    /// key, never waits for a claim, and skips a key that is being taken over. An expired key needs no purge to be usable
    /// again.
    ///
    /// Its COMMIT does not wait for the disk (`synchronous_commit = off`): what a crash brings back is expired still.
    ///
    /// # Errors
    ///
    /// [`NotMigrated`](crate::ErrorKind::NotMigrated), [`Database`](crate::ErrorKind::Database). Call it again.
    pub async fn purge_expired(&self, limit: u32) -> Result<u64, Error> {
        let purged = self.purge(Purge { limit, since: None, elected: false }).await?.deleted;
        tracing::debug!(purged, "purged expired idempotency keys");
        Ok(purged)
    }

    pub(crate) async fn purge(&self, purge: Purge) -> Result<Purged, Error> {
        let mut transaction = self.begin(Isolation::ReadCommitted).await?;
        let purged = purge.run(transaction.connection()).await?;
        transaction.commit().await?;
        Ok(purged)
    }
}
