//! The figures that only the database knows: [`Idempotency::sample_metrics`].

use std::time::Duration;

use tokio::time::timeout;

use crate::{Error, Idempotency, Isolation, metrics, sql};

impl Idempotency {
    /// Reads how many keys are live and expired, and reports them with the lag of the reaper. It only reads, in a transaction
    /// of its own.
    ///
    /// Call it from a task, every half a minute for example; a reaper does so by itself. It is quick also with 20
    /// million keys, since it counts no live one:
    ///
    /// - `pgonce_live_keys` is an estimate: the statistics of the server (`n_live_tup`, or after they were reset `reltuples`) less
    ///   the expired keys. A few percent off, and some seconds late;
    /// - `pgonce_expired_keys` is counted with the index, up to 100 000;
    /// - `pgonce_reaper_lag_seconds` is exact, by the database's clock.
    ///
    /// # Errors
    ///
    /// [`NotMigrated`](crate::ErrorKind::NotMigrated), [`Database`](crate::ErrorKind::Database). Nothing is reported then: the
    /// gauges keep their last values.
    pub async fn sample_metrics(&self) -> Result<(), Error> {
        let mut transaction = self.begin(Isolation::ReadCommitted).await?;
        let sampled = sql::sample(transaction.connection()).await;
        transaction.rollback().await;
        let sql::Sample { live, expired, lag } = sampled?;
        metrics::keys(live, expired, lag);
        Ok(())
    }
}

/// The same, where nobody can be told of an error but the log. A host that is gone may never answer.
pub(crate) async fn sample(idempotency: &Idempotency) {
    match timeout(LONGEST, idempotency.sample_metrics()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!("the keys could not be counted for the metrics: {error}"),
        Err(_) => tracing::warn!("the keys could not be counted for the metrics within {LONGEST:?}"),
    }
}

/// Of a query that takes hundredths of a second.
const LONGEST: Duration = Duration::from_secs(30);
