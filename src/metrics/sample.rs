//! The figures that only the database knows: [`Idempotency::sample_metrics`].

use crate::{Error, Idempotency, metrics, sql};

impl Idempotency {
    /// Reads how many keys are live and expired, and reports them with the lag of the reaper. Reads only, in no transaction of
    /// its own.
    ///
    /// Call it from one process, every half a minute for example; a reaper does so by itself. It is quick also with 20
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
        let sql::Sample { live, expired, lag } = sql::sample(self.pool()).await?;
        metrics::keys(live, expired, lag);
        Ok(())
    }
}

/// The same, where nobody can be told of an error but the log.
pub(crate) async fn sample(idempotency: &Idempotency) {
    if let Err(error) = idempotency.sample_metrics().await {
        tracing::warn!("the keys could not be counted for the metrics: {error}");
    }
}
