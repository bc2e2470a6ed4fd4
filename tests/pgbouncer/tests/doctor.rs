//! What the operator's tool says of a PgBouncer, from behind it.

#[path = "../../support/mod.rs"]
mod support;

use std::process::{Command, Output};

use pgbouncer_tests::{PgBouncer, Program};
use serde_json::Value;
use support::Database;

type Settings<'s> = &'s [(&'s str, &'s str)];

#[tokio::test]
async fn a_pooler_that_mixes_up_statements_is_a_problem() {
    let db = Database::new().await;
    for (program, settings) in [(Program::Old, &[][..]), (Program::New, &[("max_prepared_statements", "0")])]
    {
        let check = pooler(&db, program, settings).await;
        assert_eq!(check["status"], "problem", "{program:?}: {check}");
        assert_says(&check["message"], "mixes up prepared statements");
        assert_says(&check["fix"], "1.21 or later with max_prepared_statements");
        assert_says(&check["fix"], "pool_mode = session");
    }
}

#[tokio::test]
async fn a_pooler_that_follows_statements_is_seen_and_fine() {
    let db = Database::new().await;
    let check = pooler(&db, Program::New, &[]).await;
    assert_eq!(check["status"], "ok", "{check}");
    assert_says(
        &check["message"],
        "lends connections for single transactions, and follows prepared statements",
    );
}

/// Which is not seen then: it may lend another connection each time.
#[tokio::test]
async fn a_pooler_that_takes_turns_is_fine() {
    let db = Database::new().await;
    let settings =
        [("server_round_robin", "1"), ("max_prepared_statements", "1"), ("server_reset_query_always", "1")];
    let check = pooler(&db, Program::New, &settings).await;
    assert_eq!(check["status"], "ok", "{check}");
}

#[tokio::test]
async fn a_pooler_in_session_mode_is_no_matter() {
    let db = Database::new().await;
    for program in [Program::Old, Program::New] {
        let check = pooler(&db, program, &[("pool_mode", "session")]).await;
        assert_eq!(check["status"], "ok", "{program:?}: {check}");
        assert_says(&check["message"], "no pooler that lends connections for single transactions was seen");
    }
}

/// Nothing can be asked through it, and that is the diagnosis.
#[tokio::test]
async fn a_pooler_in_statement_mode_is_a_problem() {
    let db = Database::new().await;
    for program in [Program::Old, Program::New] {
        let pgbouncer = PgBouncer::start(program, &db.url(), &[("pool_mode", "statement")]).await;
        let output = tool(&db, &pgbouncer, &["doctor", "--json"]);
        assert_eq!(output.status.code(), Some(1), "{program:?}: {output:?}");
        let checks = checks(&output);
        let [check] = checks.as_slice() else { panic!("{program:?}: {checks:?}") };
        assert_eq!((&check["check"], &check["status"]), (&"pooler".into(), &"problem".into()));
        assert_says(&check["message"], "statement mode");
        assert_says(&check["fix"], "pool_mode = transaction");

        let output = tool(&db, &pgbouncer, &["doctor"]);
        assert_eq!(output.status.code(), Some(1), "{program:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 problem"), "{output:?}");
        // The others cannot work, and say what to change, too.
        let output = tool(&db, &pgbouncer, &["list"]);
        assert_eq!(output.status.code(), Some(7), "{program:?}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("pool_mode = transaction"), "{output:?}");
    }
}

/// What the doctor has to say of the pooler; it was asked and answered everything else as well.
async fn pooler(db: &Database, program: Program, settings: Settings<'_>) -> Value {
    let pgbouncer = PgBouncer::start(program, &db.url(), settings).await;
    let checks = checks(&tool(db, &pgbouncer, &["doctor", "--json"]));
    assert!(checks.iter().any(|check| check["check"] == "vacuum"), "{checks:?}");
    let mut found = checks.into_iter().filter(|check| check["check"] == "pooler");
    let check = found.next().expect("a line about the pooler");
    assert_eq!(found.next(), None);
    check
}

/// With nothing of the caller's environment that it would read.
fn tool(db: &Database, pgbouncer: &PgBouncer, args: &[&str]) -> Output {
    let options = pgbouncer.options();
    let socket = options.get_socket().expect("it listens on a socket").display();
    let mut tool = Command::new(env!("CARGO_BIN_EXE_pgonce_for_pgbouncer_tests"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") {
            tool.env_remove(name);
        }
    }
    tool.args(args).env("DATABASE_URL", format!("{}?host={socket}", db.url())).output().expect("run the tool")
}

fn checks(output: &Output) -> Vec<Value> {
    let document: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    document["checks"].as_array().expect("checks").clone()
}

#[track_caller]
fn assert_says(found: &Value, text: &str) {
    assert!(found.as_str().is_some_and(|found| found.contains(text)), "no `{text}` in {found}");
}
