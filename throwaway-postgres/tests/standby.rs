//! A streaming standby: it follows its primary, takes over from it, and nothing is left of it.

mod common;

use std::time::{Duration, Instant};

use common::client::query;
use common::process::{self, Actor, say, wait_for_parent};
use common::sandbox::Sandbox;
use throwaway_postgres::{ErrorKind, Server, Settings};

#[test]
fn child() {
    let Some(role) = process::role() else { return };
    let mut primary = match role.as_str() {
        "shared" | "external" => throwaway_postgres::shared(),
        _ => throwaway_postgres::private(),
    }
    .expect("a server");
    if matches!(role.as_str(), "shared" | "external") {
        return say(&format!("{:?}", primary.standby().expect_err("not ours").kind()));
    }
    let standby = primary.standby().expect("a standby");
    say(standby.url());
    wait_for_parent();
    match role.as_str() {
        "standby first" => drop((standby, primary)),
        "primary first" => drop((primary, standby)),
        _ => unreachable!("{role}"),
    }
    // The parent looks at once.
    std::process::abort();
}

fn pair() -> (Server, Server) {
    let mut primary = throwaway_postgres::private_with(&own_settings()).expect("a server");
    query(primary.url(), "CREATE TABLE kept (n int)").expect("a table");
    query(primary.url(), "INSERT INTO kept VALUES (1)").expect("a row");
    let standby = primary.standby().expect("a standby");
    (primary, standby)
}

/// Never the server of `DATABASE_URL`.
fn own_settings() -> Settings {
    Settings::fast().with("max_connections", "17")
}

fn wait_until(server: &Server, sql: &str) {
    let begin = Instant::now();
    while query(server.url(), sql).expect("an answer") != ["t"] {
        assert!(begin.elapsed() < Duration::from_secs(60), "never true: {sql}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn it_follows_its_primary_and_takes_no_writes() {
    let (primary, standby) = pair();
    query(primary.url(), "INSERT INTO kept VALUES (2)").expect("the primary takes writes");
    wait_until(&standby, "SELECT count(*) = 2 FROM kept");
    wait_until(&primary, "SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'");
    let error = query(standby.url(), "INSERT INTO kept VALUES (3)").expect_err("it is a standby");
    assert!(error.to_string().contains("25006"), "{error}");
    assert_eq!(query(standby.url(), "SHOW max_connections").expect("an answer"), ["17"]);
    assert_ne!(primary.url(), standby.url());
    assert_eq!(primary.origin(), standby.origin());
}

#[test]
fn a_synchronous_one_holds_up_its_primary() {
    let (primary, mut standby) = pair();
    query(primary.url(), "ALTER SYSTEM SET synchronous_standby_names = '*'").expect("a superuser");
    query(primary.url(), "SELECT pg_reload_conf()").expect("a superuser");
    wait_until(&primary, "SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'");
    query(primary.url(), "INSERT INTO kept VALUES (2)").expect("the standby confirms it");

    standby.stop_immediately().expect("it is ours");
    let url = primary.url().to_owned();
    let insert = std::thread::spawn(move || query(&url, "INSERT INTO kept VALUES (3)"));
    wait_until(&primary, "SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
    assert!(!insert.is_finished());
    standby.start_again().expect("it is ours");
    insert.join().expect("no panic").expect("the standby confirms it");
    wait_until(&standby, "SELECT count(*) = 3 FROM kept");
}

#[test]
fn it_takes_over_when_its_primary_is_gone() {
    let (mut primary, mut standby) = pair();
    query(primary.url(), "INSERT INTO kept VALUES (2)").expect("a row");
    wait_until(&standby, "SELECT count(*) = 2 FROM kept");
    primary.stop_immediately().expect("it is ours");
    assert_eq!(query(standby.url(), "SELECT pg_promote()").expect("a superuser"), ["t"]);
    query(standby.url(), "INSERT INTO kept VALUES (3)").expect("it takes writes");

    standby.stop_immediately().expect("it is ours");
    standby.start_again().expect("it is ours");
    let rows = query(standby.url(), "SELECT n FROM kept ORDER BY n").expect("it is a primary still");
    assert_eq!(rows, ["1", "2", "3"]);
}

#[test]
fn nothing_is_left_whichever_goes_first() {
    for role in ["standby first", "primary first"] {
        let sandbox = Sandbox::new();
        let mut child = Actor::start(process::command("child", role, &sandbox));
        child.hear();
        assert_eq!(sandbox.folders().len(), 2);
        child.release();
        child.wait();
        assert_eq!(sandbox.contents(), [""; 0], "{role}");
    }
}

#[test]
fn a_server_that_is_not_ours_gets_none() {
    for role in ["shared", "external"] {
        let sandbox = Sandbox::new();
        let mut command = process::command("child", role, &sandbox);
        if role == "external" {
            command.env("DATABASE_URL", "postgres://me@there/db");
        }
        let mut child = Actor::start(command);
        assert_eq!(child.hear(), format!("{:?}", ErrorKind::NotOurs));
        assert!(child.finish());
        sandbox.wait_until_empty();
    }
}
