//! The end of expired keys. Private.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{Executor, PgConnection};

use crate::Error;

/// For this transaction alone.
///
/// Whatever the statistics say, the statement below is to walk the index on `expires_at` from its bound, and to find what
/// it deletes by its place; else the planner may read the whole table for one batch. What a crash undoes is deleted again,
/// so no COMMIT has to wait for the disk or a standby, with rows locked. And a client that stalls in between must not keep
/// them locked for long: a claim of such a key waits for it. It is far more than a COMMIT's way takes, and to lose a batch costs
/// little.
const PREPARE: &str = "\
SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL synchronous_commit = off; \
SET LOCAL idle_in_transaction_session_timeout = '5s'";

/// The oldest that are expired, except for what a takeover has locked. FOR UPDATE checks the condition again on what it
/// locks.
///
/// The clock is read once, in a query of its own: compared with a volatile function, no index would end the walk, and a
/// purge that finds little would read every live key. By its place (`ctid`) and not by its key a row is found without the
/// other index; the place counts within one table, and partitions are several.
const PURGE: &str = "\
WITH election AS MATERIALIZED (
    SELECT $3 OR pg_catalog.pg_try_advisory_xact_lock(pg_catalog.hashtextextended('pgonce.reaper', 0)) AS won,
           pg_catalog.clock_timestamp() AS clock
), expired AS MATERIALIZED (
    SELECT tableoid, ctid, expires_at FROM pgonce.keys
    WHERE expires_at <= (SELECT clock FROM election WHERE won) AND expires_at >= coalesce($2, '-infinity')
        AND state <> 'pending'
    ORDER BY expires_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
), purged AS (
    DELETE FROM pgonce.keys USING expired
    WHERE keys.ctid = expired.ctid AND keys.tableoid = expired.tableoid
    RETURNING expired.expires_at
), sum AS (
    SELECT count(*) AS deleted, min(expires_at) AS oldest, max(expires_at) AS newest FROM purged
    WHERE pg_catalog.isfinite(expires_at)
)
SELECT won, (SELECT count(*) FROM purged), newest, extract(epoch FROM clock - oldest)::float8 FROM election, sum";

/// One batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Purge {
    pub(crate) limit: u32,
    /// Keys that expired before this are left out.
    pub(crate) since: Option<DateTime<Utc>>,
    /// Nothing is done while another elected one is at work.
    pub(crate) elected: bool,
}

/// What a batch came to.
#[derive(Debug)]
pub(crate) struct Purged {
    /// False: another one is at work.
    pub(crate) elected: bool,
    pub(crate) deleted: u64,
    /// When the last one of them had expired.
    pub(crate) newest: Option<DateTime<Utc>>,
    /// How long the first one of them had been expired.
    pub(crate) lag: Duration,
}

impl Purge {
    /// Inside of a transaction, which is to be committed at once.
    pub(crate) async fn run(self, conn: &mut PgConnection) -> Result<Purged, Error> {
        conn.execute(PREPARE).await.map_err(Error::of_statement)?;
        let (elected, deleted, newest, lag): (bool, i64, _, Option<f64>) = sqlx::query_as(PURGE)
            .bind(i64::from(self.limit))
            .bind(self.since)
            .bind(!self.elected)
            .fetch_one(conn)
            .await
            .map_err(Error::of_statement)?;
        Ok(Purged {
            elected,
            deleted: deleted.unsigned_abs(),
            newest,
            lag: Duration::try_from_secs_f64(lag.unwrap_or_default()).unwrap_or_default(),
        })
    }
}
