//! Replication slots, which hold things back for whoever reads them.

use sqlx::{PgConnection, Row};

use super::{all, query};
use crate::Error;

/// Not those that were invalidated, which hold nothing any more.
const SLOTS: &str = "\
SELECT slot_name::text AS name, active_pid, pg_catalog.age(xmin)::bigint AS rows, pg_catalog.age(catalog_xmin)::bigint AS catalogs,
       CASE WHEN restart_lsn IS NOT NULL THEN greatest(0, pg_catalog.pg_wal_lsn_diff(
           CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn()
                ELSE pg_catalog.pg_current_wal_lsn() END,
           restart_lsn))::bigint END AS wal
FROM pg_catalog.pg_replication_slots
WHERE wal_status IS DISTINCT FROM 'lost'
ORDER BY slot_name";

/// A replication slot and what it holds back.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    pub(crate) name: String,
    /// Whose session reads it now.
    pub(crate) active_pid: Option<i32>,
    /// How many transactions ago vacuum stops, for a standby that sends feedback.
    pub(crate) rows: Option<i64>,
    /// The same for the catalogs alone, for who decodes.
    pub(crate) catalogs: Option<i64>,
    /// In bytes.
    pub(crate) wal: Option<i64>,
}

pub(crate) async fn slots(conn: &mut PgConnection) -> Result<Vec<Slot>, Error> {
    all(conn, query(SLOTS), |row| {
        Ok(Slot {
            name: row.try_get("name")?,
            active_pid: row.try_get("active_pid")?,
            rows: row.try_get("rows")?,
            catalogs: row.try_get("catalogs")?,
            wal: row.try_get("wal")?,
        })
    })
    .await
}
