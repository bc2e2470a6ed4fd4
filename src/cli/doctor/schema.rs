//! The schema, its guards, the grants, the indexes.

use super::{Check, Status, lost};
use crate::cli::exit::Failure;
use crate::cli::session::{self, Session, newest};
use crate::cli::words;
use crate::sql::operations::{self, Verified};

pub(super) async fn checks(session: &mut Session, role: Option<&str>) -> Result<Vec<Check>, Failure> {
    let mut checks = vec![version(session)];
    if session.place.schema == 0 {
        return Ok(checks);
    }
    let mut transaction = session.read().await?;
    let verified = operations::verify_as(&mut transaction, role).await;
    transaction.rollback().await?;
    match (verified, role) {
        (Ok(problems), _) => checks.extend(verified_checks(session, role, problems)),
        (Err(error), Some(role)) => checks.push(Check::problem(
            "grants",
            format!("cannot look as role {role}: {error}"),
            format!(
                "GRANT {} TO {}; or connect as {role}",
                words::identifier(role),
                session.place.quoted_role
            ),
        )),
        (Err(error), None) => return Err(error.into()),
    }
    checks.extend(lost::checks(&session.place));
    // A version is not all right of which something is missing.
    if checks.iter().any(|check| check.check == "schema" && check.status == Status::Problem) {
        checks.retain(|check| check.check != "schema" || check.status != Status::Ok);
    }
    let mut transaction = session.read().await?;
    let problems = operations::index_problems(&mut transaction).await?;
    transaction.rollback().await?;
    if problems.is_empty() {
        checks.push(Check::ok("indexes", "all are valid, and one is on expires_at"));
    }
    checks.extend(problems.into_iter().map(|(problem, remedy)| Check::problem("indexes", problem, remedy)));
    Ok(checks)
}

fn version(session: &Session) -> Check {
    let place = &session.place;
    match place.schema {
        0 => Check::problem(
            "schema",
            format!("there is no pgonce in database {}", place.database),
            "pgonce migrate, as the owner of the database",
        ),
        schema if schema == newest() => {
            let by =
                if place.noted { "" } else { "; not by sqlx's migrator: stay with the tool that made it" };
            Check::ok("schema", format!("version {schema}, as this release has it{by}"))
        }
        schema => Check::problem(
            "schema",
            format!("version {schema}, but this release has version {}", newest()),
            session::other_version(schema),
        ),
    }
}

/// What `pgonce::verify` finds; the standby has a line of its own already, and so has an old schema.
fn verified_checks(session: &Session, role: Option<&str>, problems: Vec<Verified>) -> Vec<Check> {
    let (grants, problems): (Vec<_>, Vec<_>) =
        problems.into_iter().partition(|problem| problem.subject == "grants");
    let mut checks = Vec::new();
    if !problems.iter().any(|problem| problem.subject == "guards") {
        checks
            .push(Check::ok("guards", "what refuses to commit a pending key is there, deferred and enabled"));
    }
    let (name, is_said) = (role.unwrap_or(&session.place.role), role.is_some());
    checks.push(if !grants.is_empty() {
        let lacks: Vec<_> = grants.iter().filter_map(|grant| grant.problem.split_once("lacks ")).collect();
        let lacks: Vec<_> = lacks.iter().map(|(_, grant)| *grant).collect();
        let fixes: Vec<_> = grants.iter().map(|grant| format!("{};", grant.remedy)).collect();
        Check::problem("grants", format!("role {name} lacks {}", lacks.join(", ")), fixes.join("\n"))
    } else if session.place.superuser && !is_said {
        Check::ok("grants", format!("role {name} is a superuser; --role looks at the application's"))
    } else {
        Check::ok("grants", format!("role {name} has all that calls need"))
    });
    checks.extend(problems.into_iter().filter_map(|Verified { problem, remedy, subject }| {
        let check = match subject.as_str() {
            "guards" => "guards",
            "settings" => "settings",
            "schema" if session.place.schema == newest() => "schema",
            _ => return None,
        };
        let fix = lost::restores(&problem).unwrap_or(remedy);
        Some(Check::problem(check, problem, fix))
    }));
    checks
}
