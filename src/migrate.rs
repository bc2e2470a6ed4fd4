//! The schema: [`migrate`], [`verify`] and the SQL itself.

use sqlx::migrate::{Migration as SqlxMigration, MigrationType, Migrator};
use sqlx::{PgPool, Row, SqlSafeStr};

use crate::Error;
use crate::pooler::mixes_up_statements;

const POOLER: &str = "a connection pooler mixes up prepared statements, so that wrong values may be read without an error: \
    let it follow them (PgBouncer: version 1.21 or later with max_prepared_statements above 0), or connect to the server \
    itself or in session mode";

/// One migration as plain SQL, for people with a migration tool of their own.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Migration {
    /// Its place in the order, from 1 without gaps.
    pub version: i64,
    /// Its name.
    pub name: &'static str,
    /// Applies it. Contains no transaction control.
    pub up: &'static str,
    /// Undoes it, **with all data**.
    pub down: &'static str,
}

/// All migrations in their order, the same files as in the crate's `migrations/`.
///
/// With sqlx-cli, from the crate's folder (it reads `sqlx.toml` there, which keeps the bookkeeping in
/// `pgonce._sqlx_migrations`): `sqlx migrate run`. With another tool, run each `up` once, in one transaction.
pub const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "keys",
        up: include_str!("../migrations/0001_keys.up.sql"),
        down: include_str!("../migrations/0001_keys.down.sql"),
    },
    Migration {
        version: 2,
        name: "messages",
        up: include_str!("../migrations/0002_messages.up.sql"),
        down: include_str!("../migrations/0002_messages.down.sql"),
    },
    Migration {
        version: 3,
        name: "operations",
        up: include_str!("../migrations/0003_operations.up.sql"),
        down: include_str!("../migrations/0003_operations.down.sql"),
    },
    Migration {
        version: 4,
        name: "unchecked",
        up: include_str!("../migrations/0004_unchecked.up.sql"),
        down: include_str!("../migrations/0004_unchecked.down.sql"),
    },
    Migration {
        version: 5,
        name: "optimistic",
        up: include_str!("../migrations/0005_optimistic.up.sql"),
        down: include_str!("../migrations/0005_optimistic.down.sql"),
    },
    Migration {
        version: 6,
        name: "one_cursor",
        up: include_str!("../migrations/0006_one_cursor.up.sql"),
        down: include_str!("../migrations/0006_one_cursor.down.sql"),
    },
    Migration {
        version: 7,
        name: "allow_commit",
        up: include_str!("../migrations/0007_allow_commit.up.sql"),
        down: include_str!("../migrations/0007_allow_commit.down.sql"),
    },
];

/// Applies the migrations that are missing. Harmless to repeat, and to run from many processes at once.
///
/// Each migration commits with the note that it was applied. Everything is kept in the schema `pgonce`, the
/// notes too (`pgonce._sqlx_migrations`), so that the application's own `_sqlx_migrations` is not disturbed.
///
/// Call it as a role that may create a schema (which is asked for every time), from the deployment or at start-up. In a
/// database that another tool has migrated with [`MIGRATIONS`] it fails, since it finds no notes of its own: stay with one. It locks out other runs of
/// sqlx's migrator by a session-level advisory lock, so it needs a direct connection, not PgBouncer in transaction
/// mode, and a pool that is not read-only.
///
/// The application itself may run as a role that owns nothing. It needs these grants:
///
/// ```sql
/// GRANT USAGE ON SCHEMA pgonce TO app;
/// GRANT SELECT, INSERT, UPDATE, DELETE ON pgonce.keys TO app;
/// ```
///
/// `DELETE` is for the [`Reaper`](crate::Reaper) and [`purge_expired`](crate::Idempotency::purge_expired) only.
/// The functions `pgonce.refuse_commit` and `pgonce.allow_commit`, which an
/// [`Inbox`](crate::Inbox) and [`Mode::Optimistic`](crate::Mode::Optimistic) need, may be called by everybody; where new functions may not,
/// add `GRANT EXECUTE ON FUNCTION pgonce.refuse_commit, pgonce.allow_commit TO app`. For people who look things up:
/// `GRANT SELECT ON pgonce.readable_keys TO …`.
///
/// # Errors
///
/// [`Database`](crate::ErrorKind::Database): the role may not create the schema, or a migration that was applied here
/// is not one of these (a newer release migrated this database, or a file was edited).
pub async fn migrate(pool: &PgPool) -> Result<(), Error> {
    let mut conn = pool.acquire().await?;
    let applied = migrator().run_direct(None, &mut *conn, false).await;
    applied.map_err(|error| {
        // It returned without giving the advisory lock back, which only the end of the session does.
        conn.close_on_drop();
        Error::of_migration(error.into())
    })
}

/// The names are those of `sqlx.toml`, so that either can be run after the other.
fn migrator() -> Migrator {
    let migrations = MIGRATIONS.iter().flat_map(|migration| {
        [(MigrationType::ReversibleUp, migration.up), (MigrationType::ReversibleDown, migration.down)].map(
            |(kind, sql)| {
                SqlxMigration::new(migration.version, migration.name.into(), kind, sql.into_sql_str(), false)
            },
        )
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.dangerous_set_table_name("pgonce._sqlx_migrations");
    migrator.create_schema("pgonce");
    migrator
}

/// Checks that this database and this role are ready for pgonce. Meant for start-up. It writes nothing and needs no
/// grant.
///
/// From the catalogs: tables, columns and constraints; the guards that refuse to commit a pending key or an unfinished message
/// (present, deferred, not disabled); the grants; and that the server is a primary.
///
/// By trying, on a few connections beside the pool, one after the other: that no pooler mixes up prepared statements, as
/// PgBouncer does in transaction mode without support for them. What it refuses is proven; where no connection is free
/// to try it with, it logs a warning and goes on.
///
/// # Errors
///
/// [`NotMigrated`](crate::ErrorKind::NotMigrated) lists everything that is missing, each with what to do about it;
/// [`Database`](crate::ErrorKind::Database) when the question could not be asked.
pub async fn verify(pool: &PgPool) -> Result<(), Error> {
    let mut missing = Vec::new();
    if mixes_up_statements(pool).await {
        missing.push(POOLER.to_owned());
    }
    // In a transaction, as every call will be: a pooler that has none (statement mode) says so now.
    let mut transaction = pool.begin().await?;
    // Not prepared, so that such a pooler cannot mix it up as well.
    let rows = sqlx::raw_sql(crate::sql::VERIFY).fetch_all(&mut *transaction).await?;
    transaction.rollback().await?;
    for row in rows {
        missing.push(format!(
            "{}: {}",
            row.try_get::<&str, _>("problem")?,
            row.try_get::<&str, _>("remedy")?
        ));
    }
    if missing.is_empty() { Ok(()) } else { Err(Error::NotMigrated { missing }) }
}
