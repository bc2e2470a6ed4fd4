//! Where we are: the server, the role, the schema.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, Row};

use super::{one, query};
use crate::Error;

/// From the catalogs alone, which everybody may read: the version by what each migration has made, the newest first. What somebody has
/// dropped since does not make a schema older.
const PLACE: &str = "\
WITH relation AS (
    SELECT c.oid, c.relname, n.oid AS schema
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'pgonce'
), function (name) AS (
    SELECT p.proname FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'pgonce'
), wanted (relname, privilege) AS (
    VALUES ('keys', 'SELECT'), ('keys', 'UPDATE'), ('keys', 'DELETE'), ('evictions', 'SELECT'), ('evictions', 'INSERT')
), missing (privilege) AS (
    SELECT 'USAGE ON SCHEMA pgonce' FROM pg_catalog.pg_namespace n
    WHERE n.nspname = 'pgonce' AND NOT pg_catalog.has_schema_privilege(n.oid, 'USAGE')
    UNION ALL
    SELECT pg_catalog.format('%s ON pgonce.%s', wanted.privilege, wanted.relname)
    FROM wanted JOIN relation USING (relname)
    WHERE NOT pg_catalog.has_table_privilege(relation.oid, wanted.privilege)
)
SELECT current_user::text AS role, pg_catalog.quote_ident(current_user) AS quoted_role,
       pg_catalog.current_setting('is_superuser') = 'on' AS superuser,
       pg_catalog.current_database()::text AS database,
       pg_catalog.current_setting('server_version') AS version,
       pg_catalog.current_setting('server_version_num')::int AS version_number,
       pg_catalog.pg_is_in_recovery() AS standby,
       pg_catalog.clock_timestamp() AS clock,
       pg_catalog.pg_backend_pid() AS pid,
       CASE WHEN NOT EXISTS (SELECT FROM relation WHERE relname = 'keys') THEN 0::bigint
            WHEN EXISTS (SELECT FROM function WHERE name = 'allow_commit') THEN 7
            WHEN EXISTS (SELECT FROM function WHERE name IN ('finish', 'refuse_commit'))
                 AND NOT EXISTS (SELECT FROM function WHERE name = 'refuse_unfinished') THEN 6
            WHEN EXISTS (SELECT FROM function WHERE name = 'refuse_commit') THEN 5
            WHEN EXISTS (SELECT FROM function WHERE name = 'finish') AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_constraint c JOIN relation ON relation.oid = c.conrelid
                WHERE relation.relname = 'keys' AND c.conname = 'keys_state'
            ) THEN 4
            WHEN EXISTS (SELECT FROM relation WHERE relname = 'evictions')
                 OR EXISTS (SELECT FROM function WHERE name = 'purge_expired') THEN 3
            WHEN EXISTS (SELECT FROM function WHERE name = 'finish') THEN 2
            ELSE 1 END AS schema,
       EXISTS (SELECT FROM relation WHERE relname = 'evictions') AS evictions,
       EXISTS (SELECT FROM function WHERE name = 'purge_expired') AS purge_expired,
       EXISTS (SELECT FROM relation WHERE relname = '_sqlx_migrations') AS noted,
       EXISTS (
           SELECT FROM relation
           WHERE relname = '_sqlx_migrations' AND pg_catalog.has_schema_privilege(schema, 'USAGE')
               AND pg_catalog.has_table_privilege(oid, 'SELECT')
       ) AS notes_readable,
       ARRAY(SELECT privilege FROM missing) AS missing";

/// What sqlx's migrator has noted. Schema versions that this release does not know show here alone.
const NOTED: &str = "SELECT coalesce(max(version), 0) AS version FROM pgonce._sqlx_migrations WHERE success";

/// The server, the role and the schema.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) role: String,
    /// As an identifier in SQL.
    pub(crate) quoted_role: String,
    pub(crate) superuser: bool,
    pub(crate) database: String,
    pub(crate) version: String,
    pub(crate) version_number: i32,
    pub(crate) standby: bool,
    pub(crate) clock: DateTime<Utc>,
    pub(crate) pid: i32,
    /// The version of the schema; 0 when there is none. More than this release knows only where the notes are readable.
    pub(crate) schema: i64,
    /// Whether sqlx's migrator has made it, ours or that of sqlx-cli.
    pub(crate) noted: bool,
    /// Whether the table pgonce.evictions is there, which came with version 3.
    pub(crate) evictions: bool,
    /// The same of the function pgonce.purge_expired.
    pub(crate) purge_expired: bool,
    /// What the role may not: `DELETE ON pgonce.keys`.
    pub(crate) missing: Vec<String>,
}

pub(crate) async fn place(conn: &mut PgConnection) -> Result<Place, Error> {
    let (mut place, notes_readable) = one(conn, query(PLACE), |row| {
        let place = Place {
            role: row.try_get("role")?,
            quoted_role: row.try_get("quoted_role")?,
            superuser: row.try_get("superuser")?,
            database: row.try_get("database")?,
            version: row.try_get("version")?,
            version_number: row.try_get("version_number")?,
            standby: row.try_get("standby")?,
            clock: row.try_get("clock")?,
            pid: row.try_get("pid")?,
            schema: row.try_get("schema")?,
            noted: row.try_get("noted")?,
            evictions: row.try_get("evictions")?,
            purge_expired: row.try_get("purge_expired")?,
            missing: row.try_get("missing")?,
        };
        Ok((place, row.try_get("notes_readable")?))
    })
    .await?;
    if notes_readable {
        let noted: i64 = one(conn, query(NOTED), |row| row.try_get("version")).await?;
        place.schema = place.schema.max(noted);
    }
    Ok(place)
}

/// The database's time.
pub(crate) async fn clock(conn: &mut PgConnection) -> Result<DateTime<Utc>, Error> {
    one(conn, query("SELECT pg_catalog.clock_timestamp()"), |row| row.try_get(0)).await
}
