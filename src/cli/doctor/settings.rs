//! Settings that break the promise, or weaken it.

use super::Check;
use crate::cli::exit::Failure;
use crate::cli::session::Session;
use crate::cli::words;
use crate::sql::operations::{self, Setting};

pub(super) async fn checks(session: &mut Session, role: Option<&str>) -> Result<Vec<Check>, Failure> {
    let target = match role {
        Some(role) => format!("ROLE {}", words::identifier(role)),
        None => format!("DATABASE {}", words::identifier(&session.place.database)),
    };
    let role = role.unwrap_or(&session.place.role).to_owned();
    let names = [
        "fsync",
        "full_page_writes",
        "synchronous_commit",
        "synchronous_standby_names",
        "default_transaction_read_only",
        "session_replication_role",
        "client_connection_check_interval",
        "idle_in_transaction_session_timeout",
    ];
    let mut transaction = session.read().await?;
    let settings = operations::settings(&mut transaction, &role, &names).await?;
    transaction.rollback().await?;
    let (hidden, seen): (Vec<_>, Vec<_>) = settings.into_iter().partition(|setting| setting.hidden);
    let mut checks: Vec<_> = seen.iter().filter_map(|setting| judge(setting, &seen, &target)).collect();
    checks.extend(hidden.iter().map(|Setting { name, .. }| {
        Check::warning(
            "settings",
            format!("{name} cannot be seen for role {role} from here: this session has a value of its own"),
            format!("connect as {role} to see it"),
        )
    }));
    if checks.is_empty() {
        checks.push(Check::ok("settings", "none weakens the promise"));
    }
    Ok(checks)
}

fn judge(setting: &Setting, all: &[Setting], target: &str) -> Option<Check> {
    let Setting { name, value, special, .. } = setting;
    let whose = if *special { " for the role or the database" } else { "" };
    let says = |what: &str| format!("{name} is {value}{whose}: {what}");
    let set = |value: &str| format!("ALTER {target} SET {name} = {value}; -- then reconnect");
    let reset =
        || format!("ALTER {target} RESET {name}; -- or where psql's \\drds shows it, or in postgresql.conf");
    let is_off =
        matches!(value.trim_end_matches(char::is_alphabetic), "0") || value == "off" || value == "false";
    let has_standbys =
        all.iter().any(|other| other.name == "synchronous_standby_names" && !other.value.is_empty());
    Some(match name.as_str() {
        "fsync" | "full_page_writes" if is_off => Check::problem(
            "settings",
            says("a crash of the machine may lose what was committed, and corrupt the rest"),
            format!("ALTER SYSTEM SET {name} = on; SELECT pg_reload_conf();"),
        ),
        "synchronous_commit" if is_off => Check::problem(
            "settings",
            says("a success may be reported and then be lost in a crash, with its key"),
            set("on"),
        ),
        "synchronous_commit" if value == "local" && has_standbys => Check::warning(
            "settings",
            says("a failover may lose what was reported as committed, though there are synchronous standbys"),
            set("on"),
        ),
        "default_transaction_read_only" if !is_off => {
            Check::problem("settings", says("every claim on a plain pool fails"), reset())
        }
        "session_replication_role" if value != "origin" => {
            Check::problem("settings", says("the guards are not enforced in such a session"), reset())
        }
        "client_connection_check_interval" if is_off => Check::warning(
            "settings",
            says("when a caller dies, its statement goes on, and its key is in flight"),
            set("'1s'"),
        ),
        "idle_in_transaction_session_timeout" if is_off => Check::warning(
            "settings",
            says("a closure that hangs keeps its key in flight, and holds vacuum up"),
            set("'60s'"),
        ),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn setting(name: &str, value: &str) -> Setting {
        Setting { name: name.into(), value: value.into(), special: false, hidden: false }
    }

    /// The status, and what it says and advises.
    fn judged(setting: &Setting, all: &[Setting]) -> (Status, String) {
        judge(setting, all, "ROLE app").map_or((Status::Ok, String::new()), |check| {
            (check.status, format!("{}; {}", check.message, check.fix.unwrap_or_default()))
        })
    }

    #[test]
    fn what_does_not_survive_a_crash_is_a_problem() {
        for name in ["fsync", "full_page_writes"] {
            assert_eq!(judged(&setting(name, "on"), &[]).0, Status::Ok);
            let (status, said) = judged(&setting(name, "off"), &[]);
            assert_eq!(status, Status::Problem);
            assert!(said.contains(&format!("{name} is off: a crash of the machine")), "{said}");
            assert!(said.contains(&format!("ALTER SYSTEM SET {name} = on;")), "{said}");
        }
        let (status, said) = judged(&setting("synchronous_commit", "off"), &[]);
        assert_eq!(status, Status::Problem);
        assert!(said.contains("ALTER ROLE app SET synchronous_commit = on"), "{said}");
    }

    #[test]
    fn not_to_wait_for_a_standby_matters_where_there_is_one() {
        let (local, none) =
            (setting("synchronous_commit", "local"), setting("synchronous_standby_names", ""));
        assert_eq!(judged(&local, &[none]).0, Status::Ok);
        let (status, said) = judged(&local, &[setting("synchronous_standby_names", "standby_1")]);
        assert_eq!(status, Status::Warning);
        assert!(said.contains("a failover may lose"), "{said}");
        for value in ["on", "remote_apply", "remote_write"] {
            let standby = [setting("synchronous_standby_names", "standby_1")];
            assert_eq!(judged(&setting("synchronous_commit", value), &standby).0, Status::Ok, "{value}");
        }
    }

    #[test]
    fn zero_is_off_with_any_unit_and_other_spans_are_not() {
        for name in ["client_connection_check_interval", "idle_in_transaction_session_timeout"] {
            for (value, status) in [
                ("0", Status::Warning),
                ("0ms", Status::Warning),
                ("0s", Status::Warning),
                ("1s", Status::Ok),
                ("10s", Status::Ok),
                ("1000", Status::Ok),
            ] {
                assert_eq!(judged(&setting(name, value), &[]).0, status, "{name} = {value}");
            }
        }
    }
}
