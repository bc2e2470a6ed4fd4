//! What somebody has dropped of the schema, and the SQL that makes it again.

use super::Check;
use crate::MIGRATIONS;
use crate::cli::session::newest;
use crate::sql::operations::Place;

/// The functions that the guard of messages and of the optimistic mode needs, as the verification names them; and what makes them.
const GUARD: [(&str, i64, &str); 2] = [
    ("the function pgonce.refuse_commit is missing", 6, "CREATE OR REPLACE FUNCTION pgonce.refuse_commit"),
    ("the function pgonce.allow_commit is missing", 7, "CREATE FUNCTION pgonce.allow_commit"),
];

/// What calls can do without, which is why `pgonce::verify` does not look for it.
pub(super) fn checks(place: &Place) -> Vec<Check> {
    // A newer release may have other things in their place.
    if !(3..=newest()).contains(&place.schema) {
        return Vec::new();
    }
    let mut checks = Vec::new();
    if !place.evictions {
        checks.push(Check::problem(
            "schema",
            "the table pgonce.evictions is missing, and with it who evicted which keys: nothing can be evicted",
            statements(3, "CREATE TABLE pgonce.evictions", "evictions_key_idx ON pgonce.evictions (scope, key);"),
        ));
    }
    if !place.purge_expired {
        checks.push(Check::problem(
            "schema",
            "the function pgonce.purge_expired is missing: a job that calls it fails, and expired keys stay",
            statements(3, "CREATE FUNCTION pgonce.purge_expired", "$$;"),
        ));
    }
    checks
}

/// Where the notes say that the migration was applied, to migrate once more does nothing.
pub(super) fn restores(problem: &str) -> Option<String> {
    let (_, version, begins) = GUARD.into_iter().find(|(missing, ..)| *missing == problem)?;
    Some(statements(version, begins, "$$;"))
}

/// Of the migration to this version, from here to there.
fn statements(version: i64, from: &str, to: &str) -> String {
    let sql = MIGRATIONS.iter().find(|migration| migration.version == version).map_or("", |found| found.up);
    let start = sql.find(from).unwrap_or(0);
    let end = sql[start..].find(to).map_or(sql.len(), |end| start + end + to.len());
    sql[start..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(schema: i64) -> Place {
        Place {
            role: "app".into(),
            quoted_role: "app".into(),
            superuser: false,
            database: "shop".into(),
            version: "18.4".into(),
            version_number: 180_004,
            standby: false,
            clock: chrono::DateTime::UNIX_EPOCH,
            pid: 1,
            schema,
            noted: true,
            evictions: false,
            purge_expired: false,
            missing: Vec::new(),
        }
    }

    #[test]
    fn what_a_version_never_had_is_not_missed() {
        let found = |schema| checks(&place(schema)).len();
        assert_eq!([0, 1, 2, 3, newest(), newest() + 1].map(found), [0, 0, 0, 2, 2, 0]);
    }
}
