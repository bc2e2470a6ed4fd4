//! Which server is used, seen from outside. (The search itself is tested beside its code.)

mod common;

use std::process::Command;

use common::client::query;
use common::process::{self, Actor, say};
use common::sandbox::Sandbox;
use throwaway_postgres::{Error, Origin, Server, Settings};

#[test]
fn child() {
    let Some(role) = process::role() else { return };
    let server = match role.as_str() {
        "private" => throwaway_postgres::private(),
        "shared" => throwaway_postgres::shared(),
        "durable" => throwaway_postgres::private_with(&Settings::durable()),
        _ => unreachable!("{role}"),
    };
    say(&describe(&server));
}

fn describe(server: &Result<Server, Error>) -> String {
    match server {
        Ok(server) if server.is_external() => {
            format!("{}: {}, {}", server.origin(), server.url(), server.url_of("new"))
        }
        Ok(server) => {
            query(server.url(), "SELECT 1").expect("it works");
            server.origin().to_string()
        }
        Err(error) => format!("{:?}: {error}", error.kind()),
    }
}

fn hear(role: &str, change: impl Fn(&mut Command) -> &mut Command) -> String {
    let sandbox = Sandbox::new();
    let mut command = process::command("child", role, &sandbox);
    change(&mut command);
    let mut child = Actor::start(command);
    let answer = child.hear();
    child.finish();
    sandbox.wait_until_empty();
    answer
}

#[test]
fn database_url_is_used_as_it_is() {
    for role in ["private", "shared"] {
        let answer = hear(role, |command| command.env("DATABASE_URL", "postgres://me@there/old?a=b"));
        assert_eq!(answer, "DATABASE_URL: postgres://me@there/old?a=b, postgres://me@there/new?a=b");
    }
}

#[test]
fn a_server_with_settings_is_never_the_one_of_database_url() {
    let answer = hear("durable", |command| command.env("DATABASE_URL", "postgres://me@there/old"));
    assert!(!answer.contains("DATABASE_URL"), "{answer}");
}

#[test]
fn an_empty_database_url_counts_as_none() {
    let answer = hear("private", |command| command.env("DATABASE_URL", ""));
    assert!(!answer.contains("DATABASE_URL"), "{answer}");
}

#[test]
fn a_folder_without_programs_is_an_error() {
    for role in ["private", "shared"] {
        let answer = hear(role, |command| command.env("THROWAWAY_POSTGRES_BIN", "/nonsense"));
        assert!(answer.starts_with("Unusable: THROWAWAY_POSTGRES_BIN is /nonsense"), "{answer}");
    }
}

#[test]
fn it_works_without_path() {
    let server = throwaway_postgres::private().expect("a server");
    let Origin::Programs { folder, .. } = server.origin() else {
        return println!("skipped: the server comes from {}", server.origin());
    };
    let answer = hear("private", |command| command.env_remove("PATH").env("THROWAWAY_POSTGRES_BIN", folder));
    assert_eq!(answer, server.origin().to_string());
}

#[test]
fn variables_for_clients_do_not_reach_the_server() {
    let answer = hear("private", |command| {
        command.env("PGPORT", "1").env("PGDATA", "/nonsense").env("PGCLIENTENCODING", "nonsense")
    });
    assert!(answer.starts_with("PostgreSQL "), "{answer}");
}
