//! Settings are in force, and a durable server survives a crash.

mod common;

use common::client::{Client, query};
use common::process::{self, Actor, say, wait_for_parent};
use common::sandbox::Sandbox;
use throwaway_postgres::{ErrorKind, Server, Settings};

#[test]
fn child() {
    if process::role().is_none() {
        return;
    }
    let mut server = throwaway_postgres::private_with(&Settings::durable()).expect("a server");
    server.stop_immediately().expect("it is ours");
    say("stopped");
    wait_for_parent();
    drop(server);
}

fn show(server: &Server, name: &str) -> String {
    query(server.url(), &format!("SHOW {name}")).expect("a setting").concat()
}

#[test]
fn a_fast_server_does_not_wait_for_the_disk() {
    let server = throwaway_postgres::private().expect("a server");
    for (name, value) in [
        ("fsync", "off"),
        ("full_page_writes", "off"),
        ("synchronous_commit", "on"),
        ("max_connections", "300"),
        ("max_prepared_transactions", "10"),
        ("server_encoding", "UTF8"),
        ("TimeZone", "UTC"),
    ] {
        assert_eq!(show(&server, name), value, "{name}");
    }
}

#[test]
fn a_durable_server_does_and_takes_more_settings() {
    let settings = Settings::durable()
        .with("max_connections", "17")
        .with("application_name", "a name with spaces, 'quotes' and $HOME");
    let server = throwaway_postgres::private_with(&settings).expect("a server");
    for (name, value) in [
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
        ("max_connections", "17"),
        ("application_name", "a name with spaces, 'quotes' and $HOME"),
    ] {
        assert_eq!(show(&server, name), value, "{name}");
    }
}

#[test]
fn a_setting_that_does_not_exist_is_in_the_error() {
    let settings = Settings::fast().with("no_such_setting", "1");
    let error = throwaway_postgres::private_with(&settings).expect_err("no such setting");
    assert_eq!(error.kind(), ErrorKind::Failed);
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

#[test]
fn what_was_committed_survives_a_crash() {
    let mut server = throwaway_postgres::private_with(&Settings::durable()).expect("a server");
    let url = server.url().to_owned();
    query(&url, "CREATE TABLE kept (n int)").expect("a table");
    for n in 1..=3 {
        query(&url, &format!("INSERT INTO kept VALUES ({n})")).expect("a row");
        let mut open = Client::connect(&url).expect("a connection");
        open.query("BEGIN").expect("a transaction");
        open.query("INSERT INTO kept VALUES (99)").expect("a row");

        server.stop_immediately().expect("it is ours");
        open.query("COMMIT").expect_err("the server crashed");
        query(&url, "SELECT 1").expect_err("the server is down");
        server.start_again().expect("it is ours");

        assert_eq!(server.url(), url);
        let rows = query(&url, "SELECT count(*) || ' up to ' || max(n) FROM kept");
        assert_eq!(rows.expect("the rows"), [format!("{n} up to {n}")]);
    }
    let error = server.start_again().expect_err("it runs");
    assert_eq!(error.kind(), ErrorKind::Failed);
    query(&url, "SELECT 1").expect("it still runs");
}

#[test]
fn a_fast_stop_ends_open_transactions_and_writes_everything_to_the_disk() {
    // Only the shutdown writes what was committed like this.
    let settings = Settings::durable().with("synchronous_commit", "off").with("wal_writer_delay", "10s");
    let mut server = throwaway_postgres::private_with(&settings).expect("a server");
    let url = server.url().to_owned();
    query(&url, "CREATE TABLE kept (n int)").expect("a table");
    for n in 1..=3 {
        query(&url, &format!("INSERT INTO kept VALUES ({n})")).expect("a row");
    }
    let mut open = Client::connect(&url).expect("a connection");
    open.query("BEGIN").expect("a transaction");
    open.query("INSERT INTO kept VALUES (99)").expect("a row");

    server.stop_fast().expect("it is ours");
    open.query("COMMIT").expect_err("its session was ended");
    server.start_again().expect("it is ours");
    assert_eq!(
        query(&url, "SELECT count(*) || ' up to ' || max(n) FROM kept").expect("the rows"),
        ["3 up to 3"]
    );
}

#[test]
fn nothing_is_left_of_a_crashed_server() {
    let sandbox = Sandbox::new();
    let mut child = Actor::start(process::command("child", "crash", &sandbox));
    assert_eq!(child.hear(), "stopped");
    child.kill();
    sandbox.wait_until_empty();
}
